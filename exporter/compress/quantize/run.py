"""Every matrix of a decoder onto its grid, layer after layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from exporter.compress.quantize.gptq import GptqOptions, gptq

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from exporter.compress.walk import Walk
    from targets.base import Progress
    from targets.gguf.grids import GgufGrid

    Floats = npt.NDArray[np.float32]
    Bytes = npt.NDArray[np.uint8]
    Method = Callable[[Floats, Floats | None, GgufGrid], Bytes]

ROWS = 4096


def nearest(weight: Floats, hessian: Floats | None, grid: GgufGrid) -> Bytes:
    """Round to nearest, scales searched by ggml for the inputs' energy: what llama-quantize does with its imatrix."""
    importance = None if hessian is None or not hessian.any() else hessian.diagonal().copy()
    packed = []
    for start in range(0, len(weight), ROWS):
        rows = np.ascontiguousarray(weight[start : start + ROWS])
        fitted = grid.fit(rows, importance)
        packed.append(fitted.raw.reshape(len(rows), -1))
    return np.concatenate(packed)


def by_gptq(options: GptqOptions) -> Method:
    """GPTQ where inputs are known, else as `nearest`."""

    def choose(weight: Floats, hessian: Floats | None, grid: GgufGrid) -> Bytes:
        return nearest(weight, None, grid) if hessian is None else gptq(weight, hessian, grid, options)

    return choose


METHODS: dict[str, Method] = {
    "rtn": nearest,
    "gptq": by_gptq(GptqOptions()),
    "gptq-natural": by_gptq(GptqOptions(activation_order=False)),
}
"""Ways to choose codes, by name."""


def quantize(
    walk: Walk, grids: Mapping[str, GgufGrid], method: Method, progress: Progress
) -> dict[str, tuple[GgufGrid, Bytes]]:
    """Put the weights of `grids` onto their grids, in the model too; their bytes by the weights' names.

    grids: by names of the model's state_dict; those that stand in no layer and are no head have no known inputs.
    Raises OverflowError for weights too large for their grid.
    """
    found: dict[str, tuple[GgufGrid, Bytes]] = {}
    names = {id(module): name for name, module in walk.model.named_modules()}

    def put(name: str, module: Any, hessian: torch.Tensor | None) -> None:  # noqa: ANN401 - a module of torch
        grid = grids.get(name)
        if grid is None or name in found:
            return
        packed = method(module.weight.detach().numpy(), None if hessian is None else hessian.numpy(), grid)
        found[name] = (grid, packed)
        module.weight.data = torch.from_numpy(grid.dequantize(packed))

    head = walk.model.get_output_embeddings()
    tied = head.weight is walk.model.get_input_embeddings().weight
    for number, layer in enumerate(walk.layers):
        progress("quantize", number, len(walk.layers) + 1)
        inputs = walk.observe(number)
        for name, hessian in inputs.hessians.items():
            module = layer.get_submodule(name)
            put(f"{names[id(module)]}.weight", module, hessian)
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
    return found
