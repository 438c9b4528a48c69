"""What every writer of large files does: claim the room first, then fill it in chunks on a pool of threads."""

from __future__ import annotations

import concurrent.futures
import os
from typing import TYPE_CHECKING

from runtime.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from targets.base import Progress


def reserve(descriptor: int, path: Path, n_bytes: int) -> None:
    """Claim the whole file now, so that a full disk is known before the work and not after it. Raises UserError."""
    try:
        if hasattr(os, "posix_fallocate") and n_bytes:
            os.posix_fallocate(descriptor, 0, n_bytes)
        else:
            os.truncate(descriptor, n_bytes)
    except OSError as error:
        raise UserError(
            f"{path.parent}: no room for a file of {n_bytes} bytes ({error.strerror}); free space or choose another -o"
        ) from error


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
