"""An importance matrix beside the tensors of a file: what it says of which, which types need one, the record of it.

The same tensors, the same refusals and the same metadata as llama-quantize (src/llama-quant.cpp and
tools/quantize/quantize.cpp of llama.cpp), before anything is written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from targets.base import Problem
from targets.facts import several, shown
from targets.gguf.choice import role_of
from targets.gguf.imatrix import ImportanceMatrix, read_imatrix
from targets.gguf.keyvalue import KeyValue, string, uint32
from targets.gguf.types import IMPORTANCE_TYPES, GgmlType

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from targets.gguf.presets import Preset

    Floats = npt.NDArray[np.float32]

_POOR = frozenset({"IQ3_XXS", "IQ2_S", "IQ1_M", *IMPORTANCE_TYPES})
"""Types of which llama-quantize says that without an importance matrix the result would be garbage."""
_TABLES = {"output", "token_embd"}


@dataclass(frozen=True)
class Importance:
    """A file, read. means: of what tensors have, by their names, (experts, columns), (1, columns) without experts."""

    path: Path
    matrix: ImportanceMatrix
    means: Mapping[str, Floats] = field(default_factory=dict)

    def metadata(self) -> list[KeyValue]:
        """What a file says of it that was quantized so."""
        entries = [string("quantize.imatrix.file", str(self.path))]
        if self.matrix.datasets:
            entries.append(string("quantize.imatrix.dataset", self.matrix.datasets[0]))
        entries.append(uint32("quantize.imatrix.entries_count", len(self.matrix.sums)))
        if self.matrix.chunks:
            entries.append(uint32("quantize.imatrix.chunks_count", self.matrix.chunks))
        return entries


def importance_for(path: Path, tensors: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[Importance, list[Problem]]:
    """The file's importance of these tensors, (name, shape in torch order), and what does not belong together.

    Raises ModelError for a file that cannot be read.
    """
    matrix = read_imatrix(path)
    means, problems = {}, []
    for name, shape in tensors:
        sums = matrix.sums.get(name)
        if sums is None or len(shape) < 2:
            continue
        experts = shape[-3] if len(shape) > 2 else 1
        if sums.squares.size == experts * shape[-1]:
            means[name] = sums.means().reshape(experts, shape[-1])
        elif role_of(name) != "token_embd":  # what a tied head is multiplied by is no importance of a table's rows
            what = f"has {sums.squares.size} values for {name}, which is {list(shape)}"
            problems.append(Problem(str(path), what, "name the importance matrix of this model"))
    if not means and not problems:
        what = f"is of another model: it knows {shown(next(iter(matrix.sums)))}, which is no tensor here"
        problems.append(Problem(str(path), what, "name the importance matrix of this model"))
    return Importance(path, matrix, means), problems


def needs_importance(preset: Preset, name: str, kind: GgmlType) -> bool:
    """Whether a tensor of that type is refused without an importance of its own."""
    if role_of(name) in _TABLES:
        return kind.name in IMPORTANCE_TYPES
    return kind.name in _POOR or kind.name in preset.needs_importance


def missing(preset: Preset, types: Mapping[str, GgmlType], importance: Importance | None, model: str) -> list[Problem]:
    """One problem where tensors of `types` need an importance that there is not. model: as the user names it."""
    known = importance.means if importance is not None else {}
    lacking = [name for name, kind in types.items() if name not in known and needs_importance(preset, name, kind)]
    if not lacking:
        return []
    kinds = ", ".join(dict.fromkeys(types[name].name.lower() for name in lacking))
    by = f"llama-imatrix -m {model} -f TEXT" if model.endswith(".gguf") else f"packlight imatrix {model}"
    make = f"{by} -o imatrix.gguf"
    if importance is None:
        what = f"{several(lacking, 1)} would be {kinds}, of no use without an importance matrix"
        return [Problem(f"--quant {preset.name}", what, f"make one with '{make}', and add --imatrix imatrix.gguf")]
    what = f"has nothing for {several(lacking)}, which would be {kinds}"
    if all(role_of(name) in _TABLES for name in lacking):
        return [Problem(str(importance.path), what, "add --embedding-type q4_k --output-type q6_k, for example")]
    return [
        Problem(str(importance.path), what, f"make another with '{make}', on more text for experts, or add a --rule")
    ]


def uncounted(importance: Importance | None, types: Mapping[str, GgmlType]) -> list[str]:
    """A note on matrices of layers that are rounded without an importance, where others have one."""
    if importance is None:
        return []
    left = [
        name
        for name, kind in types.items()
        if name not in importance.means and kind.block_size > 1 and role_of(name) not in _TABLES
    ]
    if not left:
        return []
    return [f"the importance matrix has nothing for {several(left)}: rounded as if all columns counted the same"]
