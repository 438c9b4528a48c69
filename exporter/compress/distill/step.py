"""The distill step of a recipe: the model learns to predict what the source predicts."""

from __future__ import annotations

import contextlib
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import transformers

from exporter.compress.quantize.gptq import is_pruned
from exporter.compress.training.lessons import lessons
from exporter.compress.training.student import Student, zeros_of
from exporter.compress.training.trainer import train
from runtime.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exporter.compress.subject import Subject
    from exporter.steps import Distill

RANK = 16
"""Of LoRA, where the recipe names none."""


def run(step: Distill, subject: Subject) -> None:
    """See `exporter.compress.registry.Runner`. Checkpoints lie beside the weights' file until the step is over."""
    if step.train == "lora" and any(is_pruned(module.weight.detach().numpy()) for _, module in subject.matrices()):
        raise UserError("--recipe: distill with train: lora would fill the zeros of prune; say train: all")
    taught = lessons(step, subject)
    with _opened(step, subject) as student:
        train(student, taught, step, subject, "distill")


@contextlib.contextmanager
def _opened(step: Distill, subject: Subject) -> Iterator[Student]:
    """The model to train and those of its weights that learn; what was added to it is merged at the end."""
    model = subject.model
    if step.train == "lora":
        names = [name.removesuffix(".weight") for name, _ in subject.matrices()]
        transformers.set_seed(subject.recipe.seed)  # they begin at random
        with _adapted(model, names, step.rank or RANK) as adapted:
            yield Student(adapted, [parameter for parameter in adapted.parameters() if parameter.requires_grad])
        return
    learned = [one for one in model.parameters() if step.train == "all" or one.dim() == 1]
    pruned = [one for one in learned if one.dim() == 2 and is_pruned(one.detach().numpy())]
    yield Student(model, learned, zeros={one: partial(zeros_of, one) for one in pruned})


@contextlib.contextmanager
def _adapted(model: Any, names: list[str], rank: int) -> Iterator[Any]:  # noqa: ANN401
    """LoRA (https://arxiv.org/abs/2106.09685) beside the modules `names`: nothing at first, merged at the end."""
    try:
        import peft
    except ImportError as error:
        raise UserError(
            "--recipe: distill with train: lora needs the library 'peft'; pip install 'packlight[train]'"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it calls what newer transformers have renamed
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names))
    yield adapted
    adapted.merge_and_unload()
