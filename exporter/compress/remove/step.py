"""The remove step of a recipe: the same number of units out of every layer, or more where they matter less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from exporter.compress.quantize.allocate import allocate, sensitivity
from exporter.compress.remove import parts
from exporter.compress.remove.layers import remove_layers
from exporter.compress.remove.scores import felt, given
from exporter.compress.remove.shares import curve
from exporter.compress.stack import layers_of
from exporter.compress.tasks import looks_at_text
from exporter.compress.widths import head_width, query_groups, said_widths
from runtime.errors import UserError, in_one_line
from targets.task import TEXT_GENERATION
from targets.uneven import uneven_refusal
from targets.widths import KV_HEADS, NEURONS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    import numpy.typing as npt

    from exporter.compress.subject import Subject
    from exporter.steps import Remove

    Floats = npt.NDArray[np.float32]

MULTIPLES = (256, 32)
"""Neurons are kept in whole blocks: rows of 256 for k-quants where the model has such rows, else of 32."""


@dataclass(frozen=True)
class Kind:
    """What is removed. key: of the configuration; said: in words; part: of a layer and the configuration."""

    key: str
    said: str
    part: Callable[[Any, Any], parts.Part]


KINDS = {
    "heads": Kind(KV_HEADS, "groups of heads", parts.heads),
    "neurons": Kind(NEURONS, "neurons", lambda layer, _config: parts.neurons(layer)),
}


def run(step: Remove, subject: Subject) -> None:
    """See `exporter.compress.registry.Runner`."""
    config = subject.model.config
    if step.units == "layers":
        total = config.num_hidden_layers
        remove_layers(subject, total - _kept(step, total, 1), step.scores or "influence")
        return
    kind = KINDS[step.units]
    found = [kind.part(layer, config).units for layer in layers_of(subject.model)]
    multiple = 1
    if step.units == "neurons":
        multiple = next((multiple for multiple in MULTIPLES if all(units % multiple == 0 for units in found)), 1)
    uneven = _is_uneven(step, kind, subject)
    if uneven:
        n_kept = _kept(step, sum(found), multiple, len(found))
    elif len(set(found)) > 1:
        what = f"the layers have {min(found)} to {max(found)} {kind.said} already"
        raise UserError(f"--recipe: remove {step.units}: {what}; say widths: uneven")
    else:
        n_kept = _kept(step, found[0], multiple) * len(found)
    gradients = _felt(kind, subject) if step.scores == "gradient" else [None] * len(found)
    kept = _shares(step, kind, subject, n_kept, multiple, gradients) if uneven else [n_kept // len(found)] * len(found)
    _refuse_what_cannot_load(step, config, max(kept))
    _remove(step, kind, subject, kept, gradients)
    changes = said_widths(subject.model)
    for key, value in changes.items():
        setattr(config, key, value)
    subject.config |= changes
    if uneven:
        said = f"{sum(kept)} of {sum(found)} {kind.said} are left, {min(kept)} to {max(kept)} in a layer"
    else:
        said = f"{kept[0]} of {found[0]} {kind.said} are left in every layer"
    subject.notes.append(said)


def _is_uneven(step: Remove, kind: Kind, subject: Subject) -> bool:
    """Whether the layers may differ. Raises UserError where they shall and cannot."""
    if step.widths == "even" or subject.task != TEXT_GENERATION:  # encoders have one width
        return False
    format_name = subject.recipe.format
    if format_name is None:  # any target may come
        return step.widths == "uneven"
    refusal = uneven_refusal(format_name, subject.facts.architecture, kind.key)
    if refusal and step.widths == "uneven":
        raise UserError(f"--recipe: remove {step.units} with widths: uneven: {refusal}; say widths: even")
    return not refusal


def _refuse_what_cannot_load(step: Remove, config: Any, kept: int) -> None:  # noqa: ANN401
    """Raise UserError where transformers does not take such a configuration: it asks more of some than llama.cpp."""
    if step.units != "heads":
        return
    heads = kept * query_groups(config)
    changes = {KV_HEADS: kept, "num_attention_heads": heads, "head_dim": head_width(config)}
    try:
        type(config).from_dict({**config.to_dict(), **changes})
    except Exception as error:  # any of transformers' or huggingface_hub's own
        reason = in_one_line(error.__cause__ or error)
        raise UserError(f"--recipe: {heads} heads cannot be loaded ({reason}); remove another number") from error


def _kept(step: Remove, total: int, multiple: int, layers: int = 1) -> int:
    """How many units stay, of a layer or of all. Raises UserError where none would, or none would go."""
    gone = step.count * layers if step.count is not None else round((step.share or 0.0) * total)
    kept = round((total - gone) / multiple) * multiple
    if not multiple * layers <= kept < total:
        what = "leaves none" if kept < total else "removes none"
        blocks = f" in whole blocks of {multiple}" if multiple > 1 else ""
        raise UserError(f"--recipe: remove {gone} of {total} {step.units}{blocks} {what}; name another share or count")
    return kept


def _shares(
    step: Remove, kind: Kind, subject: Subject, kept: int, multiple: int, gradients: Sequence[Floats | None]
) -> list[int]:
    """How many units each layer keeps of `kept` in all, where the model before the step loses least by it."""
    model, n_tokens = subject.model, sum(map(len, subject.chunks))
    seen = sensitivity(model, subject.chunks, subject.progress).outputs
    names = {id(module): f"{name}.weight" for name, module in model.named_modules()}
    walk, choices = subject.walk(subject.chunks), {}
    for number, layer in enumerate(walk.layers):
        subject.progress("widths", number, len(walk.layers))
        part = kind.part(layer, model.config)
        hessian = walk.observe(number).hessians[part.below].numpy()
        ranks = _ranks(step, part, hessian, gradients[number])
        felt_there = seen[names[id(part.reader)]]
        choices[str(number)] = curve(
            part, ranks, (hessian / n_tokens).astype(np.float32), felt_there, multiple, repair=step.repair
        )
        walk.advance(number)
    subject.progress("widths", len(walk.layers), len(walk.layers))
    try:
        return [choice.grid for choice in allocate(choices, kept).values()]
    except ValueError as error:
        least = sum(min(choice.n_bytes for choice in layer) for layer in choices.values())
        what = f"leaves {kept} {kind.said}, uneven layers need {least} together"
        raise UserError(f"--recipe: remove {step.units} {what}; name another share or count") from error


def _ranks(step: Remove, part: parts.Part, hessian: Floats | None, gradients: Floats | None) -> Floats:
    """How much the units of a layer matter beside each other."""
    if gradients is not None:
        return gradients
    if step.scores == "magnitude":
        return part.magnitude()
    assert hessian is not None, "a step that ranks by activations looks at text"
    return part.activation(hessian)


def _felt(kind: Kind, subject: Subject) -> list[Floats | None]:
    """What the loss would feel of each unit, by layer."""
    found = [kind.part(layer, subject.model.config) for layer in layers_of(subject.model)]
    watched = [(part.reader, given, part.units) for part in found]
    return [one.numpy() for one in felt(subject.model, subject.chunks, watched, subject.progress)]


def _remove(
    step: Remove, kind: Kind, subject: Subject, kept: Sequence[int], gradients: Sequence[Floats | None]
) -> None:
    """Leave so many units in every layer, layer after layer, each on what those before it give by then."""
    layers, config = layers_of(subject.model), subject.model.config
    looks = looks_at_text(step)
    walk = subject.walk(subject.chunks if looks else [])
    for number, layer in enumerate(layers):
        subject.progress("remove", number, len(layers))
        part = kind.part(layer, config)
        if kept[number] < part.units:
            hessian = walk.observe(number).hessians[part.below].numpy() if looks else None
            ranks = _ranks(step, part, hessian, gradients[number])
            units = np.sort(np.argsort(-ranks, kind="stable")[: kept[number]])
            part.keep(units, hessian if step.repair else None)
        walk.advance(number)
    subject.progress("remove", len(layers), len(layers))
