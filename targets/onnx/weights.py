"""Weights on their way into the external data file: where they come from, what becomes of them, where they lie.

A `Blob` is one tensor of the file. A job fills one or several blobs from the same source rows, in row chunks that are
independent of each other, so that peak memory is a few chunks for each thread, whatever the size of the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from runtime.errors import ModelError
from targets.groups import INT8_LARGEST, RowGrid, row_scales
from targets.stream import write_at
from targets.weights import row_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from targets.facts import TensorFact
    from targets.onnx.blocks import BlockGrid
    from targets.onnx.ongrid import OnGrid
    from targets.weights import WeightReader

    Floats = npt.NDArray[np.float32]
    Chunk = Callable[["Sink"], int]

CHUNK_ELEMENTS = 1 << 18
"""Weights of one chunk: 1 MB as float32, so that the arrays of a search stay in the processor's cache."""
ALIGNMENT = 64
"""Bytes. ONNX Runtime maps a tensor from the page that it begins in; more would only leave holes."""

CHANNEL_MIDDLE = 128
"""The code of zero where an output channel has one scale."""


@dataclass(frozen=True)
class Part:
    """A stored tensor; plus: added to every value (Gemma stores its norms minus one)."""

    fact: TensorFact
    plus: float = 0.0


@dataclass(frozen=True)
class Matrix:
    """The rows of one or several stored matrices of equal width, one below the other; a vector counts as one row each.

    name: of the first, for messages
    """

    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        """Name of the first stored tensor, for messages."""
        return self.parts[0].fact.name

    @property
    def n_columns(self) -> int:
        """Width: input features."""
        return self.parts[0].fact.shape[-1]

    @property
    def n_rows(self) -> int:
        """Height over all parts: output features."""
        return sum(_rows(part.fact) for part in self.parts)

    def chunks(self) -> Iterator[tuple[Part, int, int, int]]:
        """(part, first row, last row + 1, row of the whole matrix) of each chunk."""
        base = 0
        for part in self.parts:
            for start, stop in row_chunks(_rows(part.fact), self.n_columns, CHUNK_ELEMENTS):
                yield part, start, stop, base + start
            base += _rows(part.fact)


def _rows(fact: TensorFact) -> int:
    return fact.n_elements // fact.shape[-1]


@dataclass
class Blob:
    """One tensor of the data file.

    dtype: of its elements as they are stored; file, offset: its place, given when the files are laid out
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    file: int = -1
    offset: int = -1

    @property
    def n_bytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Sink:
    """Where jobs read from and write to."""

    reader: WeightReader
    descriptors: tuple[int, ...]

    def rows(self, part: Part, start: int, stop: int) -> Floats:
        """Rows of a stored tensor as float32."""
        values = self.reader.read_rows(part.fact, start, stop)
        return values + np.float32(part.plus) if part.plus else values

    def write_rows(self, blob: Blob, row: int, data: npt.NDArray[np.generic]) -> int:
        """Write whole rows of a blob, the first of which is `row`."""
        return self.write(blob, np.ascontiguousarray(data), row * (blob.n_bytes // blob.shape[0]))

    def write(self, blob: Blob, data: npt.NDArray[np.generic], start: int = 0) -> int:
        """Write a C-contiguous array from byte `start` of a blob on."""
        return write_at(self.descriptors[blob.file], data, blob.offset + start)

    def write_columns(self, blob: Blob, column: int, data: npt.NDArray[np.generic]) -> int:
        """Write `data`, shape (rows of the blob, n), beside each other from `column` on."""
        data = np.ascontiguousarray(data)
        stride, start = blob.shape[1] * blob.dtype.itemsize, column * blob.dtype.itemsize
        if data.shape[1] == blob.shape[1]:
            return self.write(blob, data)
        return sum(self.write(blob, line, start + number * stride) for number, line in enumerate(data))


class Job(Protocol):
    """Fills its blobs."""

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """What it fills."""

    def chunks(self) -> Iterator[Chunk]:
        """Independent pieces of the work; each returns the bytes that it wrote. Raises ModelError."""

    def files(self) -> Iterator[TensorFact]:
        """What it reads."""


@dataclass(frozen=True)
class ValuesJob:
    """Generated values."""

    blobs: tuple[Blob, ...]
    values: npt.NDArray[np.generic]

    def chunks(self) -> Iterator[Chunk]:
        """See `Job`."""
        yield lambda sink: sink.write(self.blobs[0], np.ascontiguousarray(self.values))

    def files(self) -> Iterator[TensorFact]:
        """See `Job`."""
        return iter(())


@dataclass(frozen=True)
class _MatrixJob:
    blobs: tuple[Blob, ...]
    matrix: Matrix

    def files(self) -> Iterator[TensorFact]:
        """See `Job`."""
        return (part.fact for part in self.matrix.parts)

    def chunks(self) -> Iterator[Chunk]:
        """See `Job`."""
        for part, start, stop, row in self.matrix.chunks():
            yield partial(self._write, part, start, stop, row)

    def _write(self, part: Part, start: int, stop: int, row: int, sink: Sink) -> int:
        raise NotImplementedError


@dataclass(frozen=True)
class FloatJob(_MatrixJob):
    """Float weights as they are, in the blob's type; transposed: the blob's shape is (columns, rows)."""

    transposed: bool = False

    def _write(self, part: Part, start: int, stop: int, row: int, sink: Sink) -> int:
        (blob,) = self.blobs
        values = _as_type(sink.rows(part, start, stop), blob.dtype, part)
        return sink.write_columns(blob, row, values.T) if self.transposed else sink.write_rows(blob, row, values)


def _as_type(values: Floats, dtype: np.dtype[np.generic], part: Part) -> npt.NDArray[np.generic]:
    """Float32 values in a blob's type. Raises ModelError where it cannot hold one of them."""
    if dtype.itemsize < 4 and values.size and float(np.abs(values).max()) > float(np.finfo(np.float16).max):
        raise ModelError(f"tensor {part.fact.name}: holds values that float16 cannot; use --quant fp32, int8 or int4")
    return values.astype(dtype, copy=False)


