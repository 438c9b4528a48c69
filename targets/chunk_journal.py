"""Which chunks of a file are written already: after a kill or a power cut only the others are written again.

A chunk has a line in the journal once it is written, with the CRC-32 of its bytes. It counts when the file still has
these: after a kill all that was written is there, after a power cut what had reached the disk, and a line may have
reached it before its chunk. So that a power cut costs little too, the file is synced now and then beside the writing.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
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

INTERVALS = 40
"""Syncs of a file at most. One may be under way and two more intervals be written: a power cut costs that, a tenth."""
LEAST_SECONDS = 1.0
"""Between two syncs: what is written in less than that is as soon written again."""

_PIECE = 1 << 20
_sync = getattr(os, "fdatasync", os.fsync)


class DirectoryJournal:
    """The journal of the files of one directory, which one process writes."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / NAME
        self._lines = read_lines(self._path, mend=True)
        self._lock = threading.Lock()

    def note(self, what: str, *, sync: bool = True, **content: Any) -> None:
        """Keep a line; with `sync` it is on the disk when this returns."""
        with self._lock:
            append_line(self._path, {"what": what, **content}, sync=sync)

    def sync(self) -> None:
        """Bring every line to the disk."""
        with self._path.open("rb") as file:
            os.fsync(file.fileno())

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
            if line["what"] != "chunk":
                goes_on, chunks = line == begun, {}
            elif goes_on:
                with contextlib.suppress(KeyError, TypeError, ValueError):
                    chunks[int(line["at"])] = (int(line["bytes"]), int(line["crc"]))
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
        self._interval, self._unsynced, self._last = n_bytes // INTERVALS, 0, time.monotonic()
        self._lock = threading.Lock()
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
        crc = zlib.crc32(data.reshape(-1).view("u1").data)
        self._journal.note("chunk", sync=False, file=self._name, at=position, bytes=data.nbytes, crc=crc)
        with self._lock:
            self._unsynced += data.nbytes
            if self._syncing is not None and (self._syncing.done() or self._unsynced > 2 * self._interval):
                # A disk that does not keep up holds the writing back: it would have to wait for it at the end.
                self._syncing.result()
                self._syncing, self._last = None, time.monotonic()
            due = self._unsynced > self._interval and time.monotonic() - self._last >= LEAST_SECONDS
            if due and self._syncing is None:
                self._unsynced, self._syncing = 0, self._pool.submit(self._sync)

    def close(self) -> None:
        """Wait for what is under way; after this the file may be closed. Raises OSError."""
        try:
            if self._syncing is not None:
                self._syncing.result()
        finally:
            self._pool.shutdown()

    def _sync(self) -> None:
        """The chunks before the lines that name them."""
        _sync(self._descriptor)
        self._journal.sync()


def partial_of(path: Path) -> Path:
    """What a file is called until it is whole."""
    return path.with_name(f".{path.name}.partial")
