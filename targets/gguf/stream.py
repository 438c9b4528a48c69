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
from targets import mxfp4
from targets.gguf.kernels import quantize_rows
from targets.stream import run_chunks, write_at
from targets.weights import FLOAT_BYTES, WeightReader, row_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

    from targets.base import Progress
    from targets.chunk_journal import FileJournal
    from targets.facts import TensorFact
    from targets.gguf.architectures.base import OutTensor
    from targets.gguf.header import Placed
    from targets.gguf.types import GgmlType

    Floats = npt.NDArray[np.float32]

CHUNK_ELEMENTS = 1 << 19
"""Weights of one chunk: 2 MB as float32, large enough that Python's share of the time is small."""


@dataclass(frozen=True)
class Output:
    """An open file of its full size, its header written.

    data_start: where its data section begins; tensors: what to write and where in that section
    journal: is told of every chunk, and knows those of a run before
    """

    descriptor: int
    data_start: int
    tensors: list[tuple[OutTensor, Placed]]
    journal: FileJournal | None = None


@dataclass(frozen=True)
class _Chunk:
    """Rows start to stop of a tensor; importance: (experts, columns), (1, columns) without experts."""

    output: Output
    tensor: OutTensor
    placed: Placed
    start: int
    stop: int
    importance: Floats | None = None

    @property
    def position(self) -> int:
        """Of its first byte in the file."""
        row_bytes = self.placed.kind.row_bytes(self.tensor.shape[-1])
        return self.output.data_start + self.placed.offset + self.start * row_bytes

    @property
    def n_bytes(self) -> int:
        """Of its rows as they are stored."""
        return (self.stop - self.start) * self.placed.kind.row_bytes(self.tensor.shape[-1])


def interleave_order(n_rows: int, n_heads: int) -> npt.NDArray[np.intp]:
    """Source row of every output row when each head's two rotary halves become pairs, shape (n_rows,)."""
    half = n_rows // n_heads // 2
    heads = np.arange(n_heads)[:, None, None] * 2 * half
    return (heads + np.arange(half)[None, :, None] + np.arange(2)[None, None, :] * half).reshape(-1)


def write_tensors(
    outputs: list[Output], threads: int, progress: Progress, importance: Mapping[str, Floats] | None = None
) -> None:
    """Fill the data sections of open files. Raises the first error of any chunk (ModelError, OSError).

    importance: what the squared error in each column counts, by tensors' names, (experts, columns)
    """
    known = importance or {}
    with WeightReader() as reader:
        for output in outputs:
            for tensor, _ in output.tensors:
                for fact in tensor.sources:
                    reader.open_all(fact)
        chunks = [chunk for output in outputs for tensor, placed in output.tensors
                  for chunk in _chunks(output, tensor, placed, known)]  # fmt: skip
        chunks = _not_yet_written(chunks, threads, progress)
        total = sum(chunk.n_bytes for chunk in chunks)
        run_chunks((partial(_write_chunk, reader, chunk) for chunk in chunks), threads, total, progress)


def _not_yet_written(chunks: list[_Chunk], threads: int, progress: Progress) -> list[_Chunk]:
    """The chunks that no run before has written, or whose bytes are not those any more, in their order."""
    known = [c for c in chunks if c.output.journal is not None and c.output.journal.knows(c.position, c.n_bytes)]
    if not known:
        return chunks
    kept: set[int] = set()

    def check(chunk: _Chunk) -> int:
        if chunk.output.journal is not None and chunk.output.journal.holds(chunk.position, chunk.n_bytes):
            kept.add(id(chunk))
        return chunk.n_bytes

    total = sum(chunk.n_bytes for chunk in known)
    run_chunks((partial(check, chunk) for chunk in known), threads, total, progress, "resume")
    return [chunk for chunk in chunks if id(chunk) not in kept]


def _chunks(output: Output, tensor: OutTensor, placed: Placed, importance: Mapping[str, Floats]) -> list[_Chunk]:
    columns = tensor.shape[-1]
    n_rows = int(np.prod(tensor.shape[:-1], dtype=np.int64))
    own, pieces = importance.get(tensor.name), row_chunks(n_rows, columns, CHUNK_ELEMENTS)
    return [_Chunk(output, tensor, placed, start, stop, own) for start, stop in pieces]


def _write_chunk(reader: WeightReader, chunk: _Chunk) -> int:
    """Bytes written for one chunk."""
    data = _encode(reader, chunk)
    written = write_at(chunk.output.descriptor, data, chunk.position)
    if chunk.output.journal is not None:
        chunk.output.journal.wrote(chunk.position, data)
    return written


def _encode(reader: WeightReader, chunk: _Chunk) -> npt.NDArray[np.uint8]:
    """The bytes of a chunk, shape (rows, bytes of a row). Raises ModelError for values that the type cannot hold."""
    tensor, kind = chunk.tensor, chunk.placed.kind
    if kind.name not in FLOAT_BYTES and {fact.dtype for fact in tensor.sources} == {kind.name}:
        # decoding and encoding again is not exact; a tensor that has its type already is copied, as llama-quantize does
        return _copy(reader, chunk)
    if kind.name == "MXFP4" and {fact.dtype for fact in tensor.sources} == {mxfp4.CODES}:
        return _same_codes(reader, chunk)
    values = _read(reader, chunk)
    if tensor.function is not None:
        values = tensor.function(values)
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


def _copy(reader: WeightReader, chunk: _Chunk) -> npt.NDArray[np.uint8]:
    """The bytes of a chunk whose source has its type already."""
    row_bytes = chunk.placed.kind.row_bytes(chunk.tensor.shape[-1])
    wanted, first, last = _source_rows(chunk)
    raw = np.empty((last - first, row_bytes), np.uint8)
    for fact, start, stop, at in _runs(chunk.tensor, first, last):
        reader.read_bytes(fact, start * row_bytes, raw[at : at + stop - start].reshape(-1))
    return raw if wanted is None else raw[wanted]


def _same_codes(reader: WeightReader, chunk: _Chunk) -> npt.NDArray[np.uint8]:
    """A chunk whose source is in MXFP4 as the hub has it: the same codes and scales in ggml's order."""
    pieces = []
    for fact, start, stop, _ in _runs(chunk.tensor, chunk.start, chunk.stop):
        scales = fact.scaling.fact if fact.scaling is not None else fact
        try:
            pieces.append(mxfp4.ggml_blocks(reader.read_raw(fact, start, stop), reader.read_raw(scales, start, stop)))
        except ValueError as error:
            raise ModelError(f"{fact.file}: tensor {fact.name} {error}; download the file again") from error
    return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]


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
