"""The prune step of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from exporter.compress.prune.masks import lowest, lowest_of_groups, lowest_of_rows
from exporter.compress.prune.sparsegpt import sparsegpt
from exporter.compress.prune.wanda import wanda_scores
from exporter.compress.walk import Walk
from exporter.compress.which import excluding
from runtime.errors import UserError

if TYPE_CHECKING:
    import numpy.typing as npt

    from exporter.compress.subject import Subject
    from exporter.steps import Prune

    Floats = npt.NDArray[np.float32]


def run(step: Prune, subject: Subject) -> None:
    """See `exporter.compress.registry.Runner`. Magnitude needs no text; the others go layer by layer."""
    matrices = excluding(dict(subject.matrices()), step.exclude)
    pattern = _pattern(step, matrices)
    if step.method == "magnitude":
        _by_magnitude(step, pattern, matrices)
        return
    names = {id(module): name for name, module in matrices.items()}
    walk = Walk(subject.model, subject.chunks)
    for number, layer in enumerate(walk.layers):
        subject.progress("prune", number, len(walk.layers))
        for below, hessian in walk.observe(number).hessians.items():
            module = layer.get_submodule(below)
            if id(module) in names:
                put(module, _pruned(step, pattern, module.weight.detach().numpy(), hessian.numpy()))
        walk.advance(number)
    subject.progress("prune", len(walk.layers), len(walk.layers))


def put(module: Any, weight: Floats) -> None:  # noqa: ANN401 - a linear module
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
        mask = lowest(np.concatenate([np.abs(weight).reshape(-1) for weight in weights.values()]), step.sparsity)
        cuts = np.cumsum([weight.size for weight in weights.values()])[:-1]
        masks = dict(zip(weights, np.split(mask, cuts), strict=True))
    else:
        masks = {
            name: lowest(np.abs(weight), step.sparsity or 0.0)
            if pattern is None
            else lowest_of_groups(np.abs(weight), *pattern)
            for name, weight in weights.items()
        }
    for name, module in matrices.items():
        put(module, np.where(masks[name].reshape(weights[name].shape), np.float32(0), weights[name]))


def _pruned(step: Prune, pattern: tuple[int, int] | None, weight: Floats, hessian: Floats) -> Floats:
    if step.method == "sparsegpt":
        return sparsegpt(weight, hessian, step.sparsity or 0.0, pattern)
    scores = wanda_scores(weight, hessian)
    mask = lowest_of_rows(scores, step.sparsity or 0.0) if pattern is None else lowest_of_groups(scores, *pattern)
    return np.where(mask, np.float32(0), weight)
