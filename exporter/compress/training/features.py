"""What lies within a teacher, for a student to follow: outputs of its layers and attention maps.

The teacher runs beside the student: what its layers give would take a thousand times the disk of what it predicts. So
what it predicts is had there too.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from exporter.compress.stack import find_attention, find_layers, layers_of
from exporter.compress.training.losses import DISTANCES, attention_divergence
from exporter.compress.training.predictions import arguments, in_precision
from exporter.compress.training.sharded import split_over
from runtime.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from exporter.compress.subject import Subject
    from exporter.steps import Features, Training

    Pairs = Sequence[tuple[int, int]]

PROJECTIONS = "projections.safetensors"
"""Beside the weights in a checkpoint."""


class Followed:
    """A student's layers and those of its teacher that they follow.

    hidden, maps: pairs of layers, the student's and the teacher's, whose outputs and whose attention maps are compared
    projections: (the teacher's width, the student's), by the student's layer, where the widths differ; they learn too
    """

    def __init__(self, step: Training, pairs: tuple[Pairs, Pairs], student: _Watched, teacher: _Watched) -> None:
        assert step.features is not None, "the step says what is followed"
        self.hidden, self.maps = pairs
        self.projections: dict[int, torch.nn.Parameter] = {}
        self._step, self._said, self._student, self._teacher = step, step.features, student, teacher
        self._runs = teacher.model if step.hard < 1 else teacher.base  # a head takes its time

    def prepare(self, inputs: Mapping[str, Tensor], seed: int) -> None:
        """Look at one piece of text for what there is. Raises UserError for maps that do not compare."""
        with torch.no_grad(), self.watching():
            self._student.base(**arguments(inputs))
        self.teach(inputs)
        generator = torch.Generator().manual_seed(seed)
        for number, of in self.hidden:
            narrow, wide = (one.shape[-1] for one in (self._student.hidden[number], self._teacher.hidden[of]))
            if narrow != wide:
                matrix = torch.nn.init.orthogonal_(torch.empty(wide, narrow), generator=generator)
                self.projections[number] = torch.nn.Parameter(matrix)
        for number, of in self.maps:
            student, teacher = self._student.maps[number], self._teacher.maps[of]
            if student is None or teacher is None:
                raise UserError("--recipe: features: this model gives no attention maps; leave attention out")
            if student.shape[1] != teacher.shape[1]:
                what = f"layer {number} has {student.shape[1]} heads, layer {of} of the teacher {teacher.shape[1]}"
                raise UserError(f"--recipe: features: {what}; leave attention out, or pair others with layers")

    def watching(self) -> contextlib.AbstractContextManager[None]:
        """Within it the student runs; then `loss` can be asked for, behind `teach`."""
        return self._student.listening()

    def teach(self, inputs: Mapping[str, Tensor]) -> Any:  # noqa: ANN401 - an output of transformers
        """Run the teacher on `inputs`, see `Lessons`; its output, None where nobody learns from what it predicts."""
        with torch.no_grad(), self._teacher.listening(), in_precision(self._step, inputs["input_ids"].device.type):
            output = self._runs(**arguments(inputs))
        return output if self._step.hard < 1 else None

    def loss(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """How far the student is from its teacher, as both have just read `inputs`; these: see `Lessons`."""
        ids = inputs["input_ids"]
        there = inputs.get("attention_mask", torch.ones_like(ids)).bool()
        found = torch.zeros((), device=ids.device)
        if self.hidden:
            distance = DISTANCES[self._said.distance]
            far = [distance(self._teacher.hidden[of].float(), self._projected(number)) for number, of in self.hidden]
            found = found + self._said.hidden * torch.stack([one[there].mean() for one in far]).mean()
        if self.maps:
            maps = [
                attention_divergence(self._teacher.maps[of], self._student.maps[number]) for number, of in self.maps
            ]
            found = found + self._said.attention * torch.stack([one[there].mean() for one in maps]).mean()
        return found

    def _projected(self, number: int) -> Tensor:
        found: Tensor = self._student.hidden[number].float()
        return functional.linear(found, self.projections[number]) if number in self.projections else found

    def to(self, device: Any, *, split: bool) -> None:  # noqa: ANN401 - as torch names one
        """Move what is computed with. split: the teacher's weights, over all processes"""
        if split:
            split_over(self._runs, self._runs, device)
        else:
            self._runs.to(device)
        for parameter in self.projections.values():
            parameter.data = parameter.data.to(device)

    def after_update(self, _updates: int, _optimizer: Any) -> None:  # noqa: ANN401 - as others that are called there
        """Forget the gradients of the projections: Trainer forgets those of the model, which they are no part of."""
        for parameter in self.projections.values():
            parameter.grad = None

    def save(self, directory: Path) -> None:
        """Beside the weights of a checkpoint."""
        if self.projections:
            tensors = {str(number): one.detach().cpu() for number, one in self.projections.items()}
            save_file(tensors, directory / PROJECTIONS)

    def load(self, directory: Path) -> None:
        """What `save` wrote."""
        if self.projections:
            for number, tensor in load_file(directory / PROJECTIONS).items():
                self.projections[int(number)].data.copy_(tensor)


