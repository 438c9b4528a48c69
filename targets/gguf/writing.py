"""Planned files into a directory: room claimed for all of them, then filled by one pool of threads.

With a journal beside them a run goes on where one before was killed, to the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import TYPE_CHECKING

import numpy as np

from runtime.artifact import FileRecord, record
from runtime.atomic import replacing
from runtime.errors import ModelError
from targets.chunk_journal import DirectoryJournal, partial_of
from targets.gguf.stream import Output, write_tensors
from targets.stream import refuse_full, reserve, write_at

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from targets.base import Progress
    from targets.gguf.files import PlannedFile


def write_files(
    out: Path, files: list[PlannedFile], threads: int, progress: Progress, *, journalled: bool = False,
    importance: Mapping[str, npt.NDArray[np.float32]] | None = None,
) -> dict[str, FileRecord]:  # fmt: skip
    """Write the files into the existing directory `out`; returns their records. importance: see `write_tensors`

    Without a journal a file has its name when it is whole, and a failure leaves nothing. With one what is done stays
    there, and it is for the caller to remove the journal (`targets.chunk_journal.NAME`) or all.
    Raises UserError where the disk is too small, before any work, and ModelError for bad weights.
    """
    journal = DirectoryJournal(out) if journalled else None
    whole = {file.name: journal.is_whole(out / file.name) for file in files} if journal is not None else {}
    left = [file for file in files if whole.get(file.name) is None]
    try:
        with contextlib.ExitStack() as stack:
            outputs = [stack.enter_context(_opened(out / file.name, file, journal)) for file in left]
            refuse_full(out)
            write_tensors(outputs, threads, progress, importance)
        for file in left:
            whole[file.name] = record(out / file.name) if journal is None else journal.finish(out / file.name)
    except OSError as error:
        raise ModelError(f"{out}: cannot be written ({error.strerror}); free space or choose another -o") from error
    return {file.name: found for file in files if (found := whole[file.name]) is not None}


@contextlib.contextmanager
def _opened(path: Path, file: PlannedFile, journal: DirectoryJournal | None) -> Iterator[Output]:
    """A file of its full size with its header written, ready to be filled."""
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(replacing(path)) if journal is None else partial_of(path)
        anew = os.O_TRUNC if journal is None else 0
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | anew, 0o644)
        stack.callback(os.close, descriptor)
        chunks = None
        if journal is not None:
            path.unlink(missing_ok=True)  # not as it was noted
            chunks = journal.file(path, descriptor, hashlib.sha256(file.header).hexdigest(), file.n_bytes)
            stack.callback(chunks.close)
        reserve(descriptor, temporary, file.n_bytes)
        write_at(descriptor, np.frombuffer(file.header, np.uint8), 0)
        yield Output(descriptor, len(file.header), file.tensors, chunks)
