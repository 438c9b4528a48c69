"""Weights from the checkpoint to their place in the file, in row chunks, on a pool of threads.

Every chunk is read, decoded, transformed, encoded by ggml and written with `pwrite` by one thread; no chunk waits for
another. Peak memory is a few buffers of CHUNK_ELEMENTS for each thread, whatever the size of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import ModelError
from targets.gguf.kernels import quantize_rows
from targets.stream import run_chunks, write_at
from targets.weights import FLOAT_BYTES, WeightReader, row_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from targets.base import Progress
    from targets.facts import TensorFact
    from targets.gguf.architectures.base import OutTensor
    from targets.gguf.header import Placed

CHUNK_ELEMENTS = 1 << 19
"""Weights of one chunk: 2 MB as float32, large enough that Python's share of the time is small."""


@dataclass(frozen=True)
class _Chunk:
    tensor: OutTensor
    placed: Placed
    start: int
    stop: int


def interleave_order(n_rows: int, n_heads: int) -> npt.NDArray[np.intp]:
    """Source row of every output row when each head's two rotary halves become pairs, shape (n_rows,)."""
    half = n_rows // n_heads // 2
    heads = np.arange(n_heads)[:, None, None] * 2 * half
    return (heads + np.arange(half)[None, :, None] + np.arange(2)[None, None, :] * half).reshape(-1)


def write_tensors(
    descriptor: int, data_start: int, tensors: list[tuple[OutTensor, Placed]], threads: int, progress: Progress
) -> None:
    """Fill the data section of an open file. Raises the first error of any chunk (ModelError, OSError)."""
    total = sum(placed.n_bytes for _, placed in tensors)
    with WeightReader() as reader:
        for tensor, _ in tensors:
            for fact in tensor.sources:
                reader.open(fact.file)
        chunks = [chunk for tensor, placed in tensors for chunk in _chunks(tensor, placed)]
        run_chunks(
            (partial(_write_chunk, reader, descriptor, data_start, chunk) for chunk in chunks), threads, total, progress
        )


def _chunks(tensor: OutTensor, placed: Placed) -> list[_Chunk]:
    columns = tensor.shape[-1]
    n_rows = int(np.prod(tensor.shape[:-1], dtype=np.int64))
    return [_Chunk(tensor, placed, start, stop) for start, stop in row_chunks(n_rows, columns, CHUNK_ELEMENTS)]


def _write_chunk(reader: WeightReader, descriptor: int, data_start: int, chunk: _Chunk) -> int:
    """Bytes written for one chunk."""
    data = _encode(reader, chunk)
    row_bytes = chunk.placed.kind.row_bytes(chunk.tensor.shape[-1])
    return write_at(descriptor, data, data_start + chunk.placed.offset + chunk.start * row_bytes)


def _encode(reader: WeightReader, chunk: _Chunk) -> npt.NDArray[np.uint8]:
    """The bytes of a chunk, shape (rows, bytes of a row). Raises ModelError for values that the type cannot hold."""
    tensor, kind = chunk.tensor, chunk.placed.kind
    if kind.name not in FLOAT_BYTES and {fact.dtype for fact in tensor.sources} == {kind.name}:
        # decoding and encoding again is not exact; a tensor that has its type already is copied, as llama-quantize does
        return _copy(reader, chunk)
    values = _read(reader, chunk)
    if tensor.function is not None:
        values = tensor.function(values)
    if tensor.plus:
        values = values + np.float32(tensor.plus)
    try:
        return quantize_rows(values, kind)
    except OverflowError as error:
        raise ModelError(f"tensor {tensor.name}: {error}; use --quant bf16 or f32") from error


def _copy(reader: WeightReader, chunk: _Chunk) -> npt.NDArray[np.uint8]:
    """The bytes of a chunk whose source has its type already."""
    row_bytes = chunk.placed.kind.row_bytes(chunk.tensor.shape[-1])
    wanted, first, last = _source_rows(chunk)
    raw = np.empty((last - first, row_bytes), np.uint8)
    for fact, start, stop, at in _runs(chunk.tensor, first, last):
        reader.read_bytes(fact, start * row_bytes, raw[at : at + stop - start].reshape(-1))
    return raw if wanted is None else raw[wanted]


def _read(reader: WeightReader, chunk: _Chunk) -> npt.NDArray[np.float32]:
    """Float32 rows of a chunk, reordered where the tensor asks for it."""
    tensor = chunk.tensor
    if not tensor.sources:
        return np.asarray(tensor.values, np.float32).reshape(-1, tensor.shape[-1])[chunk.start : chunk.stop]
    if len(tensor.shape) == 1:
        whole = [reader.read_rows(fact, 0, fact.n_elements // fact.shape[-1]).reshape(-1) for fact in tensor.sources]
        values = np.concatenate(whole) if len(whole) > 1 else whole[0]
        if tensor.interleave_heads:  # a bias is one row; its elements move as the rows of its weight do
            values = values[interleave_order(tensor.shape[0], tensor.interleave_heads)]
        return values[None]
    wanted, first, last = _source_rows(chunk)
    read = [reader.read_rows(fact, start, stop) for fact, start, stop, _ in _runs(tensor, first, last)]
    values = np.concatenate(read) if len(read) > 1 else read[0]
    return values if wanted is None else values[wanted]


def _runs(tensor: OutTensor, first: int, last: int) -> Iterator[tuple[TensorFact, int, int, int]]:
    """The sources that rows first to last of a tensor lie in: each with its own rows, and where they go."""
    begin = 0
    for fact in tensor.sources:
        end = begin + fact.n_elements // tensor.shape[-1]
        start, stop = max(first, begin), min(last, end)
        if start < stop:
            yield fact, start - begin, stop - begin, start - first
        begin = end


def _source_rows(chunk: _Chunk) -> tuple[npt.NDArray[np.intp] | None, int, int]:
    """Which of the source's rows first to last a chunk holds, in its order; None for all of them as they stand."""
    if not chunk.tensor.interleave_heads:
        return None, chunk.start, chunk.stop
    order = interleave_order(chunk.tensor.shape[0], chunk.tensor.interleave_heads)[chunk.start : chunk.stop]
    first = int(order.min())
    return order - first, first, int(order.max()) + 1
