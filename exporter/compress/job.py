"""`packlight compress`: a model through a recipe, into a directory that transformers loads and `export` packs."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from exporter.calibration import file_digests
from exporter.compress.directory import refuse_unknown_weights, write_directory
from exporter.compress.journal import ReadJournal, work_of, working
from exporter.compress.processes import ALONE, joined, lost_is_said, refuse_uneven, refuse_unsplit, said_after_first
from exporter.compress.tasks import looks_at_text, refuse_other_tasks, refuse_unknown_pooling, task_of
from exporter.progress import SilentReporter
from exporter.quant import known_quant
from exporter.source import refuse_problems, resolve_model
from exporter.staging import publish, refuse_occupied, staging
from exporter.steps import training_of
from runtime.atomic import write_json
from runtime.errors import UserError
from runtime.openmp import wait_briefly
from runtime.tokenizer_file import load_tokenizer
from targets import get_target
from targets.base import EmitOptions
from targets.factors import FACTORS
from targets.ongrid import RECIPE, foreign_grids
from targets.safetensors import read_facts
from targets.weights import FLOAT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from exporter.compress.drift import Drifting
    from exporter.compress.journal import Journal
    from exporter.compress.processes import Launched, Meet
    from exporter.compress.subject import Subject
    from exporter.progress import Reporter
    from exporter.recipe import Recipe
    from exporter.steps import Step
    from targets.facts import ModelFacts


@dataclass(frozen=True)
class CompressRequest:
    """One compression, as the user asked for it.

    recipe_name: as typed; threads: None for torch's own choice; here: this process, where several were launched
    """

    model: str
    out: Path
    recipe: Recipe
    recipe_name: str
    threads: int | None = None
    trust_remote_code: bool = False
    revision: str | None = None
    resume: bool = False
    here: Launched = ALONE


@dataclass(frozen=True)
class StepReport:
    """What a step did.

    options: of the step, as the recipe has them
    n_bytes: of the weights in float32; after a quantize step, of the file that an export makes of the result
    n_params: weights; sparsity: share of zeros in the matrices of the layers
    mean_kl, perplexity_ratio, same_top1: of the model so far against the source, on the evaluation text; None for
        encoders
    mean_cosine, rank_correlation, label_agreement: of an encoder, as `targets.encoder_drift` has them
    """

    step: str
    options: dict[str, Any]
    seconds: float
    n_bytes: int
    n_params: int
    sparsity: float
    mean_kl: float | None = None
    perplexity_ratio: float | None = None
    same_top1: float | None = None
    mean_cosine: float | None = None
    rank_correlation: float | None = None
    label_agreement: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def said(self) -> str:
        """The step in a few words."""
        return " ".join([self.step, *(str(value) for value in self.options.values() if isinstance(value, str | float))])

    @property
    def drift(self) -> dict[str, str]:
        """The numbers against the source that people look at, by what they call them."""
        known = (
            ("KL divergence", self.mean_kl, ".4f"), ("same top-1", self.same_top1, ".1%"),
            ("cosine", self.mean_cosine, ".4f"), ("rank correlation", self.rank_correlation, ".4f"),
            ("label agreement", self.label_agreement, ".1%"),
        )  # fmt: skip
        return {name: format(value, form) for name, value, form in known if value is not None}


@dataclass(frozen=True)
class CompressReport:
    """What a compression did, as it lies in the directory too.

    preset: None where nothing was quantized; kv_type: of the KV cache that exports of it are run with, None for any
    """

    model: str
    out: str
    recipe_name: str
    format: str | None
    preset: str | None
    steps: tuple[StepReport, ...]
    kv_type: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {**dataclasses.asdict(self), "packlight": version("packlight")}


def compress(request: CompressRequest, reporter: Reporter) -> CompressReport:
    """Run the recipe and write OUT. Raises UserError and its kin; OUT is then as it was.

    Of several processes the first one calls it, the others `follow`.
    """
    wait_briefly()  # before torch is loaded: beside anything else its threads would spin most of the time away
    refuse_occupied(request.out.absolute(), overwrite=False)
    refuse_uneven(request.recipe.trainings, request.here)
    refuse_unsplit(request.recipe.steps, request.here)
    with joined(request.here) as all_met, lost_is_said():
        return _compress(request, all_met, reporter)


def _compress(request: CompressRequest, all_met: Meet, reporter: Reporter) -> CompressReport:
    """See `compress`. all_met: waits for the other processes."""
    from exporter.compress.drift import drifting
    from exporter.compress.settled import restore, settle
    from exporter.compress.training.predictions import refuse_untrainable

    out, recipe = request.out.absolute(), request.recipe
    preset = _preset(recipe)
    reporter.step(f"reading {request.model}")
    facts = _source(request)
    task = task_of(facts)
    refuse_other_tasks(recipe, facts, task)
    teachers = _teachers(request, facts, task)
    with (
        staging(out) as room,
        working(out, _made_of(facts, teachers, recipe), resume=request.resume) as journal,
        _opened(facts, task, request, preset, journal, reporter) as subject,
    ):
        subject.teachers = teachers
        for training in recipe.trainings:
            refuse_untrainable(training, subject)
        journal.all_met = all_met
        _let_others_open(journal)  # and not before all is told that can be before the work begins
        drift = drifting(subject.source)
        if any(looks_at_text(step) for step in recipe.steps):
            reporter.step(f"calibration: {recipe.calibration.kind}")
            _look_at_same_text(subject, journal)
        done = [StepReport(**{**one, "notes": tuple(one["notes"])}) for one in restore(subject, journal)]
        for number, step in enumerate(recipe.steps[len(done) :], len(done)):
            subject.number = number
            done.append(_run(step, subject, drift, reporter))
            if number + 1 < len(recipe.steps):
                settle(subject, journal, [dataclasses.asdict(one) for one in done])
                _let_others_open(journal)
        reporter.step("writing the directory")
        write_directory(room, subject)
        if subject.options is not None and preset is not None:
            file_bytes = _file_bytes(room, out.name, recipe.format or "", subject.options)
            done[-1] = dataclasses.replace(done[-1], n_bytes=file_bytes)
        report = CompressReport(
            request.model, str(out), request.recipe_name, recipe.format, preset, tuple(done), recipe.kv_cache
        )
        write_json(room / RECIPE, report.to_json())
        publish(room, out)
        with contextlib.suppress(RuntimeError):  # the result is there, whoever has gone meanwhile
            journal.meet()  # what the others still look at is removed now
    return report


def follow(request: CompressRequest) -> None:
    """Train along with the process that calls `compress` of the same request, and change nothing on the disk.

    What is no training it waits for, and goes on with the model as the first process has written it.
    """
    wait_briefly()
    from exporter.compress.registry import runner
    from exporter.compress.settled import restore

    recipe = request.recipe
    with contextlib.ExitStack() as stack:
        with said_after_first(request.here):
            all_met = stack.enter_context(joined(request.here))
        # Within what has joined: while this one waits to be heard, the first one is not told that it is gone.
        stack.enter_context(said_after_first(request.here))
        stack.enter_context(lost_is_said())
        all_met()
        journal = ReadJournal(work_of(request.out.absolute()))
        journal.all_met = all_met
        facts = _source(request)
        with _opened(facts, task_of(facts), request, _preset(recipe), journal, SilentReporter()) as subject:
            subject.teachers = _teachers(request, facts, task_of(facts))
            done = len(restore(subject, journal))
            journal.meet()
            for number, step in enumerate(recipe.steps[done:], done):
                subject.number = number
                if training_of(step) is not None:
                    runner(step.step)(step, subject)
                if number + 1 < len(recipe.steps):
                    journal.meet()
                    restore(subject, journal)
                    journal.meet()
            journal.meet()


def _let_others_open(journal: Journal) -> None:
    """Wait until the other processes have come, and have opened the model: this one goes on to change it."""
    journal.meet()
    journal.meet()


def _made_of(facts: ModelFacts, teachers: Mapping[str, ModelFacts], recipe: Recipe) -> dict[str, str]:
    """What the result depends on, by what the user calls it."""
    contents = _digest(facts)
    taught_by = {f"teacher {name}": _digest(teacher) for name, teacher in teachers.items()}
    students = {f"student {path}": _digest_of_shape(path) for path in recipe.shapes}
    versions = {f"version of {name}": version(name) for name in ("packlight", "torch", "transformers", "numpy")}
    return {
        "recipe": hashlib.sha256(recipe.model_dump_json().encode()).hexdigest(),
        "model": contents,
        **taught_by,
        **students,
        **versions,
    }


def _digest_of_shape(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        what = f"cannot be read ({error.strerror}); name a config.json"
        raise UserError(f"--recipe: initialize: {path}: {what}") from error


def _digest(facts: ModelFacts) -> str:
    return hashlib.sha256(b"".join(file_digests(facts))).hexdigest()


def _teachers(request: CompressRequest, facts: ModelFacts, task: str) -> dict[str, ModelFacts]:
    """The models that the recipe's trainings name. Raises UserError for one that cannot teach this one."""
    found: dict[str, ModelFacts] = {}
    for name in {one.teacher for one in request.recipe.trainings if one.teacher is not None}:
        found[name] = resolve_model(name, trust_remote_code=request.trust_remote_code)
        if found[name].source != "huggingface":
            raise UserError(f"--recipe: teacher {name}: a .gguf file cannot teach; name a Hugging Face directory")
        if (other := task_of(found[name])) != task:
            raise UserError(f"--recipe: teacher {name}: is for {other}, not {task}; name a model for the same")
        refuse_unknown_pooling(found[name], task)
        if _vocabulary(found[name]) != _vocabulary(facts):
            what = f"has other tokens than {request.model}"
            raise UserError(f"--recipe: teacher {name}: {what}; name a model with the same tokenizer")
    return found


