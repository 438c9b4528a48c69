"""A model trained on its lessons by transformers' Trainer, which keeps checkpoints and goes on from the last one.

Of several processes each computes its share of every batch, and the first one writes the checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from exporter.compress.processes import count_now
from exporter.compress.training import sharded
from exporter.compress.training.features import followed
from exporter.compress.training.order import OfLikeLength
from exporter.compress.training.predictions import arguments, predictions
from exporter.compress.training.student import (
    activations_computed_again,
    attention_in_float32,
    averaged,
    is_split,
    keep_zeros,
    learning,
    nothing_dropped,
    without_traces,
)
from exporter.steps import OnGrid
from exporter.verify.reference import quiet
from runtime.atomic import write_json
from runtime.errors import ModelError, UserError, in_one_line
from runtime.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from exporter.compress.journal import Kept
    from exporter.compress.subject import Subject
    from exporter.compress.training.features import Followed
    from exporter.compress.training.lessons import Lessons
    from exporter.compress.training.predictions import Predictions
    from exporter.compress.training.student import Student
    from exporter.steps import Training
    from targets.base import Progress

EVALUATIONS = 20
"""Over a whole training: as often the held-out pieces are judged, and a checkpoint is written."""
COMPLETE, FINISHED = "complete.json", "finished.json"
"""Written last, into a checkpoint and beside all of them."""
SCHEDULER = "scheduler.pt"
"""Of a checkpoint whose weights are split, the rest of what Trainer writes."""
WARMUP = 20
"""One update in so many, the first ones, is part of the warm-up."""
QUICK = 10
"""Times the learning rate, for what learns as a share of what it was: weights are that much below one."""


@dataclass(frozen=True)
class Trained:
    """What a training did. before, after: loss on the held-out pieces; updates: done; best: of which the weights are"""

    before: float
    after: float
    updates: int
    best: int

    def said(self, n_held_out: int) -> str:
        """In words."""
        return (
            f"loss on {n_held_out} held-out pieces {self.before:.4g} before, {self.after:.4g} after update "
            f"{self.best} of {self.updates}"
        )


def train(student: Student, taught: tuple[Lessons, Lessons], step: Training, subject: Subject, what: str) -> None:
    """Train a student in place; the weights that did best on the held-out pieces are left in it.

    taught: see `lessons`; what: for the note that the subject gets. Raises UserError where nothing was learned.
    """
    learned, held_out = taught
    found = _trained(student, learned, held_out, step, subject)
    subject.kept.meet()  # the first process removes what others still read
    student.model.eval()
    subject.notes.append(f"{what}: {found.said(len(held_out))}")


def _trained(student: Student, learned: Lessons, held_out: Lessons, step: Training, subject: Subject) -> Trained:
    work = subject.work  # checkpoints are there, of a run before too
    over = (work / FINISHED).is_file()
    with _opened(student, step, subject, None if over else held_out.collate([held_out[0]])) as opened:
        trainer = _Distilling(
            opened, predictions(step, subject), subject.kept, train_dataset=learned, eval_dataset=held_out,
            data_collator=learned.collate,
        )  # fmt: skip
        trainer.remove_callback(transformers.PrinterCallback)
        if over:
            return trainer.again(work)
        # Without DistributedDataParallel: it waits for gradients of a pooler that no loss reads, and does not know what
        # is no part of the model. See `averaged`.
        student, features = opened.student, opened.features
        trainer.accelerator.prepare_model(student.model, evaluation_mode=True)
        with student.before():
            before = float(trainer.evaluate()["eval_loss"])
        trainer.add_callback(_Shown(subject.progress))
        if student.after_update is not None:
            trainer.add_callback(_AfterUpdate(student.after_update))
        if features is not None:
            trainer.add_callback(_AfterUpdate(features.after_update))
        if step.patience is not None:
            trainer.add_callback(transformers.EarlyStoppingCallback(step.patience))
        try:
            trainer.go_on(work)
            after, state = trainer.state.best_metric, trainer.state
            if after is None or not after < before:  # not a number is not less
                what = "training made the loss on held-out text no better"
                fix = "lower learning_rate, or give it more text"
                if isinstance(step, OnGrid):  # codes that were chosen on little text are worse than the nearest ones
                    fix = "lower learning_rate, give it or calibration more text, or say method: rtn"
                raise UserError(f"--recipe: {what}, {before:.4g} before and {after or math.nan:.4g} after; {fix}")
            found = Trained(before, after, state.global_step, state.best_global_step)
            if subject.kept.first:
                write_json(work / FINISHED, dataclasses.asdict(found))
        except OSError as error:
            raise ModelError(f"{work}: cannot be written ({error}); free space or choose another -o") from error
    return found


@dataclass(frozen=True)
class _Opened:
    """What a training works on. options: of transformers"""

    student: Student
    features: Followed | None
    options: Any


@contextlib.contextmanager
def _opened(
    student: Student, step: Training, subject: Subject, example: Mapping[str, torch.Tensor] | None
) -> Iterator[_Opened]:
    """A student that is ready to learn; afterwards the model is as it was but for what was learned.

    example: a piece of text to look at the teacher's features with; None leaves them out
    """
    model = subject.model
    if subject.split:
        student, model = sharded.twin(student, model)
    with contextlib.ExitStack() as stack:
        features = None if example is None else stack.enter_context(followed(step, subject, example, model))
        if features is not None:
            student = dataclasses.replace(student, quick=(*student.quick, *features.projections.values()))
        _refuse_small_disk(student, subject.work)
        options = _options(step, subject.recipe.seed, subject.work)
        options._n_gpu = min(options.n_gpu, 1)  # more than one are for more processes: Trainer would copy the model
        for entered in (
            quiet(transformers),
            without_traces(student.model),
            nothing_dropped(student.model),
            activations_computed_again(student.model, on=step.gradient_checkpointing),
            attention_in_float32(student.model, on=options.bf16 and options.device.type == "cpu"),
        ):
            stack.enter_context(entered)
        if subject.split:
            student = stack.enter_context(sharded.split(student, model, options.device))
        else:
            stack.enter_context(learning(student.model, [*student.parameters, *student.quick]))
        yield _Opened(student, features, options)


def _options(step: Training, seed: int, work: Path) -> Any:  # noqa: ANN401 - a class of transformers
    """What Trainer is told. Raises UserError for what it cannot do here."""
    every = max(1, step.updates // EVALUATIONS)
    processes = count_now()
    try:
        found = transformers.TrainingArguments(
            output_dir=str(work), max_steps=step.updates, gradient_accumulation_steps=step.accumulate,
            per_device_train_batch_size=step.batch // step.accumulate // processes, per_device_eval_batch_size=1,
            learning_rate=step.learning_rate, lr_scheduler_type="cosine", warmup_steps=step.updates // WARMUP,
            eval_strategy="steps", eval_steps=every, save_steps=every, load_best_model_at_end=True,
            metric_for_best_model="eval_loss", greater_is_better=False, prediction_loss_only=True,
            label_names=["input_ids"], remove_unused_columns=False, logging_steps=1, report_to="none",
            disable_tqdm=True, seed=seed, bf16=step.precision == "bfloat16",
            dataloader_pin_memory=torch.cuda.is_available(),
            use_cpu=not (torch.cuda.is_available() or (processes == 1 and torch.backends.mps.is_available())),
        )  # fmt: skip
    except ImportError as error:
        raise UserError("--recipe: training needs the library 'accelerate'; pip install 'packlight[train]'") from error
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"--recipe: training: {in_one_line(error)}") from error
    if found.world_size != processes:  # each would learn alone
        raise UserError(
            f"--recipe: training: accelerate sees {found.world_size} of {processes} processes; use torchrun"
        )
    return found


def _refuse_small_disk(student: Student, work: Path) -> None:
    """Raise UserError where two checkpoints, the best and the last, and a third that is being written do not fit."""
    weights = 4 * sum(parameter.numel() for parameter in student.model.parameters())
    moments = 8 * sum(parameter.numel() for parameter in (*student.parameters, *student.quick))
    needed, free = 3 * (weights + moments), shutil.disk_usage(work.parent).free
    if needed > free:
        what = f"training needs {format_bytes(needed)} of disk for its checkpoints beside {work.parent.parent}"
        raise UserError(f"--recipe: {what}, {format_bytes(free)} are free; choose another -o, or train less")


with quiet(transformers):  # it brings in what logs that it has no GPU
    _Trainer: Any = transformers.Trainer


class _Distilling(_Trainer):  # type: ignore[misc] # transformers has no types
    """Learns from the teacher's predictions. Any: what transformers hands to its own methods."""

    def __init__(self, opened: _Opened, predicted: Predictions, kept: Kept, **options: Any) -> None:
        student, features = opened.student, opened.features
        super().__init__(model=student.model, args=opened.options, **options)
        self._student, self._predictions, self._features, self._kept = student, predicted, features, kept
        self._split = any(map(is_split, student.parameters))
        if features is not None:
            features.to(self.args.device, split=self._split)
        # The loss is a mean over a part of a batch, which Trainer has to divide by the number of parts.
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = False

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:  # noqa: ANN401
        """See `transformers.Trainer`. Where it is judged, predictions alone count."""
        features = self._features if model.training else None
        with contextlib.nullcontext() if features is None else features.watching():
            output = model(**arguments(inputs))
        if features is None:
            loss = self._predictions.loss(output, inputs)
        else:
            said = features.teach(inputs)
            taught = inputs if said is None else {**inputs, **self._predictions.said(said, inputs)}
            loss = self._predictions.loss(output, taught) + features.loss(inputs)
        return (loss, {"loss": loss}) if return_outputs else loss

    def create_optimizer(self, model: Any = None) -> Any:  # noqa: ANN401
        """See `transformers.Trainer`, whose own it is where everything learns equally fast."""
        student = self._student
        if student.quick:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            options["weight_decay"] = self.args.weight_decay
            quick = {"params": list(student.quick), "lr": QUICK * self.args.learning_rate}
            self.optimizer = kind([{"params": list(student.parameters)}, quick], **options)
        return super().create_optimizer(model)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:  # noqa: ANN401
        """See `transformers.Trainer`, whose own order it is where all pieces are of one length."""
        lengths, args = self.train_dataset.lengths(), self.args
        if len(set(lengths)) == 1:
            return super()._get_train_sampler(train_dataset)
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return OfLikeLength(lengths, batch, args.max_steps, args.seed)

    def _determine_best_metric(self, metrics: Any, trial: Any) -> bool:  # noqa: ANN401
        """See `transformers.Trainer`."""
        judged = self.state.global_step >= self._student.judged_from
        return judged and bool(super()._determine_best_metric(metrics, trial))

    def training_step(self, *arguments: Any, **more: Any) -> torch.Tensor:
        """See `transformers.Trainer`: forwards and backwards."""
        with self._student.as_stored():
            found: torch.Tensor = super().training_step(*arguments, **more)
        if self.accelerator.sync_gradients:  # behind the last part of a batch
            averaged([*self._student.parameters, *self._student.quick])
            keep_zeros(self._student)
        return found

    def evaluation_loop(self, *arguments: Any, **more: Any) -> Any:  # noqa: ANN401
        """See `transformers.Trainer`."""
        with torch.no_grad(), self._student.as_stored():
            return super().evaluation_loop(*arguments, **more)

    def save_model(self, output_dir: Any = None, _internal_call: bool = False) -> None:  # noqa: ANN401
        """See `transformers.Trainer`. What is split is written with its moments."""
        if self._split:
            sharded.save(Path(output_dir), self._student.parameters, self._student.quick, self.optimizer)
        else:
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: Any) -> None:  # noqa: ANN401
        """See `transformers.Trainer`."""
        if not self._split:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self._kept.first:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _load_from_checkpoint(self, resume_from_checkpoint: Any, model: Any = None) -> None:  # noqa: ANN401
        """See `transformers.Trainer`."""
        directory = Path(resume_from_checkpoint)
        if not self._load_parts(directory):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._features is not None:
            self._features.load(directory)

    def _load_best_model(self) -> None:
        """See `transformers.Trainer`."""
        if not self._load_parts(Path(self.state.best_model_checkpoint)):
            super()._load_best_model()

    def _load_parts(self, directory: Path) -> bool:
        """Load weights that `sharded` has written; whether it has."""
        if sharded.is_in_parts(directory):
            sharded.load(directory, self._student.parameters)
            return True
        if self._split:
            what = "the training was begun with whole weights in every process"
            raise UserError(f"--resume: {what}; go on without FSDP, or leave --resume out to begin anew")
        return False

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:  # noqa: ANN401
        """See `transformers.Trainer`."""
        if checkpoint is None or not sharded.is_in_parts(Path(checkpoint)):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        sharded.load_moments(Path(checkpoint), self._student.parameters, self._student.quick, self.optimizer)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER, weights_only=True))
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate  # which the scheduler leaves to what an optimizer has saved of itself

    def go_on(self, work: Path) -> None:
        """Train to the end, from the last checkpoint where there is one, and load what was best."""
        with self._kept.in_turn():
            last = _last(work)
        if last is None or int(last.name.rpartition("-")[2]) < self.args.max_steps:
            self.train(resume_from_checkpoint=last and str(last))
            return
        self.state = transformers.TrainerState.load_from_json(str(last / "trainer_state.json"))
        self._load_best_model()

    def again(self, work: Path) -> Trained:
        """Load what a training that is over has left, into the model."""
        found = Trained(**json.loads((work / FINISHED).read_text(encoding="utf-8")))
        self.state.best_model_checkpoint = str(work / f"checkpoint-{found.best}")
        self._load_best_model()
        return found

    def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ANN401
        """See `transformers.Trainer`. One before it goes only when this one is on the disk as a whole."""
        super()._save_checkpoint(model, trial)
        work = Path(self.args.output_dir)
        made = work / f"checkpoint-{self.state.global_step}"
        self._kept.meet()  # each writes a state of its own
        if not self._kept.first:
            return
        if self._features is not None:
            self._features.save(made)
        for path in made.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        write_json(made / COMPLETE, {"update": self.state.global_step})
        for path in work.glob("checkpoint-*"):
            if path not in (made, Path(self.state.best_model_checkpoint or made)):
                shutil.rmtree(path)


