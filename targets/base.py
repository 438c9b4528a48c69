"""The contract of a backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from runtime.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from runtime.artifact import Artifact
    from targets.facts import ModelFacts

    Progress = Callable[[str, int, int], None]
    """Called as progress(what, done, total) with units of bytes; cheap to call often."""


@dataclass(frozen=True)
class Problem:
    """Something that keeps a model from being exported, found before any weight was read.

    where: the tensor, key or option; what: what is wrong with it; fix: what the user can do
    """

    where: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.fix}"


CALIBRATION_METHODS = ("minmax", "percentile", "entropy")


@dataclass(frozen=True)
class Calibration:
    """What activations are measured on, for presets that fix their ranges.

    method: one of CALIBRATION_METHODS
    text: a UTF-8 file; None takes the calibration half of `targets.text.default_text`
    chunks: at most so many pieces of `tokens` tokens
    """

    method: str = "minmax"
    text: Path | None = None
    chunks: int = 32
    tokens: int = 128

    def __post_init__(self) -> None:
        if self.method not in CALIBRATION_METHODS:
            raise UserError(f"'{self.method}' is not a calibration; known: {', '.join(CALIBRATION_METHODS)}")


TYPES_OF_GGUF = "--imatrix, --rule, --pure, --output-type and --embedding-type are for gguf"
"""What is said to who names types for another format."""


@dataclass(frozen=True)
class TypeChoice:
    """Types of tensors beside what a preset gives them, for gguf.

    rules: a regular expression and a type each; of a tensor the first counts that is found in its name
    pure: every tensor gets the preset's base type
    output, embedding: types of the output matrix and of the table of tokens
    importance: a file of llama.cpp's, what the error in each column of a matrix counts
    """

    rules: tuple[tuple[str, str], ...] = ()
    pure: bool = False
    output: str | None = None
    embedding: str | None = None
    importance: Path | None = None


@dataclass(frozen=True)
class EmitOptions:
    """How to emit.

    quant: the preset, lower case, for example "q4_k_m"; threads: None for all cores
    calibration: for presets that fix the ranges of activations
    engine: the oldest version of the engine that has to load the artifact, as the device's profile names it
    context: tokens of a cache whose size the artifact fixes; None for a default
    arch: of the processor that it is for, one of `targets.device.ARCHS`; None for this host's
    split_max_bytes: of the tensors in a file, for GGUF; None for one file of any size
    journalled: what is written is noted beside it, and a run goes on where one before was; for GGUF, see
        `targets.gguf.writing`
    types: of tensors, beside the preset's
    """

    quant: str
    threads: int | None = None
    calibration: Calibration = Calibration()
    engine: str | None = None
    context: int | None = None
    arch: str | None = None
    split_max_bytes: int | None = None
    journalled: bool = False
    types: TypeChoice = TypeChoice()


class Target(Protocol):
    """A backend for one artifact format."""

    name: str

    def presets(self) -> dict[str, str]:
        """Quantization presets by name, with a line for people."""

    def default_quant(self, facts: ModelFacts) -> str:
        """The preset for a model where the user named none."""

    def check(self, facts: ModelFacts, options: EmitOptions) -> list[Problem]:
        """Every problem that can be known before a weight is read; empty when the export can start."""

    def emit(self, facts: ModelFacts, options: EmitOptions, out: Path, progress: Progress) -> Artifact:
        """Write the artifact's files into the existing directory `out`. Raises ModelError for bad weights."""