def _vocabulary(facts: ModelFacts) -> dict[str, int]:
    tokenizer = load_tokenizer(facts.path / "tokenizer.json", UserError, "a teacher and what it teaches need one")
    found: dict[str, int] = tokenizer.get_vocab()
    return found


def _look_at_same_text(subject: Subject, journal: Journal) -> None:
    """Get the calibration text, of the model as it is now: it may write the text itself. Raises UserError."""
    digest = hashlib.sha256(json.dumps(subject.chunks).encode()).hexdigest()
    what = "the calibration text is another than that which the work was begun with"
    journal.same("text", digest, f"--resume: {what}; put it back, or leave --resume out to begin anew")


def _preset(recipe: Recipe) -> str | None:
    """The preset of the recipe's quantize step, in its format's own spelling."""
    if recipe.preset is None or recipe.format is None:
        return None
    preset = known_quant(recipe.preset, get_target(recipe.format).presets())
    if recipe.format == "gguf":
        _refuse_unchosen(preset)
    return preset


def _refuse_unchosen(preset: str) -> None:
    """A GGUF preset whose codes no step chooses: ggml finds a lattice's points itself. Raises UserError."""
    from targets.gguf.grids import GRIDS
    from targets.gguf.presets import PRESETS

    if preset not in PRESETS:
        raise UserError(f"--recipe: preset {preset}: is for a .gguf file, whose types it keeps; name another one")
    base = PRESETS[preset].base
    if PRESETS[preset].weighted or (base not in GRIDS and base not in FLOAT_BYTES):
        what = f"codes of {base.lower()} are chosen by ggml alone"
        raise UserError(f"--recipe: preset {preset}: {what}; leave quantize out, and export with --quant {preset}")