def _last(work: Path) -> Path | None:
    """The last checkpoint that is complete; those that a kill has cut off are removed."""
    found = {}
    for path in work.glob("checkpoint-*"):
        if (path / COMPLETE).is_file():
            found[int(path.name.rpartition("-")[2])] = path
        else:
            shutil.rmtree(path)
    return found[max(found)] if found else None


class _AfterUpdate(transformers.TrainerCallback):  # type: ignore[misc] # as above
    """Calls what a student wants called. Any: as `_Distilling`."""

    def __init__(self, call: Callable[[int, Any], None]) -> None:
        self._call = call

    def on_step_end(self, _args: Any, state: Any, _control: Any, **more: Any) -> None:  # noqa: ANN401
        """Before an evaluation, and before a checkpoint is written."""
        self._call(state.global_step, more["optimizer"])


class _Shown(transformers.TrainerCallback):  # type: ignore[misc]
    """Tells how far a training is."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._said = progress, ""
        self._start: tuple[float, int] = (0.0, 0)

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:  # noqa: ANN401
        """From here the time is taken."""
        self._start = (time.monotonic(), state.global_step)

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, float], **_: Any) -> None:  # noqa: ANN401
        """After every update, and after an evaluation."""
        start, first = self._start
        if "eval_loss" in logs:
            self._said = f", held out {logs['eval_loss']:.4g}"
        if "loss" in logs and state.global_step > first:
            left = (time.monotonic() - start) / (state.global_step - first) * (state.max_steps - state.global_step)
            what = f"training, loss {logs['loss']:.4g}{self._said}, {left / 60:.0f} min left"
            self._progress(what, state.global_step, state.max_steps)
