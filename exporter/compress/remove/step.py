"""The remove step of a recipe. Every layer loses the same number: what transformers loads has one width for all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from exporter.compress.remove import parts
from exporter.compress.remove.layers import remove_layers
from exporter.compress.remove.scores import felt, given
from exporter.compress.walk import Walk
from runtime.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    import numpy.typing as npt

    from exporter.compress.subject import Subject
    from exporter.steps import Remove

MULTIPLES = (256, 32)
"""Neurons are kept in whole blocks: rows of 256 for k-quants where the model has such rows, else of 32."""


def run(step: Remove, subject: Subject) -> None:
    """See `exporter.compress.registry.Runner`."""
    config = subject.model.config
    if step.units == "layers":
        total = config.num_hidden_layers
        remove_layers(subject, total - _kept(step, total, 1), step.scores or "influence")
        return
    if step.units == "heads":
        total, head = config.num_key_value_heads, _head_dim(config)
        kept = _kept(step, total, 1)
        queries = config.num_attention_heads // total
        changes = {"num_key_value_heads": kept, "num_attention_heads": kept * queries, "head_dim": head}
        _refuse_what_cannot_load(config, changes)
        _remove(step, subject, kept, lambda layer: parts.heads(layer, config))
    else:
        total = config.intermediate_size
        kept = _kept(step, total, next((multiple for multiple in MULTIPLES if total % multiple == 0), 1))
        _remove(step, subject, kept, parts.neurons)
        changes = {"intermediate_size": kept}
    for key, value in changes.items():
        setattr(config, key, value)
    subject.config |= changes
    subject.notes.append(f"{kept} of {total} {_WORDS[step.units]} are left in every layer")


_WORDS = {"heads": "groups of heads", "neurons": "neurons"}


def _head_dim(config: Any) -> int:  # noqa: ANN401
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _refuse_what_cannot_load(config: Any, changes: dict[str, int]) -> None:  # noqa: ANN401
    """Raise UserError where transformers does not take such a configuration: it asks more of some than llama.cpp."""
    try:
        type(config).from_dict({**config.to_dict(), **changes})
    except Exception as error:  # any of transformers' or huggingface_hub's own
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        heads = changes["num_attention_heads"]
        raise UserError(f"--recipe: {heads} heads cannot be loaded ({reason}); remove another number") from error


def _kept(step: Remove, total: int, multiple: int) -> int:
    """How many units stay. Raises UserError where none would, or none would go."""
    gone = step.count if step.count is not None else round((step.share or 0.0) * total)
    kept = round((total - gone) / multiple) * multiple
    if not 0 < kept < total:
        what = "leaves none" if kept <= 0 else "removes none"
        blocks = f" in whole blocks of {multiple}" if multiple > 1 else ""
        raise UserError(f"--recipe: remove {gone} of {total} {step.units}{blocks} {what}; name another share or count")
    return kept


def _remove(step: Remove, subject: Subject, kept: int, part_of: Callable[[Any], parts.Part]) -> None:
    """Leave `kept` units in every layer, layer after layer, each on what those before it give by then."""
    layers = subject.model.base_model.layers
    ranked = step.scores or "activation"
    gradients: list[npt.NDArray[np.float32]] = []
    if ranked == "gradient":
        found = [part_of(layer) for layer in layers]
        watched = [(part.reader, given, part.units) for part in found]
        gradients = [one.numpy() for one in felt(subject.model, subject.chunks, watched, subject.progress)]
    walk = Walk(subject.model, subject.chunks)
    for number, layer in enumerate(layers):
        subject.progress("remove", number, len(layers))
        part = part_of(layer)
        hessian = walk.observe(number).hessians[part.below].numpy()
        if ranked == "gradient":
            scores = gradients[number]
        else:
            scores = part.magnitude() if ranked == "magnitude" else part.activation(hessian)
        units = np.sort(np.argsort(-scores, kind="stable")[:kept])
        part.keep(units, hessian if step.repair else None)
        walk.advance(number)
    subject.progress("remove", len(layers), len(layers))
