"""What another machine keeps of the artifacts that were sent to it: a directory for each, its files under their names.

A file that is on its way is NAME.part, as long as it has come; it goes on there. A file that came whole and had the
right hash is listed in `.whole.json` with its size and time, so that it need not be read again to know that.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, BinaryIO

from runtime.artifact import sha256_of
from runtime.atomic import fsync_directory, write_json
from runtime.errors import HostError
from runtime.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from runtime.artifact import FileRecord

WHOLE, LOCK = ".whole.json", ".lock"
SPARE = 16 << 20
"""Bytes that stay free beside what is sent."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Store:
    """The files of one artifact. root: the directory of all of them; digest: SHA-256 that names this one"""

    root: Path
    digest: str

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.digest):
            raise HostError(f"'{self.digest}' is not a SHA-256")

    @property
    def directory(self) -> Path:
        """Of the artifact."""
        return self.root / self.digest[:32]

    def path(self, name: str) -> Path:
        """Of one of its files. Raises HostError for a name that leads out of the directory."""
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or parts in ((WHOLE,), (LOCK,)):
            raise HostError(f"'{name}' is not the name of an artifact's file")
        return self.directory.joinpath(*parts)

    def lock(self) -> IO[bytes]:
        """A file that is open as long as this process uses the artifact. Raises HostError where another one does."""
        import fcntl

        self.directory.mkdir(parents=True, exist_ok=True)
        file = (self.directory / LOCK).open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise HostError(
                "another packlight sends or measures this artifact there; one whose connection was lost while it sent "
                "gives up within a minute"
            ) from error
        except OSError:
            pass  # a filesystem without locks
        return file

    def refuse_no_room(self, files: Mapping[str, FileRecord]) -> None:
        """Raise HostError where what is missing of an artifact's files has no room."""
        missing = sum(one.bytes - min(one.bytes, self._came(name)) for name, one in files.items())
        free = shutil.disk_usage(self.directory).free
        if missing and missing + SPARE > free:
            raise HostError(
                f"{self.root}: {format_bytes(free)} free, {format_bytes(missing + SPARE)} needed; "
                "free some, or name another directory with --remote-dir"
            )

    def has(self, name: str, n_bytes: int, sha256: str) -> bool:
        """Whether the file is here, whole; one that was touched since it came is read again."""
        path = self.path(name)
        try:
            facts = path.stat()
        except OSError:
            return False
        if self._whole().get(name) == [sha256, facts.st_size, facts.st_mtime_ns] and facts.st_size == n_bytes:
            return True
        if facts.st_size != n_bytes or sha256_of(path) != sha256:
            path.unlink()  # so that it takes no room beside what is sent in its place
            return False
        self._note(name, sha256)
        return True

    @contextlib.contextmanager
    def receiving(self, name: str, n_bytes: int) -> Iterator[BinaryIO]:
        """The file NAME.part, open behind what has come of it already; it is on the disk when this ends."""
        path = self._part(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            if file.tell() > n_bytes:
                file.truncate(0)
                file.seek(0, os.SEEK_END)
            try:
                yield file
            finally:
                file.flush()
                os.fsync(file.fileno())

    def finish(self, name: str, sha256: str) -> bool:
        """Give the received file its name; False where its bytes are others: it is then removed, to be sent anew."""
        part, path = self._part(name), self.path(name)
        if sha256_of(part) != sha256:
            part.unlink()
            return False
        part.replace(path)
        fsync_directory(path.parent)
        self._note(name, sha256)
        return True

    def forget(self) -> None:
        """Remove the artifact."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _part(self, name: str) -> Path:
        path = self.path(name)
        return path.with_name(f"{path.name}.part")

    def _came(self, name: str) -> int:
        """Bytes of a file that are here already, whole or on their way."""
        sizes = [path.stat().st_size for path in (self.path(name), self._part(name)) if path.is_file()]
        return max(sizes, default=0)

    def _whole(self) -> dict[str, list[str | int]]:
        try:
            found = json.loads((self.directory / WHOLE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _note(self, name: str, sha256: str) -> None:
        facts = self.path(name).stat()
        write_json(self.directory / WHOLE, self._whole() | {name: [sha256, facts.st_size, facts.st_mtime_ns]})
