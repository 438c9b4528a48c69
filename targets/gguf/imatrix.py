"""llama.cpp's files of importance matrices, read and written: what llama-imatrix makes and llama-quantize takes.

A matrix of weights has the sums of the squares of its inputs, column by column, and how many inputs there were; with
experts a row of sums and a count for each. Two forms: GGUF, `NAME.in_sum2` and `NAME.counts`, and the older `.dat`,
mean squares times a number of calls. Source: common/imatrix-loader.cpp and tools/imatrix/imatrix.cpp of llama.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from runtime.atomic import replacing
from runtime.errors import ModelError
from targets.facts import shown
from targets.gguf.header import align, encode, place
from targets.gguf.keyvalue import array, string, uint32
from targets.gguf.reading import read_gguf_facts, read_gguf_metadata
from targets.gguf.types import TYPES
from targets.weights import WeightReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from targets.facts import TensorFact

    Floats = npt.NDArray[np.float32]

FORMS = ("gguf", "dat")
_AGAIN = "make it again with 'packlight imatrix'"
_SUMS, _COUNTS = ".in_sum2", ".counts"
_INT = struct.Struct("<i")
_MOST = 2**31 - 1


@dataclass(frozen=True)
class Sums:
    """What the inputs of one matrix were.

    squares: sums of squares, float32, (experts, columns), (1, columns) without experts
    counts: inputs that were seen, int64, (experts,), or (1,)
    """

    squares: Floats
    counts: npt.NDArray[np.int64]

    def means(self) -> Floats:
        """Mean squares, shape of `squares`; ones for an expert that was never asked, as llama-quantize has it."""
        counts = self.counts.astype(np.float32)[:, None]
        found: Floats = np.ones_like(self.squares)
        np.divide(self.squares, counts, out=found, where=counts > 0)
        return found


@dataclass(frozen=True)
class ImportanceMatrix:
    """A file's content. sums: by tensors' names; datasets: the texts; chunks: of `chunk_tokens` tokens each."""

    sums: Mapping[str, Sums]
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    chunk_tokens: int = 512


def read_imatrix(path: Path) -> ImportanceMatrix:
    """The content of a file in either form. Raises ModelError for a file that is none, or is damaged."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); name an importance matrix") from error
    found = _read_gguf(path) if magic == b"GGUF" else _read_dat(path)
    if not found.sums:
        raise ModelError(f"{path}: holds no importance of any tensor; {_AGAIN}")
    for name, sums in found.sums.items():
        if not np.isfinite(sums.squares).all():
            raise ModelError(f"{path}: {shown(name)} holds NaN or infinite values; {_AGAIN}")
    return found


def write_imatrix(path: Path, matrix: ImportanceMatrix, form: str = "gguf") -> None:
    """Write the file, in one of FORMS; it appears when it is whole. Raises ValueError for another form."""
    if form not in FORMS:
        raise ValueError(f"'{form}' is no form of an importance matrix; known: {', '.join(FORMS)}")
    with replacing(path) as temporary, temporary.open("wb") as file:
        for piece in (_gguf_pieces if form == "gguf" else _dat_pieces)(matrix):
            file.write(piece)


def _read_gguf(path: Path) -> ImportanceMatrix:
    known = {entry.key: entry.value for entry in read_gguf_metadata(path)}
    tensors = read_gguf_facts(path, str(path)).tensors
    datasets, chunks, size = (known.get(f"imatrix.{key}") for key in ("datasets", "chunk_count", "chunk_size"))
    if (
        not isinstance(datasets, Sequence)
        or isinstance(datasets, str)
        or not isinstance(chunks, int)
        or not isinstance(size, int)
    ):
        raise ModelError(f"{path}: is a GGUF file and no importance matrix; {_AGAIN}")
    sums = {}
    with WeightReader() as reader:
        for name, fact in tensors.items():
            if not name.endswith(_SUMS):
                continue
            own = name.removesuffix(_SUMS)
            counts = tensors.get(f"{own}{_COUNTS}")
            if counts is None or {fact.dtype, counts.dtype} != {"F32"} or fact.n_elements % counts.n_elements:
                raise ModelError(f"{path}: the sums and counts of {shown(own)} do not belong together; {_AGAIN}")
            n = counts.n_elements
            seen = np.rint(_flat(reader, counts))
            if not (np.abs(seen) < _MOST).all():
                raise ModelError(f"{path}: {shown(own)} has a count that is none; {_AGAIN}")
            sums[own] = Sums(_flat(reader, fact).reshape(n, -1), seen.astype(np.int64))
    return ImportanceMatrix(sums, tuple(map(str, datasets)), chunks, size)


