"""What a compression has finished, on the disk beside OUT, so that one that was killed goes on where it was.

A journal of lines of JSON. A line is on the disk before the next piece of work begins, and a file that it names was
complete before it: what has no line has not happened. Where several processes work on one compression, the first one
keeps it, and the others read it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.atomic import fsync_directory, replacing
from runtime.errors import EngineError, ModelError, UserError
from runtime.lines import append_line, read_lines
from targets.safetensors import read_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt

    Arrays = Mapping[str, npt.NDArray[np.uint8]]

NAME = "journal.jsonl"


class Kept:
    """What finished work is told to; this one keeps nothing.

    first: whether this process writes what a run leaves; others that work on the same one read it
    """

    first = True

    def meet(self) -> None:
        """Wait until all processes of the run have come here."""

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process does what stands within it, and then the others do: who find kept what it has kept."""
        if not self.first:
            self.meet()
        yield
        if self.first:
            self.meet()

    def find(self, what: str) -> dict[str, Any] | None:
        """What was noted last under that name; None where nothing was."""

    def note(self, what: str, **content: Any) -> None:
        """Keep something small, as JSON."""

    def load(self, piece: str) -> Arrays | None:
        """The arrays of a finished piece of work; None where it has to be done."""

    def save(self, piece: str, arrays: Arrays) -> Arrays:  # noqa: ARG002 - a name for those that keep
        """Keep the bytes of a finished piece of work; the same arrays, on the disk where they are kept there."""
        return arrays


class Journal(Kept):
    """Keeps everything in a directory: small things as lines, arrays in files.

    room: the directory; all_met: waits for the other processes, where there are any
    """

    def __init__(self, room: Path) -> None:
        self.room = room
        self.all_met: Callable[[], None] = lambda: None
        self._lines = read_lines(room / NAME, mend=self.first)

    def meet(self) -> None:
        """See `Kept`."""
        self.all_met()

    @property
    def worth_keeping(self) -> bool:
        """Whether it holds work that took time."""
        return any("file" in line or line["what"].startswith("step") for line in self._lines)

    def find(self, what: str) -> dict[str, Any] | None:
        """See `Kept`."""
        return next((line for line in reversed(self._lines) if line["what"] == what), None)

    def note(self, what: str, **content: Any) -> None:
        """See `Kept`."""
        line = {"what": what, **content}
        append_line(self.room / NAME, line)
        self._lines.append(line)

    def same(self, what: str, value: str, message: str) -> None:
        """Note a value, or raise UserError with `message` where another one was noted."""
        found = self.find(what)
        if found is None:
            self.note(what, value=value)
        elif found["value"] != value:
            raise UserError(message)

    def load(self, piece: str) -> Arrays | None:
        """See `Kept`. A file that is damaged has to be done again."""
        found = self.find(piece)
        if found is None:
            return None
        path = self.room / found["file"]
        try:
            return _mapped(path) if _sha256(path) == found["sha256"] else None
        except (OSError, ModelError):
            return None

    def save(self, piece: str, arrays: Arrays) -> Arrays:
        """See `Kept`."""
        from safetensors.numpy import save_file

        path = self.room / f"{piece}.safetensors"
        with replacing(path) as temporary:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)
        self.note(piece, file=path.name, sha256=_sha256(path))
        return _mapped(path)


class ReadJournal(Journal):
    """That of the first process, for the others: it is read anew whenever all have met.

    Raises UserError where it is not there: then this process is on a machine with another disk.
    """

    first = False

    def __init__(self, room: Path) -> None:
        super().__init__(room)
        if not self._lines:
            raise UserError(f"{room}: is not there; -o must name a place that the processes of all machines see")

    def meet(self) -> None:
        """See `Kept`."""
        super().meet()
        self._lines = read_lines(self.room / NAME, mend=False)

    def note(self, what: str, **_: Any) -> None:
        """See `Kept`. The first process has noted it, or has failed."""
        raise EngineError(f"{self.room}: the first process's {what} cannot be read; go on with --resume")

    def save(self, piece: str, arrays: Arrays) -> Arrays:
        """See `Kept`. The first process has kept it, or has failed."""
        self.note(piece)
        return arrays


@contextlib.contextmanager
def working(out: Path, made_of: Mapping[str, str], *, resume: bool) -> Iterator[Journal]:
    """A work directory beside OUT with its journal: as a run before left it with `resume`, else empty.

    made_of: what the result depends on, by what the user calls it; a run before must have had the same
    It is removed at the end. A run that fails leaves it where it holds finished work, for the next one to go on with or
    to remove. Raises UserError where another process works there, or where the run before was of something else.
    """
    room = work_of(out)
    room.mkdir(exist_ok=True)
    lock = os.open(room, os.O_RDONLY)
    try:
        _lock(lock, out)
        journal = _begun(room, made_of, resume=resume)
        finished = False
        try:
            yield journal
            finished = True
        finally:
            if finished or not journal.worth_keeping:
                shutil.rmtree(room, ignore_errors=True)
    finally:
        os.close(lock)


def work_of(out: Path) -> Path:
    """Where the work on OUT is kept."""
    return out.with_name(f".{out.name}.work")


def _lock(lock: int, out: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"{out}: another process is compressing to it; wait for it, or name another -o") from error
    except OSError:
        return  # A file system without locks: then two runs at once are not told apart.


def _begun(room: Path, made_of: Mapping[str, str], *, resume: bool) -> Journal:
    begun = Journal(room).find("made of") if resume else None
    if begun is None:
        for path in room.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        journal = Journal(room)
        journal.note("made of", **made_of)
        fsync_directory(room)
        fsync_directory(room.parent)
        return journal
    if other := [what for what, value in made_of.items() if begun.get(what) != value]:
        raise UserError(f"--resume: {room} was begun with another {other[0]}; leave --resume out to begin anew")
    return Journal(room)


def _mapped(path: Path) -> Arrays:
    whole = np.memmap(path, np.uint8, "r")  # one: each keeps a file open
    return {
        fact.name: whole[fact.offset : fact.offset + fact.n_elements].reshape(fact.shape).view(np.ndarray)
        for fact in read_header(path)
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
