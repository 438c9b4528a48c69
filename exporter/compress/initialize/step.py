"""The initialize step of a recipe: a student of another shape, whose weights are new."""

from __future__ import annotations

import difflib
import json
import warnings
from typing import TYPE_CHECKING, Any

import torch

from exporter.compress.mapped import MappedReference
from exporter.compress.quantize.step import preset_grids
from exporter.compress.stack import find_layers
from exporter.source import refuse_problems
from runtime.errors import UserError, in_one_line
from targets.widths import WIDTHS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from exporter.compress.mapped import MappedEncoder
    from exporter.compress.subject import Subject
    from exporter.steps import Initialize

CLASS = ("model_type", "architectures", "auto_map")
TOKENS = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
LABELS = ("id2label", "label2id", "num_labels", "problem_type")
"""Keys of a configuration that a student has from its teacher: who loads it, the tokens of both, and the labels."""
WRITTEN = ("dtype", "torch_dtype", "transformers_version", "quantization_config", WIDTHS)
"""Keys that say how weights lie in a directory, and nothing of the student's."""
NOT_ITS_OWN = (*CLASS, *TOKENS, *LABELS, *WRITTEN)
COMPARED = ("model_type", "vocab_size")
"""Of those, what a student may say as its teacher has it."""
ROPE = ("rope_theta", "rope_scaling", "rope_local_base_freq")
"""Before transformers 5, what `rope_parameters` has."""


def run(step: Initialize, subject: Subject) -> None:
    """See `exporter.compress.registry.Runner`."""
    source, before = subject.facts.config, subject.model
    wanted = _wanted(step, source, before.config)
    subject.config = _changes(wanted, source, whole=step.change is None)
    if not subject.config:
        raise UserError("--recipe: initialize: changes nothing; name keys that the student has otherwise")
    config = {**subject.configured(source), "dtype": "float32"}
    nulls = {key: None for key, value in wanted.items() if value is None}
    made = type(before.config).from_dict
    decodes = isinstance(subject.source, MappedReference)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is refused below
            torch.manual_seed(subject.recipe.seed)
            model: Any = type(before)(made(config))
        if getattr(before, "pooler", model) is None:  # no embedding reads it
            model.pooler = None
        found = _output(model.eval(), decodes=decodes)  # some shapes can be built and not run
        if not len(find_layers(model) or ()) or not all(one.numel() for one in model.parameters()):
            raise ValueError("it has no layers, or matrices without weights")
        as_said = made({**config, **nulls})
    except Exception as error:  # any of transformers' or huggingface_hub's own
        reason = in_one_line(error.__cause__ or error)
        raise UserError(f"--recipe: initialize: no model has this configuration ({reason}); mend it") from error
    _refuse_lost(nulls, model.config, as_said)
    if found.shape != (wanted_shape := _output(before, decodes=decodes).shape):
        what = f"gives {found.shape[-1]} numbers a text or token, the model {wanted_shape[-1]}"
        raise UserError(f"--recipe: initialize: {what}; leave the width of what it gives as it is")
    model.requires_grad_(requires_grad=False)
    fresh, known = dict(model.named_parameters()), before.state_dict()  # tied ones once
    kept = [name for name, one in fresh.items() if step.reuse and name in known and known[name].shape == one.shape]
    for name in kept:
        fresh[name].copy_(known[name])
    _put(model, subject.source)
    subject.layers = []
    _refuse_what_cannot_be_packed(subject)
    weights = subject.weights()
    total, new = (sum(one.numel() for name, one in weights.items() if name not in past) for past in ((), kept))
    subject.notes.append(f"initialize: {new:,} of {total:,} weights are new")


def _put(model: Any, source: MappedReference | MappedEncoder) -> None:  # noqa: ANN401 - a model of transformers
    """Put the student in the model's place. Raises UserError for one that takes shorter texts than it is judged by."""
    if isinstance(source, MappedReference):
        source.replace(model)
        return
    n_tokens = source.max_tokens
    source.replace(model)
    if source.max_tokens < n_tokens:
        what = f"takes {source.max_tokens} tokens, the model {n_tokens}"
        raise UserError(f"--recipe: initialize: {what}; give it as many positions")


