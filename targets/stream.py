"""What every writer of large files does: claim the room first, then fill it in chunks on a pool of threads."""

from __future__ import annotations

import concurrent.futures
import errno
import os
from typing import TYPE_CHECKING

from runtime.errors import UserError
from runtime.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from targets.base import Progress


DOCUMENTS_BYTES = 4 << 20
"""What is written after the weights, with room to spare: manifest, report, page, card, journal."""
_CANNOT_CLAIM = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""How a file system says that it does not know how to claim room."""


def reserve(descriptor: int, path: Path, n_bytes: int) -> None:
    """Claim the whole file now, so that a full disk is known before the work and not after it. Raises UserError."""
    try:
        if not _claimed(descriptor, n_bytes):
            free = os.fstatvfs(descriptor)
            if free.f_bavail * free.f_frsize < n_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.truncate(descriptor, n_bytes)
    except OSError as error:
        raise UserError(
            f"{path.parent}: no room for a file of {n_bytes} bytes ({error.strerror}); free space or choose another -o"
        ) from error


def _claimed(descriptor: int, n_bytes: int) -> bool:
    """Whether the file system has set the room aside. Raises OSError where it has none."""
    if not hasattr(os, "posix_fallocate") or not n_bytes:
        return False
    try:
        os.posix_fallocate(descriptor, 0, n_bytes)
    except OSError as error:
        if error.errno in _CANNOT_CLAIM:
            return False
        raise
    return True


def refuse_full(directory: Path) -> None:
    """Raise UserError where, with all weights' room claimed, too little is left for what is written after them."""
    free = os.statvfs(directory)
    if free.f_bavail * free.f_frsize < DOCUMENTS_BYTES:
        raise UserError(
            f"{directory}: the weights fill the disk, and nothing is left for the report and the manifest; free "
            f"{format_bytes(DOCUMENTS_BYTES)} or choose another -o"
        )


def write_at(descriptor: int, data: npt.NDArray[np.generic], position: int) -> int:
    """Write the bytes of a C-contiguous array at `position`; returns how many they are."""
    view = memoryview(data.reshape(-1).view("u1").data)
    while view:
        written = os.pwrite(descriptor, view, position)
        view, position = view[written:], position + written
    return data.nbytes


def run_chunks(
    chunks: Iterable[Callable[[], int]], threads: int, total: int, progress: Progress, what: str = "quantize"
) -> None:
    """Call every chunk on a pool; each returns the bytes that it wrote, of `total`. Raises the first error of any."""
    done = 0
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        pending = [pool.submit(chunk) for chunk in chunks]
        try:
            for future in concurrent.futures.as_completed(pending):
                done += future.result()
                progress(what, done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
