"""Whole layers out of a model: those that change the hidden state, or what the model says, least.

Sources: ShortGPT (https://arxiv.org/abs/2403.03853), greedy layer pruning (https://arxiv.org/abs/2105.14839)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from exporter.compress.remove.scores import felt, growth, influence
from exporter.compress.stack import layers_of, put_layers
from exporter.compress.training.lessons import Batch, Lessons
from exporter.compress.training.predictions import arguments, predictions
from exporter.compress.walk import skipped
from exporter.compress.widths import said_widths
from exporter.steps import Distill
from runtime.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporter.compress.subject import Subject

LOOKED_AT = 2048
"""Tokens of the calibration text on which `greedy` tries the model without a layer, once for each that may go."""


def remove_layers(subject: Subject, count: int, scores: str) -> None:
    """Take `count` layers out, and say so in the configuration."""
    found = _CHOOSING[scores](subject, count) if scores in _CHOOSING else _SCORES[scores](subject)
    out = set(np.argsort(found, kind="stable")[:count].tolist())
    before, config = layers_of(subject.model), subject.model.config
    kept = [number for number in range(len(found)) if number not in out]
    layers = [before[number] for number in kept]
    for there, layer in zip(before, layers, strict=False):
        if [name for name, _ in there.named_parameters()] != [name for name, _ in layer.named_parameters()]:
            what = "would put a layer where transformers builds another kind of layer"
            raise UserError(f"--recipe: remove layers with scores {scores} {what}; say other scores, or another count")
    for number, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number  # a cache is filled by it
    put_layers(subject.model, torch.nn.ModuleList(layers))
    subject.layers = [subject.layers[number] for number in kept] if subject.layers else []
    key = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")  # DistilBERT's file calls it n_layers
    config.num_hidden_layers = subject.config[key] = len(kept)
    subject.config |= said_widths(subject.model)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        config.layer_types = [kinds[number] for number in kept]
        if len(set(kinds)) > 1 or "layer_types" in subject.facts.config:
            subject.config["layer_types"] = config.layer_types
    subject.notes.append(f"removed layers, counted from 0: {', '.join(map(str, sorted(out)))}")


def _spaced(subject: Subject, count: int) -> list[float]:
    """Ones for the layers that stay, evenly apart from the first to the last (DistilBERT's start).

    Source: https://arxiv.org/abs/1910.01108, section 3
    """
    total = len(layers_of(subject.model))
    found = np.zeros(total)
    found[np.linspace(0, total - 1, total - count).round().astype(int)] = 1
    return [float(one) for one in found]


def _greedy(subject: Subject, count: int) -> list[float]:
    """Ones for the layers that stay: one after the other goes without which the model says what is nearest to before.

    How near is the usual loss of distillation for what the model is for. Source: https://arxiv.org/abs/2105.14839, but
    for the loss, which there is that of a task.
    """
    model, layers = subject.model, layers_of(subject.model)
    judge = predictions(Distill(step="distill", updates=1), subject)
    pieces = _looked_at(subject.chunks)
    # Pieces of unlike lengths, in arrays of their own: none is filled up.
    lessons = [
        Lessons([Batch(np.array([ids], np.int32), *judge.taught(subject.source, [ids]))], judge.pad) for ids in pieces
    ]
    asked = [one.collate([one[0]]) for one in lessons]
    gone: list[int] = []
    done, total = 0, sum(len(layers) - number for number in range(count))
    for _ in range(count):
        far = {}
        for number in (number for number in range(len(layers)) if number not in gone):
            subject.progress("greedy", done, total)
            with torch.no_grad(), skipped([layers[one] for one in (*gone, number)]):
                losses = [float(judge.loss(model(**arguments(inputs)), inputs)) for inputs in asked]
            far[number], done = sum(losses), done + 1
        gone.append(min(far, key=lambda number: far[number]))
    subject.progress("greedy", total, total)
    return [float(number not in gone) for number in range(len(layers))]


def _looked_at(chunks: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """The first pieces of a text that have LOOKED_AT tokens together; one at least."""
    ends = np.cumsum([len(ids) for ids in chunks])
    return list(chunks[: max(1, int(np.searchsorted(ends, LOOKED_AT, side="right")))])


def _by_influence(subject: Subject) -> list[float]:
    return influence(subject.walk(subject.chunks), subject.progress)


def _by_activation(subject: Subject) -> list[float]:
    return growth(subject.walk(subject.chunks), subject.progress)


def _by_magnitude(subject: Subject) -> list[float]:
    return [
        float(sum(parameter.detach().square().sum() for parameter in layer.parameters() if parameter.dim() == 2))
        for layer in layers_of(subject.model)
    ]


def _by_gradient(subject: Subject) -> list[float]:
    layers = subject.model.base_model.layers
    watched = [(_Added(layer), _added, 1) for layer in layers]
    for adding in (adding for adding, _, _ in watched):
        adding.listen()
    try:
        return [float(one) for one in felt(subject.model, subject.chunks, watched, subject.progress)]
    finally:
        for adding in (adding for adding, _, _ in watched):
            adding.stop()


class _Added:
    """Stands for a layer where a hook is wanted on what it adds: its output is made anew as input plus that."""

    def __init__(self, layer: Any) -> None:  # noqa: ANN401 - a decoder layer
        self.layer = layer
        self.hook: Any = None
        self.handle: Any = None

    def register_forward_hook(self, hook: Any) -> Any:  # noqa: ANN401
        self.hook = hook
        return self

    def remove(self) -> None:
        self.hook = None

    def listen(self) -> None:
        def split(_module: Any, args: Any, output: Any) -> Any:  # noqa: ANN401
            added = output - args[0]
            if self.hook is not None:
                self.hook(self.layer, args, added)
            return args[0] + added

        self.handle = self.layer.register_forward_hook(split)

    def stop(self) -> None:
        self.handle.remove()


def _added(_args: Any, output: Any) -> torch.Tensor:  # noqa: ANN401
    found: torch.Tensor = output
    return found


_CHOOSING = {"spaced": _spaced, "greedy": _greedy}
"""Scores that go by how many layers are to be removed."""
_SCORES = {
    "influence": _by_influence,
    "activation": _by_activation,
    "magnitude": _by_magnitude,
    "gradient": _by_gradient,
}
