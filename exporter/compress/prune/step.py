"""The prune step of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from exporter.compress.prune.magnitude import smallest, smallest_of_all
from exporter.compress.prune.sparsegpt import sparsegpt
from exporter.compress.prune.wanda import wanda
from exporter.compress.walk import Walk
from exporter.compress.which import excluding
from runtime.errors import ModelError, UserError

if TYPE_CHECKING:
    import numpy.typing as npt

    from exporter.compress.subject import Subject
    from exporter.steps import Prune

    Floats = npt.NDArray[np.float32]


def run(step: Prune, subject: Subject) -> None:
    """See `exporter.compress.registry.Runner`. Magnitude needs no text; the others go layer by layer."""
    matrices = excluding(dict(subject.matrices()), step.exclude)
    if step.training is not None:
        from exporter.compress.prune.gradual import prune_gradually

        prune_gradually(step, subject, matrices)
        return
    pattern = _pattern(step, matrices)
    if step.method == "magnitude":
        _by_magnitude(step, pattern, matrices)
        return
    left = {id(module): name for name, module in matrices.items()}
    walk = Walk(subject.model, subject.chunks)
    for number, layer in enumerate(walk.layers):
        subject.progress("prune", number, len(walk.layers))
        for below, hessian in walk.observe(number).hessians.items():
            module = layer.get_submodule(below)
            if left.pop(id(module), None) is not None:
                _put(module, _pruned(step, pattern, module.weight.detach().numpy(), hessian.numpy()))
        walk.advance(number)
    subject.progress("prune", len(walk.layers), len(walk.layers))
    if left:
        name = next(iter(left.values()))
        raise ModelError(f"{subject.facts.requested}: {name} was given nothing to judge it by; use method magnitude")


def _put(module: Any, weight: Floats) -> None:  # noqa: ANN401 - a linear module
    """Write a module's weight in place."""
    module.weight.data.copy_(torch.from_numpy(weight))


def _pattern(step: Prune, matrices: dict[str, Any]) -> tuple[int, int] | None:
    if step.pattern is None:
        return None
    kept, of = map(int, step.pattern.split(":"))
    for name, module in matrices.items():
        if module.weight.shape[1] % of:
            raise UserError(
                f"--recipe: {name}: rows of {module.weight.shape[1]} weights are no whole groups of {of}; exclude it"
            )
    return kept, of


def _by_magnitude(step: Prune, pattern: tuple[int, int] | None, matrices: dict[str, Any]) -> None:
    weights = {name: module.weight.detach().numpy() for name, module in matrices.items()}
    if step.scope == "global" and step.sparsity is not None:
        masks = smallest_of_all(weights, step.sparsity)
    else:
        masks = {name: smallest(weight, step.sparsity or 0.0, pattern) for name, weight in weights.items()}
    for name, module in matrices.items():
        _put(module, np.where(masks[name], np.float32(0), weights[name]))


def _pruned(step: Prune, pattern: tuple[int, int] | None, weight: Floats, hessian: Floats) -> Floats:
    if step.method == "sparsegpt":
        return sparsegpt(weight, hessian, step.sparsity or 0.0, pattern)
    return np.where(wanda(weight, hessian, step.sparsity or 0.0, pattern), np.float32(0), weight)
