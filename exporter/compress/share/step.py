"""The share step of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from exporter.compress.share.codebook import shared
from exporter.compress.walk import Walk
from exporter.compress.which import excluding
from runtime.errors import UserError

if TYPE_CHECKING:
    from typing import Any

    from exporter.compress.subject import Subject
    from exporter.steps import ShareWeights


def run(step: ShareWeights, subject: Subject) -> None:
    """See `exporter.compress.registry.Runner`."""
    if step.method == "codebook":
        _codebooks(step, subject)
        where = f"{1 << step.bits} values a matrix"
    else:
        where = "the same weights in two layers"
        _layers(step, subject)
    subject.notes.append(f"share: {where}; 'packlight pack' stores them once, the formats themselves are no smaller")


def _codebooks(step: ShareWeights, subject: Subject) -> None:
    """Every matrix by its own codebook, layer after layer, errors weighed by the inputs' energy."""
    matrices = excluding(dict(subject.matrices()), step.exclude)
    chosen = {id(module) for module in matrices.values()}
    walk = Walk(subject.model, subject.chunks)
    for number, layer in enumerate(walk.layers):
        subject.progress("share", number, len(walk.layers))
        for below, hessian in walk.observe(number).hessians.items():
            module = layer.get_submodule(below)
            if id(module) in chosen:
                energy = hessian.diagonal().numpy()
                made = shared(module.weight.detach().numpy(), step.bits, energy if energy.any() else None)
                module.weight.data.copy_(torch.from_numpy(made))
        walk.advance(number)
    subject.progress("share", len(walk.layers), len(walk.layers))


def _layers(step: ShareWeights, subject: Subject) -> None:
    """The layers that cost least take the weights of the layer before them; no layer is in two pairs."""
    layers = subject.model.base_model.layers
    if step.count > len(layers) // 2:
        raise UserError(
            f"--recipe: share count {step.count}: {len(layers)} layers are {len(layers) // 2} pairs at most"
        )
    costs = _costs(subject)
    taken: set[int] = set()
    pairs: list[int] = []
    for number in sorted(costs, key=lambda one: (costs[one], one)):
        if len(pairs) < step.count and not {number, number - 1} & taken:
            pairs.append(number)
            taken |= {number, number - 1}
    if len(pairs) < step.count:
        raise UserError(f"--recipe: share count {step.count}: only {len(pairs)} pairs of like layers were found")
    for number in pairs:
        layers[number].load_state_dict(layers[number - 1].state_dict())
    said = ", ".join(f"{number - 1} for {number}" for number in sorted(pairs))
    subject.notes.append(f"share: layers, counted from 0: {said}")


def _costs(subject: Subject) -> dict[int, float]:
    """How far the hidden state is off where a layer takes the weights of the one before it, by the layer's number."""
    walk = Walk(subject.model, subject.chunks)
    found: dict[int, float] = {}
    for number, layer in enumerate(walk.layers):
        subject.progress("share", number, len(walk.layers))
        before = walk.layers[number - 1] if number else None
        if before is not None and _alike(layer, before):
            weights = {name: tensor.detach() for name, tensor in before.named_parameters()}
            with torch.no_grad():
                errors = []
                for chunk in range(len(walk.hidden)):
                    own, other = walk.run(number, chunk, {}), walk.run(number, chunk, weights)
                    errors.append(((own - other).norm(dim=-1) / own.norm(dim=-1)).mean())
            found[number] = float(torch.stack(errors).mean())
        walk.advance(number)
    subject.progress("share", len(walk.layers), len(walk.layers))
    return found


def _alike(one: Any, other: Any) -> bool:  # noqa: ANN401
    shapes = [{name: tensor.shape for name, tensor in layer.named_parameters()} for layer in (one, other)]
    return shapes[0] == shapes[1]
