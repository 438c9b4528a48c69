"""Tensors that a recipe has put into ggml's bytes already: they are written as they are, and never rounded again.

A model directory holds them in `packlight_ggml.safetensors` beside its weights, which are the same in floats. For a
matrix NAME of shape (rows, columns) that is `NAME.TYPE`, U8 (rows, bytes of a row), TYPE being ggml's, such as Q4_K.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import ModelError
from targets.base import Problem
from targets.gguf.types import TYPES
from targets.ongrid import GGML
from targets.safetensors import read_header
from targets.weights import WeightReader

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from targets.facts import ModelFacts, TensorFact

_FIX = "compress the model again, or delete that file"


def stored_blocks(directory: Path) -> dict[str, TensorFact]:
    """Tensors in ggml's bytes by the names of the weights that they are; empty where the directory has none.

    Each is a fact with the shape of the weights and ggml's type as its dtype. Raises ModelError for a damaged file.
    """
    path = directory / GGML
    if not path.is_file():
        return {}
    found = {}
    for fact in read_header(path):
        name, _, kind = fact.name.rpartition(".")
        known = TYPES.get(kind)
        if known is None or fact.dtype != "U8" or len(fact.shape) != 2 or fact.shape[1] % known.block_bytes:
            raise ModelError(f"{path}: '{fact.name}' is no matrix in bytes of a type that is known here; {_FIX}")
        shape = (fact.shape[0], fact.shape[1] // known.block_bytes * known.block_size)
        found[name] = dataclasses.replace(fact, name=name, shape=shape, dtype=kind)
    return found


def problems(facts: ModelFacts, stored: Mapping[str, TensorFact]) -> list[Problem]:
    """Blocks that do not belong to the weights beside them: other shapes, or other values in the first and last row."""
    with WeightReader() as reader:
        return [
            Problem(f"{GGML}: {name}", reason, _FIX)
            for name, blocks in sorted(stored.items())
            if (reason := _wrong(blocks, facts.tensors.get(name), reader))
        ]


def _wrong(blocks: TensorFact, weights: TensorFact | None, reader: WeightReader) -> str:
    if weights is None:
        return "has no weights that it belongs to"
    if blocks.shape != weights.shape:
        return f"is of {list(blocks.shape)}, its weights of {list(weights.shape)}"
    for row in {0, blocks.shape[0] - 1}:
        ours, theirs = (reader.read_rows(fact, row, row + 1) for fact in (blocks, weights))
        if not np.array_equal(ours, theirs):
            return "holds other values than the weights beside it, which have changed since"
    return ""
