"""Codes that a recipe has chosen for some matrices already: they are packed as they are, and never rounded again.

A model directory says so in `packlight_grids.safetensors` beside its weights. A matrix NAME of shape (rows, columns) is
there in one of two ways, which the type of its scales tells apart:

- in blocks, `targets.onnx.blocks.BlockGrid`: `NAME.codes4` or `NAME.codes8`, U8 (rows, columns), by the bits of a code;
  `NAME.scales`, F16 (rows, blocks); and `NAME.zero_points`, U8 (rows, blocks), which a symmetric grid has not. A block
  is columns / blocks weights.
- in rows, `targets.groups.RowGrid`: `NAME.codes8`, U8 (rows, columns), and `NAME.scales`, F32 (rows, 1). A weight is
  (code - 127) * scale, no code is above 254.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import ModelError
from targets.base import Problem
from targets.groups import Parts, RowGrid
from targets.ongrid import ONNX_GRIDS, changed
from targets.onnx.blocks import BlockGrid, Codes
from targets.safetensors import read_header
from targets.weights import WeightReader

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from targets.facts import TensorFact

    Floats = npt.NDArray[np.float32]

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
        path = directory / ONNX_GRIDS
        return cls({fact.name: fact for fact in read_header(path)}) if path.is_file() else None

    def __contains__(self, name: str) -> bool:
        return self._codes(name) is not None

    @property
    def has_rows(self) -> bool:
        """Whether some of the matrices are int8 rows."""
        return any(self._in_rows(name.removesuffix(".scales")) for name in self._facts if name.endswith(".scales"))

    def grid(self, name: str) -> BlockGrid | RowGrid:
        """The grid of a matrix that is on one."""
        found = self._codes(name)
        if found is None:
            raise KeyError(name)
        bits, codes = found
        if self._in_rows(name):
            return RowGrid(codes.shape[1])
        size = codes.shape[1] // self._facts[f"{name}.scales"].shape[1]
        return BlockGrid(bits, size, symmetric=f"{name}.zero_points" not in self._facts)

    def rows(self, name: str, start: int, stop: int) -> Codes:
        """Rows start..stop of a matrix; on a `RowGrid` a row is one block.

        Raises ModelError for a code that has more bits than it should, and for a row's scale that is no number.
        """
        grid = self.grid(name)
        codes = self._read(f"{name}.codes{grid.bits}", start, stop)
        if codes.size and int(codes.max()) > grid.largest:
            raise ModelError(
                f"{ONNX_GRIDS}: {name} holds a code of {int(codes.max())}, its grid ends at {grid.largest}"
            )
        if isinstance(grid, RowGrid):
            steps = self._read(f"{name}.scales", start, stop).view(np.float32)
            if not np.isfinite(steps).all():
                raise ModelError(f"{ONNX_GRIDS}: {name} has a scale that is infinite or no number")
            return Codes(codes[:, None], steps, None)
        zeros = None if grid.symmetric else self._read(f"{name}.zero_points", start, stop)
        if zeros is not None and zeros.size and int(zeros.max()) > grid.largest:
            raise ModelError(
                f"{ONNX_GRIDS}: {name} has a zero point of {int(zeros.max())}, its grid ends at {grid.largest}"
            )
        scales = self._read(f"{name}.scales", start, stop).view(np.float16).astype(np.float32)
        return Codes(codes.reshape(stop - start, -1, grid.size), scales, zeros)

    def problems(self, weights: Mapping[str, TensorFact]) -> list[Problem]:
        """What in the file does not go with the model's weights and factors, by name."""
        names = {name.rpartition(".")[0] for name in self._facts}
        with WeightReader() as reader:
            return [
                Problem(f"{ONNX_GRIDS}: {name}", reason, "compress the model again, or delete that file")
                for name in sorted(names)
                if (reason := self._wrong(name, weights.get(name)) or self._changed(name, weights[name], reader))
            ]

    def _changed(self, name: str, stored: TensorFact, reader: WeightReader) -> str:
        return changed(lambda row: self._values(name, row), stored, reader)

    def _values(self, name: str, row: int) -> Floats:
        """The weights of a row, (1, columns)."""
        grid, codes = self.grid(name), self.rows(name, row, row + 1)
        if isinstance(grid, RowGrid):
            return grid.weights(Parts(codes.codes[:, 0], codes.scales, np.zeros_like(codes.scales)))
        return grid.dequantize(codes, codes.codes.size)

    def _wrong(self, name: str, stored: TensorFact | None) -> str:
        """Why the tensors of one matrix make no sense; empty where they do."""
        codes, scales = self._codes(name), self._facts.get(f"{name}.scales")
        zeros = self._facts.get(f"{name}.zero_points")
        if stored is None or codes is None or scales is None:
            return "has not all of its parts, or no weights that it belongs to"
        if self._in_rows(name):
            return self._wrong_rows(codes[1], scales, zeros, stored)
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

    def _wrong_rows(
        self, codes: TensorFact, scales: TensorFact, zeros: TensorFact | None, stored: TensorFact
    ) -> str:  # fmt: skip
        if codes.shape != stored.shape or len(stored.shape) != 2 or scales.shape != (stored.shape[0], 1):
            found = f"codes {list(codes.shape)} and scales {list(scales.shape)}"
            return f"{found} are not int8 rows of {list(stored.shape)}"
        if codes.dtype != "U8" or zeros is not None:
            return "codes of int8 rows have to be U8, and have no zero points"
        return ""

    def _in_rows(self, name: str) -> bool:
        """Whether a matrix is said to be int8 rows."""
        scales = self._facts.get(f"{name}.scales")
        return scales is not None and scales.dtype == "F32" and f"{name}.codes8" in self._facts

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
