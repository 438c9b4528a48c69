"""AutoRound: which of two codes every weight takes, learned by the signs of gradients (https://arxiv.org/abs/2309.05516).

A layer's matrices are learned together, so that its output on the calibration text stays near. Scales stay as they are:
a k-quant's are multiples that ggml has chosen, and no gradient moves them. What is learned may start from the codes of
any method; from GPTQ's it goes on where that stopped, which saw one matrix at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from exporter.compress.quantize.gptq import is_pruned

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from targets.grids import Grid

    Floats = npt.NDArray[np.float32]
    Bytes = npt.NDArray[np.uint8]
    Run = Callable[[int, Mapping[str, torch.Tensor]], torch.Tensor]


@dataclass(frozen=True)
class AutoRoundOptions:
    """How to learn.

    iterations: steps, each on one piece of the text; rate: the first step's length, of the distance between two codes,
        the last one's is none: the paper's for its 200 steps, and no longer for fewer
    """

    iterations: int = 200
    rate: float = 0.005


@dataclass
class _Choice:
    """A matrix between two codes a weight: `kept + (other - kept) * [share + moved > 1/2]`.

    kept, other: values of the start's code and of its neighbour towards the weight, equal where there is none
    share: how far the weight itself lies towards `other`, at most 1/2; moved: what is learned, in -1/2..1/2
    """

    kept: torch.Tensor
    other: torch.Tensor
    share: torch.Tensor
    moved: torch.Tensor
    codes: Bytes
    other_codes: Bytes

    def soft(self) -> torch.Tensor:
        """The weights as they round by now; gradients pass through the rounding to `moved`."""
        point = (self.share + self.moved).clamp(0, 1)
        hard = (point > 0.5).float()
        return self.kept + (self.other - self.kept) * (hard + point - point.detach())

    def taken(self) -> Bytes:
        """The codes by now."""
        swap = (self.share + self.moved > 0.5).numpy()
        found: Bytes = np.where(swap, self.other_codes, self.codes)
        return found


def autoround(
    weights: Mapping[str, Floats], starts: Mapping[str, tuple[Grid, Bytes]], run: Run, n_chunks: int, seed: int = 0,
    options: AutoRoundOptions | None = None,
) -> dict[str, Bytes]:  # fmt: skip
    """The bytes of a layer's matrices on their grids, by name.

    weights: as they were, (rows, columns); starts: their grids, and bytes whose scales stay and whose codes come first
    run: the layer's output for piece `number` of the text, with these weights
    What was learned is kept only where its error over all pieces is below that of the start.
    """
    options = options or AutoRoundOptions()
    choices = {name: _choice(weights[name], *starts[name]) for name in starts}
    dense = {name: torch.from_numpy(np.array(weights[name])) for name in starts}
    with torch.no_grad():
        wanted = [run(number, dense) for number in range(n_chunks)]
        before = _error(choices, run, wanted)
    generator = torch.Generator().manual_seed(seed)
    best = {name: choice.taken() for name, choice in choices.items()}
    order: list[int] = []
    for step in range(options.iterations):
        order = order or torch.randperm(n_chunks, generator=generator).tolist()
        number = order.pop()
        for choice in choices.values():
            choice.moved.requires_grad_(True)
        output = run(number, {name: choice.soft() for name, choice in choices.items()})
        _distance(output, wanted[number]).backward()  # type: ignore[no-untyped-call]
        length = options.rate * (1 - step / options.iterations)
        for choice in choices.values():
            gradient = choice.moved.grad
            choice.moved = choice.moved.detach()
            if gradient is not None:
                choice.moved.sub_(length * gradient.sign()).clamp_(-0.5, 0.5)
    with torch.no_grad():
        if _error(choices, run, wanted) < before:
            best = {name: choice.taken() for name, choice in choices.items()}
    return {name: grid.pack(grid.fitted(packed), best[name]) for name, (grid, packed) in starts.items()}


def _error(choices: Mapping[str, _Choice], run: Run, wanted: list[torch.Tensor]) -> float:
    """Summed squared error of the layer's output."""
    now = {name: choice.soft() for name, choice in choices.items()}
    return sum(float(_distance(run(number, now), output)) for number, output in enumerate(wanted))


def _distance(output: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Squared error, every token's by its own energy: the norm that comes next sees no token's length."""
    return ((output - wanted).square().sum(-1) / wanted.square().sum(-1)).sum()


def _choice(weight: Floats, grid: Grid, packed: Bytes) -> _Choice:
    fitted = grid.fitted(packed)
    scales, offsets = (grid.spread(part, slice(None)) for part in (fitted.scales, fitted.offsets))
    kept = grid.dequantize(packed)
    codes = grid.nearest(kept, scales, offsets)
    # A step up in the code is a step down in the weight where the scale is negative.
    up = (weight > kept) == (scales > 0)
    stepped = codes.astype(np.int16) + np.where(up, 1, -1)
    inside = (stepped >= 0) & (stepped <= grid.largest) & (scales != 0)
    if is_pruned(weight):
        inside &= weight != 0  # what was pruned stays so
    other_codes = np.where(inside, stepped, codes).astype(np.uint8)
    other = grid.values(other_codes, scales, offsets)
    width = np.where(other == kept, np.float32(1), other - kept)
    # The start's code is what zero movement gives; where it is not the nearest, it is as firm as if it were.
    share = (weight - kept) / width
    share = np.clip(np.minimum(share, 1 - share), 0, np.float32(0.4999))
    share[other_codes == codes] = 0
    floats = [torch.from_numpy(part.astype(np.float32)) for part in (kept, other, share)]
    return _Choice(floats[0], floats[1], floats[2], torch.zeros(weight.shape), codes, other_codes)
