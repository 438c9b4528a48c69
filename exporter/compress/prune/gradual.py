"""Gradual magnitude pruning: zeros come little by little while all other weights learn (https://arxiv.org/abs/1710.01878)."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from exporter.compress.prune.magnitude import smallest, smallest_of_all
from exporter.compress.prune.schedule import sparsity_at
from exporter.compress.training.lessons import lessons
from exporter.compress.training.student import Student, zeros_of
from exporter.compress.training.trainer import train

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    import numpy.typing as npt
    from torch.nn import Parameter

    from exporter.compress.subject import Subject
    from exporter.steps import Prune

    Mask = npt.NDArray[np.bool_]

END = 0.6
"""Share of the updates after which no more is pruned, and from which on the held-out text judges."""
TIMES = 50
"""So often, at most, more is pruned."""


def prune_gradually(step: Prune, subject: Subject, matrices: Mapping[str, Any]) -> None:
    """Train the subject's model on `step.training`, and bring its matrices to `step.sparsity` meanwhile."""
    assert step.training is not None
    assert step.sparsity is not None
    taught = lessons(step.training, subject)
    weights = {name: module.weight for name, module in matrices.items()}
    pruning = Pruning(weights, step.sparsity, step.training.updates, over_all=step.scope == "global")
    student = Student(
        subject.model,
        list(subject.model.parameters()),
        zeros={weight: partial(zeros_of, weight) for weight in weights.values()},
        before=pruning.at_once,
        after_update=pruning.advance,
        judged_from=pruning.end,
    )
    train(student, taught, step.training, subject, "prune, all at once before")


@dataclass(frozen=True)
class Pruning:
    """Weights that lose their smallest on a schedule.

    sparsity: the share of zeros at the end; updates: of the training; over_all: one threshold for all matrices
    """

    weights: Mapping[str, Parameter]
    sparsity: float
    updates: int
    over_all: bool

    @property
    def end(self) -> int:
        """The update after which no more is pruned."""
        return max(1, round(END * self.updates))

    def advance(self, update: int, optimizer: Any) -> None:  # noqa: ANN401 - torch's, as accelerate has wrapped it
        """After an update: set to zero what is due by now, once for all."""
        if update > self.end or (update % max(1, self.end // TIMES) and update != self.end):
            return
        for name, mask in self._masks(sparsity_at(update, 0, self.end, 0.0, self.sparsity)).items():
            weight, gone = self.weights[name], torch.from_numpy(mask).to(self.weights[name].device)
            weight.data.masked_fill_(gone, 0)
            # What Adam remembers of a gradient would move the zero on.
            optimizer.state[weight]["exp_avg"].masked_fill_(gone, 0)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Meanwhile everything is pruned that will be: what a training has to do better than."""
        kept = {name: weight.data for name, weight in self.weights.items()}
        try:
            for name, mask in self._masks(self.sparsity).items():
                self.weights[name].data = kept[name].masked_fill(torch.from_numpy(mask).to(kept[name].device), 0)
            yield
        finally:
            for name, weight in self.weights.items():
                weight.data = kept[name]

    def _masks(self, sparsity: float) -> dict[str, Mask]:
        values = {name: weight.detach().cpu().numpy() for name, weight in self.weights.items()}
        if self.over_all:
            return smallest_of_all(values, sparsity)
        return {name: smallest(value, sparsity) for name, value in values.items()}
