"""Matrices that a recipe has put down as two: `packlight_factors.safetensors` beside the weights, which are products.

For a weight MODULE.weight of shape (rows, columns) it holds MODULE.left.weight (rows, rank) and MODULE.right.weight
(rank, columns), F32. A target that can run two products reads them; for the others the product is the weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import ModelError
from targets.base import Problem
from targets.safetensors import read_header
from targets.weights import WeightReader

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from targets.facts import ModelFacts, TensorFact

FACTORS = "packlight_factors.safetensors"
_FIX = "compress the model again, or delete that file"
_TOLERANCE = 1e-4
"""Of the largest weight of a row: the product was computed in another order."""


@dataclass(frozen=True)
class Factors:
    """left (rows, rank) @ right (rank, columns)."""

    left: TensorFact
    right: TensorFact

    @property
    def n_elements(self) -> int:
        """Of both together."""
        return self.left.n_elements + self.right.n_elements

    @property
    def both(self) -> tuple[TensorFact, TensorFact]:
        """Left and right."""
        return self.left, self.right


def stored_factors(directory: Path) -> dict[str, Factors]:
    """By the names of the weights that they are; empty where the directory has none. Raises ModelError for damage."""
    path = directory / FACTORS
    if not path.is_file():
        return {}
    facts = {fact.name: fact for fact in read_header(path)}
    found = {}
    for name in facts:
        module, _, side = name.removesuffix(".weight").rpartition(".")
        if (
            side not in ("left", "right")
            or f"{module}.left.weight" not in facts
            or f"{module}.right.weight" not in facts
        ):
            raise ModelError(f"{path}: '{name}' is not one of two factors; {_FIX}")
        found[f"{module}.weight"] = Factors(facts[f"{module}.left.weight"], facts[f"{module}.right.weight"])
    return found


def paired_notes(stored: Mapping[str, Factors]) -> list[str]:
    """What a target that runs two products has to say of these."""
    return [f"{len(stored)} matrices were factorized before; each is a product of two here"] if stored else []


def merged_notes(directory: Path) -> list[str]:
    """What a target that does not read factors has to say of a directory that has some."""
    if not (directory / FACTORS).is_file():
        return []
    return ["matrices were factorized before; here they are whole again, and the file is no smaller for it"]


def problems(facts: ModelFacts, stored: Mapping[str, Factors]) -> list[Problem]:
    """Factors that do not belong to the weights beside them: other shapes, or other values in the first or last row."""
    with WeightReader() as reader:
        return [
            Problem(f"{FACTORS}: {name}", reason, _FIX)
            for name, pair in sorted(stored.items())
            if (reason := _wrong(pair, facts.tensors.get(name), reader))
        ]


def _wrong(pair: Factors, weights: TensorFact | None, reader: WeightReader) -> str:
    if weights is None:
        return "has no weights that it belongs to"
    shapes = [fact.shape for fact in (pair.left, pair.right)]
    if [len(shape) for shape in shapes] != [2, 2] or shapes[0][1] != shapes[1][0]:
        return f"{list(shapes[0])} and {list(shapes[1])} cannot be multiplied"
    if (shapes[0][0], shapes[1][1]) != weights.shape:
        return f"their product is of {[shapes[0][0], shapes[1][1]]}, its weights of {list(weights.shape)}"
    right = reader.read_rows(pair.right, 0, shapes[1][0])
    for row in {0, weights.shape[0] - 1}:
        product = reader.read_rows(pair.left, row, row + 1) @ right
        known = reader.read_rows(weights, row, row + 1)
        if not np.allclose(product, known, rtol=0, atol=_TOLERANCE * max(float(np.abs(known).max()), 1e-12)):
            return "their product has other values than the weights beside it, which have changed since"
    return ""