class _Watched:
    """What layers of a model give, by number, of the last time that it ran within `listening`."""

    # Any: a model of transformers, and what torch gives to a hook.
    def __init__(self, model: Any, hidden: Sequence[int], maps: Sequence[int]) -> None:  # noqa: ANN401
        self.model, self.base = model, model.base_model
        self.hidden: dict[int, Any] = {}
        self.maps: dict[int, Any] = {}
        layers = layers_of(model)
        self._on = False
        self._handles = [
            *(layers[one].register_forward_hook(partial(self._keep, self.hidden, one, 0)) for one in set(hidden)),
            *(
                find_attention(layers[one]).register_forward_hook(partial(self._keep, self.maps, one, 1))
                for one in set(maps)
            ),
        ]

    def _keep(self, found: dict[int, Any], number: int, part: int, _module: Any, _args: Any, output: Any) -> None:  # noqa: ANN401
        if self._on:  # and not where gradient checkpointing computes a layer again
            parts = output if isinstance(output, tuple) else (output,)
            found[number] = parts[part] if part < len(parts) else None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


@contextlib.contextmanager
def followed(
    step: Training,
    subject: Subject,
    example: Mapping[str, Tensor],
    student: Any = None,  # noqa: ANN401 - a model of transformers
) -> Iterator[Followed | None]:
    """What the step wants followed, None for nothing; the teacher is open within it.

    example: one piece of text, see `Lessons`; student: None for the subject's model
    Raises UserError for layers that there are not, or that cannot be followed.
    """
    said = step.features
    if said is None:
        yield None
        return
    with contextlib.ExitStack() as stack:
        teacher = stack.enter_context(contextlib.closing(subject.teacher(step.teacher))).model
        student = subject.model if student is None else student
        for model in (student, teacher):
            _refuse_other_layers(model, maps=said.attention > 0)
        n_student, n_teacher = (len(layers_of(model)) for model in (student, teacher))
        own = subject.layers if step.teacher is None else []
        hidden, maps = pairs(said, n_student, n_teacher, own or None)
        watched = []
        for model, side in ((student, 0), (teacher, 1)):
            if maps:
                stack.enter_context(_with_maps(model))
            watching = _Watched(model, [pair[side] for pair in hidden], [pair[side] for pair in maps])
            stack.callback(watching.close)
            watched.append(watching)
        found = Followed(step, (hidden, maps), *watched)
        found.prepare(example, subject.recipe.seed)
        yield found


def pairs(said: Features, n_student: int, n_teacher: int, own: Sequence[int] | None) -> tuple[Pairs, Pairs]:
    """Layers whose outputs, and layers whose attention maps are compared: the student's and the teacher's numbers.

    own: the teacher's layer that each of the student's was; None for a student that was not made of its teacher
    Raises UserError for layers that there are not.
    """
    if said.layers is not None:
        if len(said.layers) != n_student:
            what = f"layers names {len(said.layers)}, the model has {n_student} layers by then"
            raise UserError(f"--recipe: features: {what}; name one of the teacher's for each, or null")
        beyond = [of for of in said.layers if of is not None and of >= n_teacher]
        if beyond:
            what = f"the teacher has layers 0 to {n_teacher - 1}, layers names {beyond[0]}"
            raise UserError(f"--recipe: features: {what}; name others")
        hidden = maps = [(number, of) for number, of in enumerate(said.layers) if of is not None]
    elif own is not None:
        # What follows a layer is to read what it was used to; maps are of the layer itself.
        hidden = [(number, following - 1) for number, following in enumerate([*own[1:], n_teacher])]
        maps = list(enumerate(own))
    else:  # TinyBERT's uniform map, counted from 1: m to m times the share of layers
        even = [((2 * (one + 1) * n_teacher + n_student) // (2 * n_student)) for one in range(n_student)]
        hidden = maps = [(number, max(of, 1) - 1) for number, of in enumerate(even)]
    return hidden if said.hidden else [], maps if said.attention else []


def _refuse_other_layers(model: Any, *, maps: bool) -> None:  # noqa: ANN401 - a model of transformers
    """Raise UserError where layers, or the attention in them, are not where they are looked for."""
    layers = find_layers(model)
    if layers is None or (maps and any(find_attention(layer) is None for layer in layers)):
        what, fix = ("layers", "features") if layers is None else ("attention", "attention")
        said = f"{type(model).__name__} keeps its {what} where packlight does not look for them"
        raise UserError(f"--recipe: features: {said}; leave {fix} out")


@contextlib.contextmanager
def _with_maps(model: Any) -> Iterator[None]:  # noqa: ANN401 - as above
    """Attention that computes its map as a whole, for whoever looks at it."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
