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
    from collections.abc import Mapping

    import numpy.typing as npt

    from targets.base import Progress
    from targets.gguf.architectures.base import OutTensor
    from targets.gguf.header import Placed
    from targets.gguf.types import GgmlType

    Floats = npt.NDArray[np.float32]

CHUNK_ELEMENTS = 1 << 19
"""Weights of one chunk: 2 MB as float32, large enough that Python's share of the time is small."""


@dataclass(frozen=True)
class _Chunk:
    """Rows start to stop of a tensor; importance: (experts, columns), (1, columns) without experts."""

    tensor: OutTensor
    placed: Placed
    start: int
    stop: int
    importance: Floats | None = None


def interleave_order(n_rows: int, n_heads: int) -> npt.NDArray[np.intp]:
    """Source row of every output row when each head's two rotary halves become pairs, shape (n_rows,)."""
    half = n_rows // n_heads // 2
    heads = np.arange(n_heads)[:, None, None] * 2 * half
    return (heads + np.arange(half)[None, :, None] + np.arange(2)[None, None, :] * half).reshape(-1)


def write_tensors(
    descriptor: int,
    data_start: int,
    tensors: list[tuple[OutTensor, Placed]],
    threads: int,
    progress: Progress,
    importance: Mapping[str, Floats] | None = None,
) -> None:
    """Fill the data section of an open file. Raises the first error of any chunk (ModelError, OSError).

    importance: what the squared error in each column counts, by tensors' names, (experts, columns)
    """
    known = importance or {}
    total = sum(placed.n_bytes for _, placed in tensors)
    with WeightReader() as reader:
        for tensor, _ in tensors:
            if tensor.source is not None:
                reader.open(tensor.source.file)
        chunks = [chunk for tensor, placed in tensors for chunk in _chunks(tensor, placed, known)]
        run_chunks(
            (partial(_write_chunk, reader, descriptor, data_start, chunk) for chunk in chunks), threads, total, progress
        )


def _chunks(tensor: OutTensor, placed: Placed, importance: Mapping[str, Floats]) -> list[_Chunk]:
    columns = tensor.shape[-1]
    n_rows = int(np.prod(tensor.shape[:-1], dtype=np.int64))
    own = importance.get(tensor.name)
    return [_Chunk(tensor, placed, start, stop, own) for start, stop in row_chunks(n_rows, columns, CHUNK_ELEMENTS)]


def _write_chunk(reader: WeightReader, descriptor: int, data_start: int, chunk: _Chunk) -> int:
    """Bytes written for one chunk."""
    data = _encode(reader, chunk)
    row_bytes = chunk.placed.kind.row_bytes(chunk.tensor.shape[-1])
    return write_at(descriptor, data, data_start + chunk.placed.offset + chunk.start * row_bytes)


def _encode(reader: WeightReader, chunk: _Chunk) -> npt.NDArray[np.uint8]:
    """The bytes of a chunk, shape (rows, bytes of a row). Raises ModelError for values that the type cannot hold."""
    tensor, kind = chunk.tensor, chunk.placed.kind
    if tensor.source is not None and tensor.source.dtype == kind.name and kind.name not in FLOAT_BYTES:
        # decoding and encoding again is not exact; a tensor that has its type already is copied, as llama-quantize does
        wanted, first, last = _source_rows(chunk)
        raw = np.empty((last - first, kind.row_bytes(tensor.shape[-1])), np.uint8)
        reader.read_bytes(tensor.source, first * raw.shape[1], raw.reshape(-1))
        return raw if wanted is None else raw[wanted]
    values = _read(reader, chunk)
    if tensor.plus:
        values = values + np.float32(tensor.plus)
    try:
        return _quantized(values, kind, chunk)
    except OverflowError as error:
        raise ModelError(f"tensor {tensor.name}: {error}; use --quant bf16 or f32") from error


def _quantized(values: Floats, kind: GgmlType, chunk: _Chunk) -> npt.NDArray[np.uint8]:
    """The bytes of a chunk's float32 rows, each expert's by its own importance."""
    if chunk.importance is None:
        return quantize_rows(values, kind)
    rows = int(np.prod(chunk.tensor.shape[:-1], dtype=np.int64)) // len(chunk.importance)
    pieces = []
    for expert in range(chunk.start // rows, -(-chunk.stop // rows)):
        first, last = max(expert * rows, chunk.start), min((expert + 1) * rows, chunk.stop)
        own = values[first - chunk.start : last - chunk.start]
        pieces.append(quantize_rows(own, kind, chunk.importance[expert]))
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _read(reader: WeightReader, chunk: _Chunk) -> npt.NDArray[np.float32]:
    """Float32 rows of a chunk, reordered where the tensor asks for it."""
    tensor = chunk.tensor
    if tensor.source is None:
        return np.asarray(tensor.values, np.float32).reshape(-1, tensor.shape[-1])[chunk.start : chunk.stop]
    if not tensor.interleave_heads:
        return reader.read_rows(tensor.source, chunk.start, chunk.stop)
    if len(tensor.shape) == 1:
        # a bias is one row; its elements move as the rows of its weight do
        return reader.read_rows(tensor.source, 0, 1)[:, interleave_order(tensor.shape[0], tensor.interleave_heads)]
    wanted, first, last = _source_rows(chunk)
    return reader.read_rows(tensor.source, first, last)[wanted]


def _source_rows(chunk: _Chunk) -> tuple[npt.NDArray[np.intp] | None, int, int]:
    """Which of the source's rows first to last a chunk holds, in its order; None for all of them as they stand."""
    if not chunk.tensor.interleave_heads:
        return None, chunk.start, chunk.stop
    order = interleave_order(chunk.tensor.shape[0], chunk.tensor.interleave_heads)[chunk.start : chunk.stop]
    first = int(order.min())
    return order - first, first, int(order.max()) + 1
