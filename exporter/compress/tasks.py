"""What a recipe may ask of a model, by what the model is for: said before anything is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporter.verify.encoder_reference import AUTO_CLASSES
from runtime.errors import UserError
from targets.pooling import read_pooling
from targets.task import (
    FEATURE_EXTRACTION,
    TEXT2TEXT_GENERATION,
    TEXT_GENERATION,
    infer_task,
    is_sentence_transformer,
)

if TYPE_CHECKING:
    from exporter.recipe import Recipe
    from exporter.steps import Step, Text, Training
    from targets.facts import ModelFacts

LOSSES = {TEXT_GENERATION: ("forward-kl", "reverse-kl", "jsd"), FEATURE_EXTRACTION: ("nmse", "cosine")}
"""By task, the usual one first; classifiers have those of predictions."""
FOR_ENCODERS = (
    "remove layers or neurons but not by gradient, prune by magnitude, initialize, distill, quantize, or export --quant"
)


def task_of(facts: ModelFacts) -> str:
    """The task of a model that can be compressed. Raises UserError, and UnsupportedError for tasks nobody exports."""
    name = facts.architecture
    if name.endswith(("ForCausalLM", "LMHeadModel")):  # also where sentence-transformers makes embeddings of it
        return TEXT_GENERATION
    if not name and not (facts.path / "modules.json").exists():  # transformers knows it by its model_type
        return TEXT_GENERATION
    task = infer_task(facts)
    if task == TEXT2TEXT_GENERATION:
        what = "is an encoder and a decoder in one, which cannot be compressed"
        raise UserError(f"{facts.requested}: {what}; name a model that is either")
    return task


def looks_at_text(step: Step) -> bool:
    """Whether a step gathers statistics on the calibration text."""
    if step.step == "remove" and step.units != "layers":
        return step.scores != "magnitude" or step.repair or step.widths != "even"
    blind = ("magnitude", "spaced")
    by_weights = getattr(step, "method", None) in blind or getattr(step, "scores", None) in blind
    return step.step not in ("initialize", "rotate", "distill") and not by_weights


def loss_of(training: Training, task: str) -> str:
    """The loss by name, said or usual. Raises UserError for one of another task."""
    known = LOSSES.get(task, LOSSES[TEXT_GENERATION])
    if training.loss is not None and training.loss not in known:
        raise UserError(f"--recipe: loss {training.loss} is not for {task}; say {' or '.join(known)}")
    return training.loss or known[0]


def refuse_other_tasks(recipe: Recipe, facts: ModelFacts, task: str) -> None:
    """Raise UserError for what the recipe asks and a model of this task has not."""
    for training in recipe.trainings:
        loss_of(training, task)
    if task not in AUTO_CLASSES:
        return
    for step in recipe.steps:
        if said := _of_decoders(step):
            what = f"{said} is for decoders, {facts.requested} is for {task}"
            raise UserError(f"--recipe: {what}; say {FOR_ENCODERS}")
        if looks_at_text(step):
            refuse_to_write(recipe.calibration, "calibration", facts)
        if step.step == "remove" and step.scores == "greedy":
            refuse_unknown_pooling(facts, task)
    if recipe.kv_cache is not None:
        raise UserError(f"--recipe: kv_cache: {facts.requested} is for {task} and has none; leave it out")
    for training in recipe.trainings:
        _refuse_for_encoders(training, facts, task)


def _refuse_for_encoders(training: Training, facts: ModelFacts, task: str) -> None:
    refuse_to_write(training.text, "text", facts)
    unread = ("hard", "top", "temperature") if task == FEATURE_EXTRACTION else ("hard", "top")
    for key in unread:
        if getattr(training, key) != type(training).model_fields[key].default:
            raise UserError(f"--recipe: {key}: says nothing to a model that is for {task}; leave it out")
    refuse_unknown_pooling(facts, task)


def refuse_to_write(text: Text, key: str, facts: ModelFacts) -> None:
    """Raise UserError where a model shall write a text that cannot."""
    if text.kind == "model":
        what = f"{facts.requested} writes no text itself"
        raise UserError(f"--recipe: {key}: {what}; name a text, a jsonl file, a dataset, or source: help")


def refuse_unknown_pooling(facts: ModelFacts, task: str) -> None:
    """Raise UserError for embeddings that cannot be computed here, of a student or a teacher."""
    if task == FEATURE_EXTRACTION and is_sentence_transformer(facts.path) and read_pooling(facts.path) is None:
        what = "makes its embeddings in a way that packlight does not know, and cannot train"
        raise UserError(f"--recipe: {facts.requested}: {what}; name another model")


def _of_decoders(step: Step) -> str | None:
    """A step that only a decoder has, in words; None for another."""
    if step.step in ("distill", "initialize"):
        return None
    if step.step == "quantize":
        return f"quantize with types {step.types}" if step.types == "measured" else None
    if step.step == "prune":
        return None if step.method == "magnitude" else f"prune with method {step.method}"
    if step.step != "remove":
        return step.step
    if step.units == "heads":
        return "remove heads"
    if step.widths == "uneven":
        return "remove with widths uneven"
    return "remove with scores gradient" if step.scores == "gradient" else None
