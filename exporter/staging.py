"""An output directory that appears whole or not at all.

Everything is written into a hidden sibling of OUT, which is renamed at the end. Its maker holds a lock on it, so a
later run can tell the leftovers of a killed process from the work of a living one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from typing import TYPE_CHECKING

from exporter.resume import is_finished, link_finished, locked, note_request, taken_over, tidy
from runtime.artifact import MANIFEST, read_manifest
from runtime.atomic import fsync_directory
from runtime.errors import ArtifactError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SUFFIX = ".partial"
DOCUMENTS = ("README.md", "report.json", "report.html", "Modelfile")
"""What the report adds beside an artifact's own files."""


def refuse_occupied(out: Path, *, overwrite: bool) -> None:
    """Raise UserError unless OUT is free, or `overwrite` is set and OUT holds an export and nothing else."""
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise UserError(f"{out}: is a file; name a directory for -o")
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{out}: is not empty; name another directory, or add --overwrite to replace an earlier export")
    try:
        ours = {MANIFEST, *read_manifest(out).files, *DOCUMENTS}
    except ArtifactError as error:
        raise UserError(f"{out}: holds no packlight export, so --overwrite leaves it alone; name another") from error
    present = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_symlink() or not path.is_dir()}
    if foreign := sorted(present - ours):
        raise UserError(f"{out}: holds '{foreign[0]}', which packlight did not write; move it away or name another")


@contextlib.contextmanager
def staging(out: Path, request: Mapping[str, str] | None = None, *, resume: bool = False) -> Iterator[Path]:
    """Yield a directory beside OUT; remove it at the end unless `publish` has renamed it.

    request: what the export is made of, noted in the directory for a later run with `resume`, which takes over the
        directory of a dead process that noted the same, with the weights that are in it. Else it is empty.
    Parents of OUT are made, and removed again where nothing came into them. Leftovers of dead processes for the same
    OUT are removed first. An interrupt of a run with `resume` leaves the directory.
    Raises UserError where there is something to go on with and it was begun with another request.
    """
    made = [parent for parent in (out.parent, *out.parent.parents) if not parent.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _room(out, request, resume=resume) as room:
            yield room
    finally:
        for parent in made:
            with contextlib.suppress(OSError):  # holds what was published
                parent.rmdir()


@contextlib.contextmanager
def _room(out: Path, request: Mapping[str, str] | None, *, resume: bool) -> Iterator[Path]:
    room = out.parent / f".{out.name}.{os.getpid()}{SUFFIX}"
    lock = None
    if request is not None and resume and (found := taken_over(_ours(out), request)) is not None:
        left, lock = found
        room = _begun_again(left, room, request)
    remove_stale(out)
    if lock is None:
        room.mkdir()
        lock = os.open(room, os.O_RDONLY)
        # A file system without locks loses only the cleaning up after a kill.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if request is not None:
            note_request(room, request)
            if resume and is_finished(out, request):
                link_finished(out, room)
    kept = False
    try:
        yield room
    except (KeyboardInterrupt, SystemExit) as error:
        kept = resume and request is not None and room.exists()
        if kept and isinstance(error, KeyboardInterrupt):
            said = f"{room} holds what is done, the same command goes on there"
            raise KeyboardInterrupt(said) from error
        raise
    finally:
        if not kept:
            shutil.rmtree(room, ignore_errors=True)
        os.close(lock)


def _begun_again(left: Path, room: Path, request: Mapping[str, str]) -> Path:
    """A dead process's directory, under our name where that is free, with nothing in it but what is gone on with."""
    if not room.exists():
        left = left.rename(room)
    tidy(left)
    note_request(left, request)
    return left


def publish(room: Path, out: Path) -> None:
    """Give a finished staging directory its final name, durably. What OUT held before is deleted after that."""
    for path in [*room.rglob("*"), room]:
        if path.is_dir():
            fsync_directory(path)
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
    previous = out.parent / f".{out.name}.{os.getpid()}.previous{SUFFIX}"
    if out.exists():
        out.rename(previous)
    try:
        room.rename(out)
    except OSError:
        if previous.exists():
            previous.rename(out)
        raise
    fsync_directory(out.parent)
    shutil.rmtree(previous, ignore_errors=True)


def remove_stale(out: Path) -> None:
    """Delete staging directories of OUT whose makers are dead: nobody holds their lock.

    A process that was killed between the two renames of `publish` left OUT's earlier content under another name:
    that is put back.
    """
    for path in _ours(out, ".previous"):
        if not os.path.lexists(out):
            path.rename(out)
    for path in [*_ours(out), *_ours(out, ".previous")]:
        if (lock := locked(path)) is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _ours(out: Path, kind: str = "") -> list[Path]:
    """The staging directories of OUT, of dead processes and of living ones; or of a kind, what `publish` puts aside."""
    ours = re.compile(rf"\.{re.escape(out.name)}\.\d+{re.escape(kind + SUFFIX)}")
    return [
        path for path in out.parent.iterdir() if ours.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    ]
