"""What a model is, read from config.json and the safetensors headers alone: `ModelFacts`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


FLOATS = ("F32", "F16", "BF16")
"""Types that are read without any decoding table."""


@dataclass(frozen=True)
class Scaling:
    """What the codes of a matrix are multiplied by: a scale for each block of `rows` by `columns`."""

    fact: TensorFact
    rows: int
    columns: int


@dataclass(frozen=True)
class Grouping:
    """What belongs to the 4-bit codes of a matrix whose inputs are its rows, as GPTQ and AWQ store it.

    zeros, scales: of each group of inputs and each output; index: the group of every input, None for one behind the
    other; less: by how much zero points are stored too small
    """

    zeros: TensorFact
    scales: TensorFact
    index: TensorFact | None = None
    less: int = 0


@dataclass(frozen=True)
class TensorFact:
    """One stored tensor.

    shape: as stored, outermost dimension first (torch order)
    dtype: safetensors' name: "BF16", "F16", "F32", …; for a GGUF source the ggml type's name: "Q4_1"
    file, offset, n_bytes: where its bytes lie: absolute offset in `file`, little-endian, row-major
    stored: the larger tensor in the file whose first rows and columns this is; None where it is whole
    scaling: of a matrix in 8 bits; None where its elements are its values
    grouping: of a matrix in 4 bits by GPTQ or AWQ, whose shape is (outputs, inputs) all the same; read as a whole
    strides: elements from row to row and from column to column of a matrix whose values do not lie one behind the
        other; None for row-major
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    offset: int
    n_bytes: int
    stored: TensorFact | None = None
    strides: tuple[int, int] | None = None
    scaling: Scaling | None = None
    grouping: Grouping | None = None

    @property
    def is_float(self) -> bool:
        """Whether its values can be read: floats, or codes with their scales."""
        return self.dtype in FLOATS or self.scaling is not None or self.grouping is not None

    @property
    def files(self) -> set[Path]:
        """What it is read from: scales may lie in another file."""
        beside = [self.scaling.fact] if self.scaling is not None else []
        if self.grouping is not None:
            index = [self.grouping.index] if self.grouping.index is not None else []
            beside += [self.grouping.zeros, self.grouping.scales, *index]
        return {self.file, *(fact.file for fact in beside)}

    @property
    def n_elements(self) -> int:
        """Product of the shape."""
        count = 1
        for dim in self.shape:
            count *= dim
        return count


@dataclass(frozen=True)
class ModelFacts:
    """A model on disk, before any weight is read.

    source: "huggingface" (a directory) or "gguf" (one file)
    path: that directory or file
    name: MODEL's name for people: the directory's or file's base name, or the hub id's last part
    requested: MODEL as the user wrote it
    config: config.json as parsed, the text model's part for multimodal ones; empty for GGUF
    tensors: every stored tensor by its name in the source
    """

    source: str
    path: Path
    name: str
    requested: str
    config: dict[str, Any]
    tensors: dict[str, TensorFact]

    @property
    def architecture(self) -> str:
        """The model class that config.json names, for example `LlamaForCausalLM`."""
        names = self.config.get("architectures") or [""]
        return str(names[0])

    @property
    def n_stored_params(self) -> int:
        """Elements over all stored tensors."""
        return sum(tensor.n_elements for tensor in self.tensors.values())


def shown(text: object, limit: int = 80) -> str:
    """Text from a file of unknown origin, made fit for one line of a message: short, and printable."""
    short = str(text)[:limit]
    short = short if short.isprintable() else ascii(short)
    return short if len(str(text)) <= limit else f"{short}…"


def several(items: list[str], limit: int = 4, separator: str = ", ") -> str:
    """The first `limit` items for a message, and how many more there are."""
    text = separator.join(items[:limit])
    return text if len(items) <= limit else f"{text} and {len(items) - limit} more"
