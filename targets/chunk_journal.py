"""Which chunks of a file are on the disk for certain: after a kill or a power cut only the others are written again.

A chunk is named in the journal once the file was synced behind it, with the CRC-32 of its bytes; it counts when the
file still has these. What a kill may cost is what was written since the last line, at most about a tenth of the file.
"""

from __future__ import annotations

import contextlib
import os
import threading
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from runtime.artifact import FileRecord, record
from runtime.atomic import fsync_directory
from runtime.lines import append_line, read_lines

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

NAME = ".chunks.jsonl"
"""The journal, beside the files that it is about."""

INTERVALS = 24
"""Syncs of a file. While one goes on as much again may be written: at most two of these parts are lost."""
LEAST_INTERVAL = 2 << 20
"""Bytes; a file that is soon written is not worth a sync for every chunk."""

_PIECE = 1 << 20
_sync = getattr(os, "fdatasync", os.fsync)


class DirectoryJournal:
    """The journal of the files of one directory, which one process writes."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / NAME
        self._lines = read_lines(self._path, mend=True)
        self._lock = threading.Lock()

    def note(self, what: str, **content: Any) -> None:
        """Keep a line; it is on the disk when this returns."""
        with self._lock:
            append_line(self._path, {"what": what, **content})

    def is_whole(self, path: Path) -> FileRecord | None:
        """The record of a file that a run before has finished, where it still is as it was; else None."""
        lines = [line for line in self._lines if line.get("file") == path.name]
        if not lines or lines[-1]["what"] != "whole":
            return None
        temporary = partial_of(path)
        if temporary.exists() and not path.exists():  # killed between the line and the file's own name
            temporary.replace(path)
        try:
            known = FileRecord(lines[-1]["bytes"], lines[-1]["sha256"])
            return known if path.is_file() and record(path) == known else None
        except (KeyError, OSError):
            return None

    def finish(self, path: Path) -> FileRecord:
        """Sync a file, note that it is whole, and give it its name; returns its record."""
        temporary = partial_of(path)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        found = record(temporary)
        self.note_whole(path.name, found)
        temporary.replace(path)
        fsync_directory(path.parent)
        return found

    def note_whole(self, name: str, found: FileRecord) -> None:
        """Note that a file is whole, and what it has to be like."""
        self.note("whole", file=name, bytes=found.bytes, sha256=found.sha256)

    def file(self, path: Path, descriptor: int, made_of: str, n_bytes: int) -> FileJournal:
        """That of a file which is open for writing.

        made_of: decides the bytes of every chunk, as far as it is known here; n_bytes: of the whole file
        Chunks that were noted for another one, or for a file that is not there any more, are forgotten, and the file is
        empty then.
        """
        chunks: dict[int, tuple[int, int]] = {}
        begun: dict[str, Any] = {"what": "begun", "file": path.name, "made_of": made_of, "bytes": n_bytes}
        goes_on = False
        for line in self._lines:
            if line.get("file") != path.name:
                continue
            if line["what"] == "chunks" and goes_on:
                with contextlib.suppress(KeyError, TypeError, ValueError):
                    chunks |= {int(at): (int(size), int(crc)) for at, size, crc in line["chunks"]}
            elif line["what"] != "chunks":
                goes_on, chunks = line == begun, {}
        if os.fstat(descriptor).st_size != n_bytes or not goes_on:
            os.truncate(descriptor, 0)  # what lies between tensors is zero again
            self.note(**begun)
            chunks = {}
        return FileJournal(self, path.name, descriptor, n_bytes, chunks)


class FileJournal:
    """Of one open file. Chunks may be told of from several threads."""

    def __init__(
        self, journal: DirectoryJournal, name: str, descriptor: int, n_bytes: int, chunks: dict[int, tuple[int, int]]
    ) -> None:
        self._journal, self._name, self._descriptor, self._chunks = journal, name, descriptor, chunks
        self._interval = max(n_bytes // INTERVALS, LEAST_INTERVAL)
        self._lock = threading.Lock()
        self._waiting: list[tuple[int, int, int]] = []
        self._waiting_bytes = 0
        self._pool = ThreadPoolExecutor(1)
        self._syncing: Future[None] | None = None

    def knows(self, position: int, n_bytes: int) -> bool:
        """Whether a run before has written so many bytes there."""
        return self._chunks.get(position, (0, 0))[0] == n_bytes > 0

    def holds(self, position: int, n_bytes: int) -> bool:
        """Whether the file still has what was written there. Raises OSError."""
        crc, end = 0, position + n_bytes
        for start in range(position, end, _PIECE):
            piece = os.pread(self._descriptor, min(_PIECE, end - start), start)
            crc = zlib.crc32(piece, crc)
        return self._chunks.get(position) == (n_bytes, crc)

    def wrote(self, position: int, data: npt.NDArray[np.generic]) -> None:
        """A chunk was written to the file, C-contiguous. Raises OSError where the disk failed meanwhile."""
        entry = (position, data.nbytes, zlib.crc32(data.reshape(-1).view("u1").data))
        with self._lock:
            self._waiting.append(entry)
            self._waiting_bytes += data.nbytes
            if self._waiting_bytes >= self._interval:
                self._sync_waiting()

    def close(self) -> None:
        """Note what was written to the end; after this the file may be closed. Raises OSError."""
        try:
            with self._lock:
                self._sync_waiting()
            if self._syncing is not None:
                self._syncing.result()
        finally:
            self._pool.shutdown()

    def _sync_waiting(self) -> None:
        """Beside the writing; where the disk does not keep up, the writing waits, so that little can be lost."""
        if self._syncing is not None:
            self._syncing.result()
        taken, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if taken:
            self._syncing = self._pool.submit(self._note, taken)

    def _note(self, chunks: list[tuple[int, int, int]]) -> None:
        _sync(self._descriptor)
        self._journal.note("chunks", file=self._name, chunks=chunks)


def partial_of(path: Path) -> Path:
    """What a file is called until it is whole."""
    return path.with_name(f".{path.name}.partial")
