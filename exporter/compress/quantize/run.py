"""Every matrix of a decoder onto its grid, layer after layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from exporter.compress.quantize.autoround import autoround
from exporter.compress.quantize.gptq import GptqOptions, gptq
from runtime.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from exporter.compress.quantize.autoround import AutoRoundOptions
    from exporter.compress.walk import Walk
    from targets.base import Progress
    from targets.grids import Grid

    Floats = npt.NDArray[np.float32]
    Bytes = npt.NDArray[np.uint8]
    Method = Callable[[Floats, Floats | None, Grid], Bytes]

ROWS = 4096


@dataclass(frozen=True)
class Learned:
    """How AutoRound learns, and the seed of the order in which it sees the text."""

    options: AutoRoundOptions
    seed: int


def nearest(weight: Floats, hessian: Floats | None, grid: Grid) -> Bytes:
    """Round to nearest, scales searched for the inputs' energy: for GGUF what llama-quantize does with its imatrix."""
    importance = None if hessian is None or not hessian.any() else hessian.diagonal().copy()
    packed = []
    for start in range(0, len(weight), ROWS):
        rows = np.ascontiguousarray(weight[start : start + ROWS])
        packed.append(grid.rounded(rows, importance))
    return np.concatenate(packed)


def by_gptq(options: GptqOptions) -> Method:
    """GPTQ where inputs are known, else as `nearest`."""

    def choose(weight: Floats, hessian: Floats | None, grid: Grid) -> Bytes:
        return nearest(weight, None, grid) if hessian is None else gptq(weight, hessian, grid, options)

    return choose


METHODS: dict[str, Method] = {
    "rtn": nearest,
    "gptq": by_gptq(GptqOptions()),
    "gptq-natural": by_gptq(GptqOptions(activation_order=False)),
    "autoround": by_gptq(GptqOptions()),
}
"""Ways to choose codes, by name; AutoRound's start."""


def quantize(
    walk: Walk, grids: Mapping[str, Grid], method: Method, progress: Progress, learned: Learned | None = None
) -> dict[str, tuple[Grid, Bytes]]:
    """Put the weights of `grids` onto their grids, in the model too; their bytes by the weights' names.

    grids: by names of the model's state_dict; those that stand in no layer and are no head have no known inputs.
    learned: by AutoRound, layer by layer, from the codes that `method` chooses
    Raises OverflowError for weights too large for their grid, ModelError for one that the walk does not come by.
    """
    found: dict[str, tuple[Grid, Bytes]] = {}
    names = {id(module): name for name, module in walk.model.named_modules()}

    def put(name: str, module: Any, hessian: torch.Tensor | None) -> None:  # noqa: ANN401 - a module of torch
        grid = grids.get(name)
        if grid is None or name in found:
            return
        packed = method(module.weight.detach().numpy(), None if hessian is None else hessian.numpy(), grid)
        found[name] = (grid, packed)
        module.weight.data.copy_(torch.from_numpy(grid.dequantize(packed)))

    head = walk.model.get_output_embeddings()
    tied = head.weight is walk.model.get_input_embeddings().weight
    for number, layer in enumerate(walk.layers):
        progress("quantize", number, len(walk.layers) + 1)
        inputs = walk.observe(number)
        before = (
            {name: layer.get_submodule(name).weight.detach().clone() for name in inputs.hessians} if learned else {}
        )
        for name, hessian in inputs.hessians.items():
            module = layer.get_submodule(name)
            put(f"{names[id(module)]}.weight", module, hessian)
        if learned is not None:
            _learn(walk, number, before, found, learned)
        walk.advance(number)
    progress("quantize", len(walk.layers), len(walk.layers) + 1)
    hessian = walk.observe_head().hessians[""]
    table = walk.model.get_input_embeddings()
    if tied:
        put(f"{names[id(table)]}.weight", table, hessian)
        head.weight = table.weight
    else:
        put(f"{names[id(head)]}.weight", head, hessian)
        put(f"{names[id(table)]}.weight", table, None)
    progress("quantize", len(walk.layers) + 1, len(walk.layers) + 1)
    if left := sorted(grids.keys() - found.keys()):
        raise ModelError(
            f"{type(walk.model).__name__}: {left[0]} is no matrix of a decoder layer, no table and no head"
        )
    return found


def _learn(
    walk: Walk, number: int, before: Mapping[str, torch.Tensor], found: dict[str, tuple[Grid, Bytes]], how: Learned
) -> None:
    """Put the learned codes of a layer's matrices in place of those in `found`, and into the model."""
    layer = walk.layers[number]
    names = {id(module): name for name, module in walk.model.named_modules()}
    full = {name: f"{names[id(layer.get_submodule(name))]}.weight" for name in before}
    starts = {name: found[key] for name, key in full.items() if key in found}

    def run(chunk: int, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return walk.run(number, chunk, {f"{name}.weight": weight for name, weight in weights.items()})

    learned = autoround(
        {name: before[name].numpy() for name in starts}, starts, run, len(walk.hidden), how.seed, how.options
    )
    for name, packed in learned.items():
        grid = starts[name][0]
        found[full[name]] = (grid, packed)
        layer.get_submodule(name).weight.data.copy_(torch.from_numpy(grid.dequantize(packed)))