def _output(model: Any, *, decodes: bool) -> torch.Tensor:  # noqa: ANN401 - a model of transformers
    """What it gives for four tokens: logits, or the last hidden states."""
    inputs: dict[str, Any] = {"input_ids": torch.zeros(1, 4, dtype=torch.long)}
    inputs |= {"use_cache": False} if decodes else {"attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with torch.no_grad():
        output = model(**inputs)
    found: torch.Tensor = output.logits if "logits" in output else output.last_hidden_state
    return found


def _refuse_lost(nulls: Iterable[str], built: Any, as_said: Any) -> None:  # noqa: ANN401 - configurations of transformers
    """Raise UserError for a null that transformers would take for its own default: a key that is null is left out."""
    for key in nulls:
        if (default := getattr(built, key, None)) != getattr(as_said, key, None):
            what = f"{key}: null cannot be kept, it would become {default!r}; give it a value"
            raise UserError(f"--recipe: initialize: {what}")


def _refuse_what_cannot_be_packed(subject: Subject) -> None:
    """Raise UserError for a shape that the recipe's format cannot hold: not only when all of the training is over."""
    if subject.target is not None and subject.options is not None:
        refuse_problems(subject.target, subject.now(), subject.options)
    last = subject.recipe.steps[-1]
    if last.step == "quantize":
        preset_grids(last, subject)


def _wanted(step: Initialize, source: dict[str, Any], open_config: Any) -> dict[str, Any]:  # noqa: ANN401 - as above
    """The student's own keys, as the step has them or its file, without those that say nothing of its shape.

    open_config: the source's configuration as transformers has it, defaults too. Raises UserError for what a student
    cannot have.
    """
    if step.change is None:
        found, where = _read(step), str(step.config)
    else:
        found, where = {**_kinds_of_layers(step.change, source), **step.change}, "change"
        known = {**open_config.to_dict(), **source}
        for key in step.change:
            if key in NOT_ITS_OWN and key not in COMPARED:
                raise UserError(f"--recipe: initialize: change: {key} stays the teacher's; leave it out")
            if key not in known:
                near = difflib.get_close_matches(key, known, n=2, cutoff=0.5) or ["num_hidden_layers", "hidden_size"]
                what = f"the model's configuration has no {key}; did you mean {' or '.join(near)}?"
                raise UserError(f"--recipe: initialize: {what}")
    for key, what in (("model_type", "family"), ("vocab_size", "tokens")):
        if key in found and found[key] != getattr(open_config, key):
            said = f"{key} is {found[key]!r}, the model's {getattr(open_config, key)!r}"
            raise UserError(f"--recipe: initialize: {where}: {said}; a student has the {what} of its teacher")
    return {key: value for key, value in found.items() if key not in NOT_ITS_OWN}


def _changes(wanted: dict[str, Any], source: dict[str, Any], *, whole: bool) -> dict[str, Any]:
    """What differs from the source's configuration, None for a key that is gone.

    whole: all of the source's keys that are not wanted are gone, but for those that are the teacher's
    """
    gone = set(source) - {*CLASS, *TOKENS, *LABELS, *WRITTEN} if whole else set()
    if "rope_parameters" in wanted:  # what older files have in its place would count beside it
        gone |= source.keys() & set(ROPE)
    found = {key: value for key, value in {**dict.fromkeys(sorted(gone)), **wanted}.items()
             if key not in source or source[key] != value}  # fmt: skip
    return {**found, WIDTHS: None} if found and WIDTHS in source else found


def _kinds_of_layers(wanted: dict[str, Any], source: dict[str, Any]) -> dict[str, Any]:
    """The kinds of so many layers as there shall be, where the source names its own and what theirs are is plain."""
    kinds, count = source.get("layer_types"), wanted.get("num_hidden_layers")
    if not kinds or not isinstance(count, int):
        return {}
    if len(set(kinds)) == 1:
        kinds = kinds[:1] * count
    return {"layer_types": kinds[:count]}


def _read(step: Initialize) -> dict[str, Any]:
    assert step.config is not None, "its own validator has seen to that"
    fix = "name a config.json"
    try:
        found = json.loads(step.config.read_bytes())
    except ValueError as error:
        raise UserError(f"--recipe: initialize: {step.config}: is not JSON in UTF-8 ({error}); {fix}") from error
    if not isinstance(found, dict) or "model_type" not in found:
        raise UserError(f"--recipe: initialize: {step.config}: is no configuration of a model; {fix}")
    return found
