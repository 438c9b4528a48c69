"""Codes that a recipe has chosen for some matrices already: they are packed as they are, and never rounded again.

A model directory says so in `packlight_grids.safetensors` beside its weights. For a matrix NAME of shape (rows,
columns) it holds `NAME.codes4` or `NAME.codes8`, U8 (rows, columns), by the bits of a code; `NAME.scales`, F16 (rows,
blocks); and `NAME.zero_points`, U8 (rows, blocks), which a symmetric grid has not. A block is columns / blocks weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import ModelError
from targets.base import Problem
from targets.ongrid import MATMUL_NBITS, changed
from targets.onnx.blocks import BlockGrid, Codes
from targets.safetensors import read_header
from targets.weights import WeightReader

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from targets.facts import TensorFact

_SMALLEST, _BITS = 16, (4, 8)


class OnGrid:
    """The matrices of a model that lie on a grid, by the names of their stored tensors."""

    def __init__(self, facts: dict[str, TensorFact]) -> None:
        self._facts = facts
        self._reader = WeightReader()
        for fact in facts.values():
            self._reader.open(fact.file)

    @classmethod
    def of(cls, directory: Path) -> OnGrid | None:
        """What the directory says; None where it says nothing. Raises ModelError for a damaged file."""
        path = directory / MATMUL_NBITS
        return cls({fact.name: fact for fact in read_header(path)}) if path.is_file() else None

    def __contains__(self, name: str) -> bool:
        return self._codes(name) is not None

    def grid(self, name: str) -> BlockGrid:
        """The grid of a matrix that is on one."""
        found = self._codes(name)
        if found is None:
            raise KeyError(name)
        bits, codes = found
        size = codes.shape[1] // self._facts[f"{name}.scales"].shape[1]
        return BlockGrid(bits, size, symmetric=f"{name}.zero_points" not in self._facts)

    def rows(self, name: str, start: int, stop: int) -> Codes:
        """Rows start..stop of a matrix. Raises ModelError for a code that has more bits than it should."""
        grid = self.grid(name)
        codes = self._read(f"{name}.codes{grid.bits}", start, stop)
        if codes.size and int(codes.max()) > grid.largest:
            raise ModelError(
                f"{MATMUL_NBITS}: {name} holds a code of {int(codes.max())}, its grid ends at {grid.largest}"
            )
        zeros = None if grid.symmetric else self._read(f"{name}.zero_points", start, stop)
        if zeros is not None and zeros.size and int(zeros.max()) > grid.largest:
            raise ModelError(
                f"{MATMUL_NBITS}: {name} has a zero point of {int(zeros.max())}, its grid ends at {grid.largest}"
            )
        scales = self._read(f"{name}.scales", start, stop).view(np.float16).astype(np.float32)
        return Codes(codes.reshape(stop - start, -1, grid.size), scales, zeros)

    def problems(self, weights: Mapping[str, TensorFact]) -> list[Problem]:
        """What in the file does not go with the model's weights and factors, by name."""
        names = {name.rpartition(".")[0] for name in self._facts}
        with WeightReader() as reader:
            return [
                Problem(f"{MATMUL_NBITS}: {name}", reason, "compress the model again, or delete that file")
                for name in sorted(names)
                if (reason := self._wrong(name, weights.get(name)) or self._changed(name, weights[name], reader))
            ]

    def _changed(self, name: str, stored: TensorFact, reader: WeightReader) -> str:
        grid, columns = self.grid(name), stored.shape[1]
        return changed(lambda row: grid.dequantize(self.rows(name, row, row + 1), columns), stored, reader)

    def _wrong(self, name: str, stored: TensorFact | None) -> str:
        """Why the tensors of one matrix make no sense; empty where they do."""
        codes, scales = self._codes(name), self._facts.get(f"{name}.scales")
        zeros = self._facts.get(f"{name}.zero_points")
        if stored is None or codes is None or scales is None:
            return "has not all of its parts, or no weights that it belongs to"
        rows, columns = codes[1].shape if len(codes[1].shape) == 2 else (0, 0)
        blocks = scales.shape[1] if len(scales.shape) == 2 else 0
        size = columns // blocks if blocks else 0
        if codes[1].shape != stored.shape or scales.shape != (rows, blocks) or not blocks or columns % blocks:
            return f"codes {list(codes[1].shape)} and scales {list(scales.shape)} do not go with {list(stored.shape)}"
        if size < _SMALLEST or size & (size - 1):
            return f"blocks of {size} are not a power of two of at least {_SMALLEST}"
        if (
            codes[1].dtype != "U8"
            or scales.dtype != "F16"
            or (zeros and (zeros.dtype, zeros.shape) != ("U8", scales.shape))
        ):
            return "codes and zero points have to be U8, scales F16"
        return ""

    def _codes(self, name: str) -> tuple[int, TensorFact] | None:
        return next(
            ((bits, self._facts[f"{name}.codes{bits}"]) for bits in _BITS if f"{name}.codes{bits}" in self._facts), None
        )

    def _read(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        fact = self._facts[name]
        row_bytes = fact.n_bytes // fact.shape[0]
        raw = np.empty((stop - start, row_bytes), np.uint8)
        self._reader.read_bytes(fact, start * row_bytes, raw.reshape(-1))
        return raw


def _beyond(name: str, what: str, found: npt.NDArray[np.uint8], grid: BlockGrid) -> ModelError:
    return ModelError(f"{MATMUL_NBITS}: {name} {what} of {int(found.max())}, its grid ends at {grid.largest}")