@dataclass(frozen=True)
class VectorJob(_MatrixJob):
    """Vectors, one behind the other."""

    def _write(self, part: Part, start: int, stop: int, row: int, sink: Sink) -> int:  # noqa: ARG002 - one row each
        (blob,) = self.blobs
        values = _as_type(sink.rows(part, start, stop), blob.dtype, part)
        return sink.write(blob, values, self._before(part) * blob.dtype.itemsize)

    def _before(self, part: Part) -> int:
        """Elements of the vectors in front of `part`."""
        names = [one.fact.name for one in self.matrix.parts]
        return sum(one.fact.n_elements for one in self.matrix.parts[: names.index(part.fact.name)])


@dataclass(frozen=True)
class BlocksJob(_MatrixJob):
    """Weights in blocks: blobs are codes, scales, and zero points where the grid has them.

    given: codes that were chosen before, by the name of the stored tensor; they are packed as they are
    norm: the weights of the norm that the layer reads, shape (columns,), where there is one
    """

    grid: BlockGrid
    given: OnGrid | None = None
    norm: Matrix | None = None

    def _write(self, part: Part, start: int, stop: int, row: int, sink: Sink) -> int:
        if self.given is not None and part.fact.name in self.given:
            codes = self.given.rows(part.fact.name, start, stop)
            if isinstance(self.given.grid(part.fact.name), RowGrid):
                codes = self.grid.cut(codes)
        else:
            codes = self.grid.quantize(sink.rows(part, start, stop), self._importance(sink))
        try:
            packed = self.grid.pack(codes)
        except OverflowError as error:
            raise ModelError(f"tensor {part.fact.name}: {error}; use --quant fp32") from error
        return sum(sink.write_rows(blob, row, data) for blob, data in zip(self.blobs, packed, strict=True))

    def _importance(self, sink: Sink) -> Floats | None:
        """What an error in each column costs, known without data: what a norm gives has its weights' size."""
        if self.norm is None:
            return None
        weights = np.concatenate([sink.rows(part, 0, 1)[0] for part in self.norm.parts])
        square: Floats = weights * weights
        mean = square.mean()
        return square / mean if mean > 0 else None


@dataclass(frozen=True)
class ChannelJob(_MatrixJob):
    """Weights in 8 bits with one scale an output channel: blobs are the matrix, shape (columns, rows), and the scales.

    Codes are -127 to 127 around CHANNEL_MIDDLE, which is their zero point.

    factors: what each input channel is multiplied by before rounding, shape (columns,), or None
    given: codes that were chosen before, by the name of the stored tensor; they are packed as they are
    """

    factors: Floats | None = None
    given: OnGrid | None = None

    def _write(self, part: Part, start: int, stop: int, row: int, sink: Sink) -> int:
        weights, scales = self.blobs
        if self.given is not None and part.fact.name in self.given:
            chosen = self.given.rows(part.fact.name, start, stop)
            codes, step = chosen.codes[:, 0] + np.uint8(CHANNEL_MIDDLE - INT8_LARGEST), chosen.scales[:, 0]
        else:
            values = sink.rows(part, start, stop)
            if self.factors is not None:
                values = values * self.factors
            step = row_scales(values)
            codes = (np.rint(values / step[:, None]) + np.float32(CHANNEL_MIDDLE)).astype(np.uint8)
        written = sink.write_columns(weights, row, codes.T)
        return written + sink.write(scales, np.ascontiguousarray(step), row * scales.dtype.itemsize)


def lay_out(jobs: list[Job], largest_file: int) -> list[int]:
    """Give every blob its place, in order, a new file where the next would go over `largest_file` bytes.

    Returns the sizes of the files. Raises ValueError, with the blob's name, for a blob that is larger than a file.
    """
    sizes = [0]
    for blob in (blob for job in jobs for blob in job.blobs):
        if blob.n_bytes > largest_file:
            raise ValueError(f"{blob.name} takes {blob.n_bytes} bytes, a file holds {largest_file}")
        start = -(-sizes[-1] // ALIGNMENT) * ALIGNMENT
        if start + blob.n_bytes > largest_file:
            sizes.append(0)
            start = 0
        blob.file, blob.offset = len(sizes) - 1, start
        sizes[-1] = start + blob.n_bytes
    return sizes
