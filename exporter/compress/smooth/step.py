"""The smooth step of a recipe: the function stays, the channels' sizes do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from exporter.compress.links import Link, links
from exporter.compress.smooth.awq import Reader, awq_factors
from exporter.compress.smooth.smoothquant import smoothquant_factors
from exporter.compress.walk import Walk
from runtime.errors import ModelError, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from torch import Tensor

    from exporter.compress.subject import Subject
    from exporter.compress.walk import Inputs
    from exporter.steps import Smooth
    from targets.grids import Grid


def run(step: Smooth, subject: Subject) -> None:
    """See `exporter.compress.registry.Runner`. Layer after layer, link after link."""
    grids = _grids(subject) if step.method == "awq" else {}
    names = {id(module): f"{name}.weight" for name, module in subject.model.named_modules()}
    walk, config, powers = Walk(subject.model, subject.chunks), subject.model.config, []
    for number, layer in enumerate(walk.layers):
        subject.progress("smooth", number, len(walk.layers))
        for link in _links(layer, config):
            # Inputs anew for every link: the one before has changed what this one's consumers get.
            seen = walk.observe(number)
            if step.method == "smoothquant":
                factors = _by_peaks(link, seen, step.strength)
            else:
                factors, power = _by_search(link, seen, grids, names)
                powers.append(power)
            link.scale(factors)
        walk.advance(number)
    subject.progress("smooth", len(walk.layers), len(walk.layers))
    if powers:
        moved, mean = sum(power > 0 for power in powers), sum(powers) / len(powers)
        subject.notes.append(f"awq: {moved} of {len(powers)} links are scaled, the mean power is {mean:.2f}")


def _links(layer: Any, config: Any) -> list[Link]:  # noqa: ANN401
    try:
        return list(links(layer, config))
    except AttributeError as error:
        raise ModelError(f"{type(layer).__name__}: is built otherwise than packlight knows ({error})") from error


def _grids(subject: Subject) -> Mapping[str, Grid]:
    """The grids of the recipe's quantize step. Raises UserError where it has none."""
    from exporter.compress.quantize.step import preset_grids

    last = subject.recipe.steps[-1]
    if last.step != "quantize":
        raise UserError("--recipe: smooth awq needs to know the grid; end the recipe with a quantize step")
    return preset_grids(last, subject)


def _by_peaks(link: Link, seen: Inputs, strength: float) -> Tensor:
    name = next(iter(link.consumers))
    weights = [link.gathered(module.weight.detach().abs().amax(0))[None] for module in link.consumers.values()]
    return smoothquant_factors(link.gathered(seen.peaks[name]), weights, strength)


def _by_search(link: Link, seen: Inputs, grids: Mapping[str, Grid], names: dict[int, str]) -> tuple[Tensor, float]:
    readers = [
        Reader(module.weight.detach().numpy(), seen.hessians[name].numpy(), grids[names[id(module)]])
        for name, module in link.consumers.items()
        if names[id(module)] in grids
    ]
    if not readers:
        return torch.ones(link.channels), 0.0
    hessian = seen.hessians[next(iter(link.consumers))]
    return awq_factors(link.gathered(hessian.diagonal()), readers, link.read)