def _flat(reader: WeightReader, fact: TensorFact) -> Floats:
    """All values of an F32 tensor, which may be no numbers."""
    raw = np.empty(fact.n_bytes, np.uint8)
    reader.read_bytes(fact, 0, raw)
    return raw.view("<f4").astype(np.float32, copy=False)


def _gguf_pieces(matrix: ImportanceMatrix) -> Iterator[bytes]:
    """The file's bytes."""
    metadata = [
        string("general.type", "imatrix"),
        array("imatrix.datasets", list(matrix.datasets), "STRING"),
        uint32("imatrix.chunk_count", matrix.chunks),
        uint32("imatrix.chunk_size", matrix.chunk_tokens),
    ]
    contents: dict[str, Floats] = {}
    for name, sums in sorted(matrix.sums.items()):
        contents[f"{name}{_SUMS}"] = sums.squares
        contents[f"{name}{_COUNTS}"] = sums.counts.astype(np.float32)[:, None]
    placed = place([(name, values.shape, TYPES["F32"]) for name, values in contents.items()])
    yield encode(metadata, placed)
    for tensor in placed:
        data = contents[tensor.name].astype("<f4").tobytes()
        yield data.ljust(align(len(data)), b"\0")


class _Dat:
    """Reads the bytes of an older file from front to back. Raises ModelError where they end too early."""

    def __init__(self, path: Path) -> None:
        self.path, self.data, self.at = path, path.read_bytes(), 0

    def error(self, what: str) -> ModelError:
        return ModelError(f"{self.path}: is no importance matrix ({what}); {_AGAIN}")

    def take(self, count: int) -> bytes:
        if not 0 <= count <= len(self.data) - self.at:
            raise self.error(f"claims {count} bytes at byte {self.at}, past its end")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, least: int = 0) -> int:
        (found,) = _INT.unpack(self.take(_INT.size))
        if found < least:
            raise self.error(f"has the count {found} at byte {self.at - _INT.size}")
        return int(found)

    def text(self) -> str:
        return self.take(self.number()).decode("utf-8", "replace")


def _read_dat(path: Path) -> ImportanceMatrix:
    """Mean squares as sums of one input each: what was summed over how many is not in such a file."""
    data = _Dat(path)
    sums = {}
    for _ in range(data.number(1)):
        name, calls, n_values = data.text(), data.number(), data.number(1)
        values = np.frombuffer(data.take(4 * n_values), "<f4").astype(np.float32)
        if calls:
            with np.errstate(invalid="ignore"):  # what is no number is refused with its name
                values = values / np.float32(calls)
        sums[name] = Sums(values[None], np.ones(1, np.int64))
    chunks = 0
    datasets: tuple[str, ...] = ()
    if data.at < len(data.data):
        chunks = data.number()
        name = data.text() if data.at < len(data.data) else ""
        datasets = (name,) if name else ()
    return ImportanceMatrix(sums, datasets, chunks)


def _dat_pieces(matrix: ImportanceMatrix) -> Iterator[bytes]:
    """The bytes of an older file. Experts that were never asked count 1 each; a matrix of such alone is left out."""
    kept = {name: sums for name, sums in sorted(matrix.sums.items()) if sums.counts.any()}
    yield _INT.pack(len(kept))
    for name, sums in kept.items():
        calls = min(-(-int(sums.counts.max()) // matrix.chunk_tokens), _MOST)
        values = sums.means() * np.float32(calls)
        encoded = name.encode()
        yield _INT.pack(len(encoded)) + encoded + _INT.pack(calls) + _INT.pack(values.size)
        yield values.astype("<f4").tobytes()
    text = matrix.datasets[-1].encode() if matrix.datasets else b""
    yield _INT.pack(matrix.chunks) + _INT.pack(len(text)) + text
