"""Which grid every matrix of an export to a PyTorch format is stored on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from targets.groups import RowGrid
from targets.pytorch.groups import GroupGrid
from targets.pytorch.presets import GROUP, INT4, INT8

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from targets.groups import GroupedGrid
    from targets.onnx.encoder_spec import EncoderSpec
    from targets.onnx.weights import Matrix
    from targets.pytorch.presets import Preset

_QKV, _OUTPUT, _DOWN = ("attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_down",)
DECODER = (_QKV, _OUTPUT, ("ffn_gate", "ffn_up"), _DOWN)
"""Matrices of a layer, together those that read one input: they are of one kind, and one product in TorchScript."""
ENCODER = (_QKV, _OUTPUT, ("ffn_up",), _DOWN)


def decoder_grids(preset: Preset, matrices: Mapping[str, Matrix], n_layers: int) -> dict[str, GroupedGrid]:
    """The grids by names of `matrices`; what is not named stays in floats or is quantized while it is computed with.

    matrices: see `targets.pytorch.plan.Plan`
    """
    found: dict[str, GroupedGrid] = {}
    for name in ("token_embd.weight", "output.weight"):
        if name in matrices:
            found |= _of_product(preset, matrices, preset.table, [name])
    for layer in range(n_layers):
        for roles in DECODER:
            names = [f"blk.{layer}.{role}.weight" for role in roles]
            found |= _of_product(preset, matrices, preset.kind(roles[0], layer, n_layers), names)
    return found


def encoder_grids(preset: Preset, matrices: Mapping[str, Matrix], spec: EncoderSpec) -> dict[str, GroupedGrid]:
    """As `decoder_grids`. A classifier's matrices stay in floats: they are small and decide."""
    family = spec.family
    found = _of_product(preset, matrices, preset.table, [f"{family.embeddings['word']}.weight"])
    for layer in range(spec.n_layers):
        for roles in ENCODER:
            names = [f"{family.layers.format(i=layer)}{family.modules[role]}.weight" for role in roles]
            found |= _of_product(preset, matrices, preset.kind(roles[0], layer, spec.n_layers), names)
    return found


def _of_product(preset: Preset, matrices: Mapping[str, Matrix], kind: str, names: Sequence[str]
                ) -> dict[str, GroupedGrid]:  # fmt: skip
    if kind not in (INT4, INT8):
        return {}
    found: dict[str, GroupedGrid] = {}
    for bundle in _bundles(matrices, names):
        shapes = [matrices[name].parts[0].fact.shape for name in bundle]
        columns = shapes[0][1]
        fits = columns % GROUP == 0 and sum(rows for rows, _ in shapes) % preset.outputs == 0
        grid: GroupedGrid = GroupGrid(GROUP, preset.shifted) if kind == INT4 and fits else RowGrid(columns)
        found |= dict.fromkeys(bundle, grid)
    return found


def _bundles(matrices: Mapping[str, Matrix], names: Sequence[str]) -> Iterator[list[str]]:
    """Of matrices that read one input, what is stored as one: all, or where some are factorized each for itself."""
    if all(name in matrices for name in names):
        yield list(names)
        return
    for name in names:
        if name in matrices:
            yield [name]
        else:
            yield from ([f"{name.removesuffix('.weight')}.{side}.weight"] for side in ("right", "left"))
