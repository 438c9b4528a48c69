"""Matrices of a plan as tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from targets.groups import INT8_LARGEST, RowGrid
from targets.onnx import rope

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt
    from torch import Tensor, nn

    from targets.base import Progress
    from targets.groups import Parts
    from targets.onnx.decoder_spec import DecoderSpec
    from targets.onnx.encoder_spec import EncoderSpec
    from targets.pytorch.plan import Plan
    from targets.weights import WeightReader

    Floats = npt.NDArray[np.float32]


class MatrixReader(ABC):
    """Reads what a plan names, for a builder that inherits this.

    stored: bytes of the weights so far; counts: stored matrices by the kind that they got
    """

    def __init__(self, plan: Plan, reader: WeightReader, progress: Progress) -> None:
        self.plan, self.reader, self.progress = plan, reader, progress
        self.dtype = getattr(torch, plan.preset.dtype)
        self.stored = 0
        self.counts: Counter[str] = Counter()
        self.total = sum(matrix.parts[0].fact.n_bytes for matrix in plan.matrices.values())
        self.done = 0

    @abstractmethod
    def _decoder(self, spec: DecoderSpec) -> nn.Module:
        """The module of a decoder."""

    @abstractmethod
    def _encoder(self, spec: EncoderSpec) -> nn.Module:
        """The module of an encoder."""

    def build(self) -> nn.Module:
        """The whole module, in evaluation mode."""
        if self.plan.decoder is not None:
            return self._decoder(self.plan.decoder).eval()
        if self.plan.encoder is not None:
            return self._encoder(self.plan.encoder).eval()
        raise TypeError("a plan of nothing")

    def read(self, *names: str) -> Floats:
        """Stored tensors, one below the other; vectors become one long row."""
        found = []
        for name in names:
            part = self.plan.matrices[name].parts[0]
            rows = part.fact.n_elements // part.fact.shape[-1]
            values = self.reader.read_rows(part.fact, 0, rows)
            found.append(values + np.float32(part.plus) if part.plus else values)
            self.done += part.fact.n_bytes
            self.progress("quantize", self.done, self.total)
        axis = 1 if len(self.plan.matrices[names[0]].parts[0].fact.shape) == 1 else 0
        return found[0] if len(found) == 1 else np.concatenate(found, axis=axis)

    def coded(self, *names: str) -> Parts:
        """Stored matrices on their grid, one below the other: the codes that they have, else the nearest."""
        grid, given, found = self.plan.grids[names[0]], self.plan.given, []
        for name in names:
            fact = self.plan.matrices[name].parts[0].fact
            if given is not None and fact.name in given:
                found.append(given.rows(fact.name, grid, 0, fact.shape[0]))
                self.done += fact.n_bytes
                self.progress("quantize", self.done, self.total)
            else:
                found.append(grid.rounded(self.read(name)))
        return grid.parts(np.concatenate(found))

    def vector(self, *names: str) -> Tensor:
        """Vectors, one behind the other."""
        return torch.from_numpy(self.read(*names)[0].copy()).to(self.dtype)

    def floats(self, name: str) -> Tensor:
        """A matrix as it is."""
        return torch.from_numpy(self.read(name)).to(self.dtype)

    def biases(self, names: Sequence[str]) -> Tensor | None:
        """The biases of matrices, one behind the other; None where they have none."""
        known = [name.removesuffix("weight") + "bias" for name in names]
        return self.vector(*known) if known[0] in self.plan.matrices else None

    def embeddings(self, spec: EncoderSpec) -> tuple[Tensor, Tensor]:
        """An encoder's rows by position, and by kind of token: one row of zeros where it has no kinds."""
        names = spec.family.embeddings
        types = self.floats(f"{names['type']}.weight") if "type" in names else torch.zeros(1, spec.hidden)
        return self.floats(f"{names['position']}.weight"), types.to(self.dtype)

    def classifier(self, spec: EncoderSpec, product: Callable[[str, str], nn.Module]) -> nn.Module | None:
        """A classifier's head, None for other tasks. product: makes one of a title and a matrix's name."""
        if spec.task not in spec.family.heads:
            return None
        active = {"Tanh": torch.nn.Tanh, "Relu": torch.nn.ReLU}[spec.family.head_activation]
        made: list[nn.Module] = []
        for module in spec.family.heads[spec.task]:
            made += [product(module, f"{module.removeprefix(spec.family.prefix)}.weight"), active()]
        return torch.nn.Sequential(*made[:-1])

    def counted(self, made: nn.Module) -> nn.Module:
        """`made`, its bytes added to those stored."""
        self.stored += sum(buffer.nbytes for buffer in made.buffers())
        return made

    def rotary(self, spec: DecoderSpec, positions: int) -> list[Tensor]:
        """Cosines and sines of all layers, then of local ones, each (positions, 1, width / 2)."""
        made: list[Tensor] = []
        for local in (False, True):
            if local and not any(spec.local):
                made += made  # one storage
                continue
            attention = rope.SLIDING if local else rope.FULL
            theta = 10000.0 if local else spec.default_theta
            values = rope.tables(self.plan.full, positions, attention, theta)
            made += [torch.from_numpy(table).to(self.dtype).unsqueeze(1) for table in values]
        return made


def encoder_ways(spec: EncoderSpec) -> tuple[int, bool, str, bool, bool]:
    """first_position, padded, pooling, normalize and per_token of an `Encoder`."""
    pooling = spec.pooling
    return (
        spec.first_position,
        spec.family.padded_positions,
        pooling.mode if pooling else "",
        pooling.normalize if pooling else False,
        spec.task == "token-classification",
    )


def int8_rows(parts: Parts) -> tuple[Tensor, Tensor]:
    """Codes (outputs, inputs), int8 from -127 to 127, and a scale for each row, float32, of an 8-bit grid."""
    # Below the middle it wraps around, which is what the bits of a negative int8 are.
    codes = (parts.codes - np.uint8(INT8_LARGEST)).view(np.int8)
    return torch.from_numpy(codes), torch.from_numpy(parts.scales[:, 0].copy())


def rows_to_int8(rows: Floats) -> tuple[Tensor, Tensor]:
    """As `int8_rows`, of floats."""
    grid = RowGrid(rows.shape[1])
    return int8_rows(grid.parts(grid.rounded(rows)))
