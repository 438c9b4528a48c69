"""Weights from disk as float32 rows, a chunk at a time, by `pread`: nothing is mapped, nothing is kept.

Mapping a checkpoint would be as fast, but every page that was touched counts as resident memory of this
process until the kernel takes it back; reading into a small buffer keeps peak memory independent of the model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import threading
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import ModelError
from targets import few_bits
from targets.grouped import read_matrix
from targets.scaled import EIGHT_BITS, FOUR_BITS, decoded, scale_rows, spread

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

    from targets.facts import Scaling, TensorFact
    from targets.grouped import Matrix

HEADERS_ONLY = ".headers-only"
"""Of a directory that has it the files hold headers, and holes in place of weights."""
FLOAT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
"""Bytes of one element of the float types that are read without any decoding table."""


class WeightReader:
    """Reads rows of stored tensors; opens each file once.

    Safe to use from several threads once `open` was called for every file, or `open_all` for every tensor.
    """

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}
        self._held = threading.local()

    def __enter__(self) -> WeightReader:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._files.values():
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._files.clear()

    def open(self, path: Path) -> None:
        """Open `path` now, so that later reads from several threads find it open. Raises ModelError."""
        if path in self._files:
            return
        if (path.parent / HEADERS_ONLY).exists():
            raise ModelError(f"{path}: its weights are needed, and were not downloaded; name a directory that has them")
        try:
            self._files[path] = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ModelError(
                f"{path}: cannot be read ({error.strerror}); check the file and its permissions"
            ) from error

    def open_all(self, fact: TensorFact) -> None:
        """Open every file that the tensor is read from, as `open` does."""
        for path in fact.files:
            self.open(path)

    def read_bytes(self, fact: TensorFact, offset: int, into: npt.NDArray[np.uint8]) -> None:
        """Fill `into` with the tensor's bytes from `offset` on. Raises ModelError where the file is shorter."""
        self.open(fact.file)
        view = memoryview(into.data)
        position = fact.offset + offset
        while view:
            try:
                got = os.preadv(self._files[fact.file], [view], position)
            except OSError as error:
                raise ModelError(f"{fact.file}: cannot be read ({error.strerror}); check the disk") from error
            if got <= 0:
                raise ModelError(f"{fact.file}: ends inside tensor {fact.name}; download the file again")
            view, position = view[got:], position + got

    def read_rows(self, fact: TensorFact, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows start..stop of a tensor as float32, shape (stop - start, last dimension).

        A tensor of more than two dimensions is read as the matrix of its last one. Raises ModelError for
        an element type that cannot be read, for a short file, and for NaN or infinite values.
        """
        if fact.stored is not None:
            return np.ascontiguousarray(self.read_rows(fact.stored, start, stop)[:, : fact.shape[-1]])
        columns = fact.shape[-1] if fact.shape else 1
        if fact.grouping is not None:
            values = self._matrix(fact).rows(start, stop)
        elif fact.strides is not None and fact.strides[1] != 1:
            values = self._read_strided(fact, fact.strides, start, stop)
        else:
            values = _to_float32(self.read_raw(fact, start, stop).reshape(-1), fact).reshape(stop - start, columns)
        if fact.scaling is not None:
            values *= self._scales(fact.scaling, (start, stop), columns)
        if not np.isfinite(values).all():
            row = start + int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
            raise ModelError(
                f"{fact.file}: tensor {fact.name} holds NaN or infinite values (first in row {row}); "
                "the checkpoint is damaged or overflowed in training, use another one"
            )
        return values

    def read_chunks(self, fact: TensorFact, chunk_elements: int) -> Iterator[npt.NDArray[np.float32]]:
        """All rows of a tensor, about so many elements at a time, (rows, columns), C-contiguous. As `read_rows`."""
        columns = fact.shape[-1] if fact.shape else 1
        for start, stop in row_chunks(fact.n_elements // columns, columns, chunk_elements):
            yield np.ascontiguousarray(self.read_rows(fact, start, stop), np.float32)

    def read_raw(self, fact: TensorFact, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Rows start..stop of a tensor as they are stored, (stop - start, bytes of a row).

        Its columns lie one behind the other; its rows may have others between them. Raises ModelError for a short file.
        """
        columns = fact.shape[-1] if fact.shape else 1
        row = fact.n_bytes // (fact.n_elements // columns)
        step = row if fact.strides is None else fact.strides[0] * fact.n_bytes // fact.n_elements
        raw = np.empty((stop - start, step), np.uint8)
        # nothing may lie behind the last row
        self.read_bytes(fact, start * step, raw.reshape(-1)[: (stop - start - 1) * step + row])
        return raw if step == row else np.ascontiguousarray(raw[:, :row])

    def _matrix(self, fact: TensorFact) -> Matrix:
        """One that can be read as a whole only; the last one stays with its thread, which reads on in it."""
        held: tuple[TensorFact, Matrix] | None = getattr(self._held, "matrix", None)
        if held is None or held[0] != fact:
            self._held.matrix = None  # before the next is there
            held = fact, read_matrix(fact, self._all_bytes, lambda one: self.read_rows(one, 0, one.shape[0]))
            self._held.matrix = held
        return held[1]

    def _all_bytes(self, fact: TensorFact) -> npt.NDArray[np.uint8]:
        raw = np.empty(fact.n_bytes, np.uint8)
        self.read_bytes(fact, 0, raw)
        return raw

    def _scales(self, scaling: Scaling, rows: tuple[int, int], columns: int) -> npt.NDArray[np.float32]:
        """What the codes of these rows are multiplied by, (rows, columns) or (rows, 1)."""
        each = math.prod(scaling.fact.shape[1:])
        first, last = scale_rows(scaling, rows)
        matrix = dataclasses.replace(scaling.fact, shape=(scaling.fact.n_elements // each, each))
        raw = self.read_raw(matrix, first, last).reshape(-1)
        return spread(_to_float32(raw, matrix).reshape(last - first, each), scaling, rows, columns)

    def _read_strided(
        self, fact: TensorFact, strides: tuple[int, int], start: int, stop: int
    ) -> npt.NDArray[np.float32]:
        """Rows start..stop of a matrix of floats with strides, shape (stop - start, columns).

        Read in runs along the dimension that lies closer together, so that no more than its gaps is read in vain.
        """
        n_rows, columns = stop - start, fact.shape[-1]
        by_row = strides[1] < strides[0]
        (n_runs, length), (run, step) = ((n_rows, columns), strides) if by_row else ((columns, n_rows), strides[::-1])
        item = FLOAT_BYTES[fact.dtype]
        raw = np.empty((n_runs, ((length - 1) * step + 1) * item), np.uint8)
        for at in range(n_runs):
            self.read_bytes(fact, (start * strides[0] + at * run) * item, raw[at])
        values = _to_float32(raw.reshape(-1), fact).reshape(n_runs, -1)[:, ::step]
        return np.ascontiguousarray(values if by_row else values.T)


def _to_float32(raw: npt.NDArray[np.uint8], fact: TensorFact) -> npt.NDArray[np.float32]:
    """Decode little-endian stored bytes to a flat float32 array."""
    if fact.dtype == "F32":
        return raw.view("<f4").astype(np.float32, copy=False)
    if fact.dtype == "F16":
        with np.errstate(invalid="ignore"):
            return raw.view("<f2").astype(np.float32)
    if fact.dtype == "BF16":
        # bfloat16 is the upper half of a float32
        wide = raw.view("<u2").astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    if fact.dtype in (*EIGHT_BITS, *FOUR_BITS):
        return decoded(fact.dtype, raw)
    return _dequantize_ggml(raw, fact)


def _dequantize_ggml(raw: npt.NDArray[np.uint8], fact: TensorFact) -> npt.NDArray[np.float32]:
    """Decode blocks of a GGUF source, with gguf-py's own tables where it has some."""
    if fact.dtype in few_bits.LEVELS:
        return few_bits.decoded(fact.dtype, raw)
    import gguf

    try:
        values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[fact.dtype])
    except (KeyError, NotImplementedError) as error:
        raise ModelError(f"{fact.file}: tensor {fact.name} has type {fact.dtype}, which cannot be read") from error
    return np.ascontiguousarray(values, dtype=np.float32).reshape(-1)


def row_chunks(n_rows: int, row_elements: int, chunk_elements: int) -> Iterator[tuple[int, int]]:
    """Cut n_rows into (start, stop) pieces of about `chunk_elements` elements, at least one row each."""
    step = max(1, chunk_elements // max(1, row_elements))
    for start in range(0, n_rows, step):
        yield start, min(start + step, n_rows)
