"""Matrices of an artifact that hold nothing but zeros, though the source's do not.

Logits alone do not find them: one zeroed attention matrix in the middle of SmolLM2 can cost less than honest 4-bit
rounding does (docs/reference/thresholds.md, measured by `python -m benchmarks.thresholds`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.errors import ModelError
from targets.gguf.reading import read_gguf_facts
from targets.onnx.dead import dead_matrices
from targets.weights import WeightReader, row_chunks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runtime.artifact import Artifact
    from targets.facts import ModelFacts, TensorFact

CHUNK_ELEMENTS = 1 << 16
"""Weights that are read at a time; a healthy matrix is left after the first chunk."""


def dead_tensors(artifact: Artifact, facts: ModelFacts) -> tuple[str, ...] | None:
    """Names of the artifact's all-zero matrices, where it has more of them than the source; else empty.

    Names differ between source and artifact, so they are counted and not matched. None for a format that nobody can
    look into.
    """
    if artifact.format == "gguf":
        dead = _all_zero(read_gguf_facts(artifact.entry_path, str(artifact.entry_path)).tensors.values())
    elif artifact.format in ("onnx", "ort"):
        dead = dead_matrices(artifact.entry_path)
    else:
        return None
    if not dead or len(dead) <= len(_all_zero(facts.tensors.values())):
        return ()
    return tuple(dead)


def _all_zero(tensors: Iterable[TensorFact]) -> list[str]:
    """Vectors are left out: biases start at zero and may stay there."""
    with WeightReader() as reader:
        return [fact.name for fact in tensors if len(fact.shape) > 1 and _is_zero(reader, fact)]


def _is_zero(reader: WeightReader, fact: TensorFact) -> bool:
    columns = fact.shape[-1]
    n_rows = fact.n_elements // columns if columns else 0
    try:
        return all(
            not reader.read_rows(fact, start, stop).any() for start, stop in row_chunks(n_rows, columns, CHUNK_ELEMENTS)
        )
    except ModelError:  # a type that cannot be decoded here, or NaN, which the logits will show
        return False
