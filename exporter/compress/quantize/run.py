"""Every matrix of a model onto its grid, layer after layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from exporter.compress.journal import Kept
from exporter.compress.quantize.autoround import autoround
from exporter.compress.quantize.gptq import Gptq, GptqOptions
from runtime.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import numpy.typing as npt

    from exporter.compress.quantize.autoround import AutoRoundOptions
    from exporter.compress.walk import Walk
    from targets.base import Progress
    from targets.grids import Grid

    Floats = npt.NDArray[np.float32]
    Bytes = npt.NDArray[np.uint8]
    Chooser = Callable[[Floats, Grid], Bytes]
    Method = Callable[[Floats | None], Chooser]

ROWS = 4096


@dataclass(frozen=True)
class Learned:
    """How AutoRound learns, and the seed of the order in which it sees the text."""

    options: AutoRoundOptions
    seed: int


def nearest(weight: Floats, hessian: Floats | None, grid: Grid) -> Bytes:
    """Round to nearest, scales searched for the inputs' energy: for GGUF what llama-quantize does with its imatrix.

    But for types of few codes, which llama-quantize has for weights that lie on them already.
    """
    importance = None if hessian is None or not hessian.any() else hessian.diagonal().copy()
    packed = []
    for start in range(0, len(weight), ROWS):
        rows = np.ascontiguousarray(weight[start : start + ROWS])
        packed.append(grid.rounded(rows, importance))
    return np.concatenate(packed)


def rtn(hessian: Floats | None) -> Chooser:
    """See `nearest`."""
    return lambda weight, grid: nearest(weight, hessian, grid)


def by_gptq(options: GptqOptions) -> Method:
    """GPTQ where inputs are known, else as `nearest`."""
    return lambda hessian: rtn(None) if hessian is None else Gptq(hessian, options)


METHODS: dict[str, Method] = {
    "rtn": rtn,
    "gptq": by_gptq(GptqOptions()),
    "gptq-natural": by_gptq(GptqOptions(activation_order=False)),
    "autoround": by_gptq(GptqOptions()),
}
"""Ways to choose codes, by name, made for the inputs that matrices read; AutoRound's start."""


def quantize(
    walk: Walk,
    grids: Mapping[str, Grid],
    method: Method,
    progress: Progress,
    learned: Learned | None = None,
    kept: Kept | None = None,
) -> dict[str, tuple[Grid, Bytes]]:
    """Put the weights of `grids` onto their grids, in the model too; their bytes by the weights' names.

    grids: by names of the model's state_dict; those that stand in no layer and are no head have no known inputs.
    learned: by AutoRound, layer by layer, from the codes that `method` chooses
    kept: is told each layer's bytes; a layer that it has is not computed again
    Raises OverflowError for weights too large for their grid, ModelError for one that the walk does not come by.
    """
    kept = kept or Kept()
    codes = _Codes(walk.model, grids, method)
    n_pieces = len(walk.layers) + 1
    for number in range(len(walk.layers)):
        progress("quantize", number, n_pieces)
        _piece(codes, f"layer-{number}", kept, partial(_layer, walk, number, codes, learned))
        walk.advance(number)
    progress("quantize", n_pieces - 1, n_pieces)
    _piece(codes, "head", kept, partial(_head, walk, codes))
    progress("quantize", n_pieces, n_pieces)
    if left := sorted(grids.keys() - codes.found.keys()):
        raise ModelError(
            f"{type(walk.model).__name__}: {left[0]} is no matrix of a decoder layer, no table and no head"
        )
    return codes.found


class _Codes:
    """The bytes that were found so far, by the weights' names; the model has their values."""

    def __init__(self, model: Any, grids: Mapping[str, Grid], method: Method) -> None:  # noqa: ANN401
        self.found: dict[str, tuple[Grid, Bytes]] = {}
        self._grids, self._method = grids, method
        self._modules = dict(model.named_modules())
        self.names = {id(module): f"{name}.weight" for name, module in self._modules.items()}

    def outside(self, layers: Any) -> list[Any]:  # noqa: ANN401 - a ModuleList
        """Modules with a matrix that stand in none of the layers."""
        within = {id(module) for module in layers.modules()}
        return [module for name, module in self._modules.items()
                if f"{name}.weight" in self._grids and id(module) not in within]  # fmt: skip

    def choose(self, modules: Iterable[Any], hessian: torch.Tensor | None) -> None:
        """Put the weights of modules that read one input onto their grids, where they have one and were not seen."""
        chooser = self._method(None if hessian is None else hessian.numpy())
        for module in modules:
            name = self.names[id(module)]
            grid = self._grids.get(name)
            if grid is not None and name not in self.found:
                self.put(name, chooser(module.weight.detach().numpy(), grid))

    def put(self, name: str, packed: Bytes) -> None:
        """Take these bytes for a weight."""
        grid = self._grids[name]
        self.found[name] = (grid, packed)
        module = self._modules[name.removesuffix(".weight")]
        module.weight.data.copy_(torch.from_numpy(grid.dequantize(packed)))


def _piece(codes: _Codes, name: str, kept: Kept, work: Callable[[], None]) -> None:
    """The bytes of a piece of the model as they were kept, or worked out now."""
    known = kept.load(name)
    if known is not None:
        for weight, packed in known.items():
            codes.put(weight, packed)
        return
    before = set(codes.found)
    work()
    made = {weight: packed for weight, (_, packed) in codes.found.items() if weight not in before}
    for weight, packed in kept.save(name, made).items():
        codes.found[weight] = (codes.found[weight][0], packed)


def _layer(walk: Walk, number: int, codes: _Codes, learned: Learned | None) -> None:
    layer, inputs = walk.layers[number], walk.observe(number)
    before = {name: layer.get_submodule(name).weight.detach().clone() for name in inputs.hessians} if learned else {}
    for _, shared in groupby(inputs.hessians.items(), lambda item: id(item[1])):
        named = dict(shared)
        codes.choose(map(layer.get_submodule, named), next(iter(named.values())))
    if learned is not None:
        _learn(walk, number, before, codes, learned)


def _head(walk: Walk, codes: _Codes) -> None:
    table, head = walk.model.get_input_embeddings(), walk.model.get_output_embeddings()
    if head is None:  # an encoder: its table, and the small matrices that make labels of what its layers give
        codes.choose(codes.outside(walk.layers), None)
        return
    hessian = walk.observe_head().hessians[""]
    if head.weight is table.weight:
        codes.choose([table], hessian)
    else:
        codes.choose([head], hessian)
        codes.choose([table], None)


def _learn(walk: Walk, number: int, before: Mapping[str, torch.Tensor], codes: _Codes, how: Learned) -> None:
    """Put the learned codes of a layer's matrices in place of those that were found, and into the model."""
    layer = walk.layers[number]
    full = {name: codes.names[id(layer.get_submodule(name))] for name in before}
    starts = {name: codes.found[key] for name, key in full.items() if key in codes.found}

    def run(chunk: int, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return walk.run(number, chunk, {f"{name}.weight": weight for name, weight in weights.items()})

    learned = autoround(
        {name: before[name].numpy() for name in starts}, starts, run, len(walk.hidden), how.seed, how.options
    )
    for name, packed in learned.items():
        codes.put(full[name], packed)
