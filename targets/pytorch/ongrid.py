"""Codes that a recipe has chosen for some matrices already: they are stored as they are, and never rounded again.

A model directory says so in a file of the format beside its weights. For a matrix NAME of shape (rows, columns) it
holds `NAME.codes4` or `NAME.codes8`, U8 (rows, columns), by the bits of a code; `NAME.scales`, F32 (rows, groups); and
`NAME.shifts`, F32 (rows, groups), on a grid that has them. See `targets.groups` for what they mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import ModelError
from targets.base import Problem
from targets.groups import Parts
from targets.ongrid import SIDE_FILES, changed
from targets.safetensors import read_header
from targets.weights import WeightReader

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from targets.facts import TensorFact
    from targets.groups import GroupedGrid

_FIX = "compress the model again, or delete that file"


class OnGroups:
    """The matrices of a model that lie on a grid, by the names of their stored tensors."""

    def __init__(self, file: str, facts: dict[str, TensorFact]) -> None:
        self._file, self._facts = file, facts

    @classmethod
    def of(cls, directory: Path, format_name: str) -> OnGroups | None:
        """What the directory says for a format; None where it says nothing. Raises ModelError for a damaged file."""
        path = directory / SIDE_FILES[format_name]
        return cls(path.name, {fact.name: fact for fact in read_header(path)}) if path.is_file() else None

    def __contains__(self, name: str) -> bool:
        return f"{name}.scales" in self._facts

    def rows(self, name: str, grid: GroupedGrid, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Packed rows start..stop of a matrix. Raises ModelError for a code that has more bits than it should."""
        with WeightReader() as reader:
            fact = self._facts[f"{name}.codes{grid.bits}"]
            codes = np.empty((stop - start, fact.shape[1]), np.uint8)
            reader.read_bytes(fact, start * fact.shape[1], codes.reshape(-1))
            scales = reader.read_rows(self._facts[f"{name}.scales"], start, stop)
            shifted = f"{name}.shifts" in self._facts
            shifts = reader.read_rows(self._facts[f"{name}.shifts"], start, stop) if shifted else np.zeros_like(scales)
        if codes.size and int(codes.max()) > grid.largest:
            raise ModelError(
                f"{self._file}: {name} holds a code of {int(codes.max())}, its grid ends at {grid.largest}"
            )
        return grid.packed(Parts(codes, scales, shifts))

    def problems(self, grids: Mapping[str, GroupedGrid], weights: Mapping[str, TensorFact]) -> list[Problem]:
        """What in the file does not go with the preset's grids and the model's weights, both by name."""
        names = {name.rpartition(".")[0] for name in self._facts}
        with WeightReader() as reader:
            return [
                Problem(f"{self._file}: {name}", reason, _FIX)
                for name in sorted(names)
                if (reason := self._wrong(name, grids.get(name), weights.get(name), reader))
            ]

    def _wrong(self, name: str, grid: GroupedGrid | None, stored: TensorFact | None, reader: WeightReader) -> str:
        """Why the tensors of one matrix make no sense; empty where they do."""
        if stored is None or grid is None:
            return "has no weights that it belongs to, or the preset keeps them in floats"
        rows, columns = stored.shape
        groups = ("F32", (rows, columns // grid.size))
        wanted = {f"codes{grid.bits}": ("U8", (rows, columns)), "scales": groups}
        wanted |= {"shifts": groups} if grid.shifted else {}
        parts = ("codes4", "codes8", "scales", "shifts")
        found = {part: fact for part in parts if (fact := self._facts.get(f"{name}.{part}")) is not None}
        if {part: (fact.dtype, fact.shape) for part, fact in found.items()} != wanted:
            return f"does not hold what {grid.name} has for weights of {list(stored.shape)}"
        return changed(lambda row: grid.dequantize(self.rows(name, grid, row, row + 1)), stored, reader)