def _source(request: CompressRequest) -> ModelFacts:
    """The model to compress. Raises UserError for one that cannot be."""
    facts = resolve_model(request.model, trust_remote_code=request.trust_remote_code, revision=request.revision)
    if facts.source != "huggingface":
        raise UserError(f"{request.model}: a .gguf file is compressed already; name the Hugging Face directory")
    if foreign_grids(facts.path):
        raise UserError(f"{request.model}: lies on a grid already, where nothing is changed; name the original model")
    if (facts.path / FACTORS).is_file():
        what = "was factorized already, and its factors would be lost"
        raise UserError(f"{request.model}: {what}; name the original model, and all steps in one recipe")
    return facts


@contextlib.contextmanager
def _opened(
    facts: ModelFacts, task: str, request: CompressRequest, preset: str | None, journal: Journal, reporter: Reporter
) -> Iterator[Subject]:
    from exporter.compress.mapped import open_mapped
    from exporter.compress.stack import layers_of
    from exporter.compress.subject import Subject

    target, options = None, None
    if request.recipe.format is not None and preset is not None:
        target, options = get_target(request.recipe.format), EmitOptions(preset, request.threads)
        refuse_problems(target, facts, options)
    reference = open_mapped(
        facts, journal.room, task, threads=request.threads, trust_remote_code=request.trust_remote_code
    )
    with contextlib.closing(reference):
        subject = Subject(
            facts, reference, request.recipe, reporter.advance, target, options, kept=journal, split=request.here.split
        )
        refuse_unknown_weights(subject)
        layers_of(subject.model)  # where they are not found, nothing can be told of them
        yield subject


def _run(step: Step, subject: Subject, drift: Drifting, reporter: Reporter) -> StepReport:
    from exporter.compress.registry import runner

    options = step.model_dump(mode="json", exclude={"step"}, exclude_defaults=True)
    said = ", ".join(f"{key} {value}" for key, value in options.items())
    reporter.step(f"{step.step}: {said}")
    start = time.monotonic()
    subject.notes.clear()
    runner(step.step)(step, subject)
    seconds = time.monotonic() - start
    n_params = sum(tensor.numel() for tensor in subject.weights().values())
    return StepReport(
        step=step.step,
        options=options,
        seconds=seconds,
        n_bytes=4 * n_params,
        n_params=n_params,
        sparsity=subject.sparsity(),
        notes=tuple(subject.notes),
        **drift.now(),
    )


def _file_bytes(directory: Path, name: str, target: str, options: EmitOptions) -> int:
    """Of the file that an export of the directory, once it has its name, writes.

    Of the weights' file for ONNX, for static-int8 as if a fixed range holds every input; for TorchScript and ExecuTorch
    of the weights alone, on their grids or in floats.
    """
    planned: Any = get_target(target)
    n_bytes: int = planned.file_bytes(read_facts(directory, str(directory), name), options)
    return n_bytes
