"""The jobs of packlight, each as its steps: export a model, verify an artifact, measure an artifact."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from exporter.by_recipe import compressed, quant_of, recorded
from exporter.findings import Findings, Limits, Running, refuse_kv_type, refuse_other_limits
from exporter.quant import known_quant
from exporter.report.report import Provenance, Report, utc_now, version
from exporter.resume import DIGEST, digest_of, is_finished, request_of, settle
from exporter.source import refuse_problems, resolve_model, task_of_source
from exporter.staging import publish, refuse_occupied, staging
from runtime.artifact import open_artifact, write_manifest
from runtime.atomic import write_json, write_text
from runtime.budget import Budget
from runtime.errors import ArtifactError, PacklightError, UserError
from runtime.host import host_facts
from runtime.hosts import LOCAL
from runtime.measurement import KV_BLOCK, KV_FLOATS
from runtime.sessions.base import ENCODER_TASKS, FEATURE_EXTRACTION, is_encoder, task_of
from targets import get_target
from targets.base import TYPES_OF_GGUF, Calibration, EmitOptions, TypeChoice
from targets.gguf.architectures.base import head_dim
from targets.ongrid import recorded_kv_type
from targets.task import TEXT2TEXT_GENERATION

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from exporter.by_recipe import NamedRecipe
    from exporter.progress import Reporter
    from exporter.verify import VerifyOptions
    from runtime.artifact import Artifact
    from targets.base import Target
    from targets.facts import ModelFacts


@dataclass(frozen=True)
class ExportRequest:
    """One export, as the user asked for it.

    model: a directory, a hub id or a .gguf file; revision: of a hub id
    quant: None takes the format's own default
    recipe: to compress by first
    verify: None leaves verifying out; measure: False leaves measuring out
    calibration: what activations are measured on, for presets that fix their ranges
    split_max_bytes: of the tensors in one file, for GGUF; resume: go on where a run that was killed was, for GGUF
    types: of tensors, beside the preset's
    command: as typed, for the record
    """

    model: str
    out: Path
    format: str
    quant: str | None
    limits: Limits = field(default_factory=Limits)
    running: Running = field(default_factory=Running)
    verify: VerifyOptions | None = None
    measure: bool = True
    overwrite: bool = False
    trust_remote_code: bool = False
    revision: str | None = None
    calibration: Calibration = field(default_factory=Calibration)
    recipe: NamedRecipe | None = None
    split_max_bytes: int | None = None
    resume: bool = False
    types: TypeChoice = field(default_factory=TypeChoice)
    command: str = ""


def export(request: ExportRequest, reporter: Reporter) -> Report:
    """Do the main job and return its report; a failed check is in the report, not an error.

    Raises UserError and its kin before anything is written; OUT is then as it was.
    """
    # Absolute, so that OUT has a name and a parent; links in its parents stay what they are.
    out = request.out.absolute()
    target = _check_request(request, out)
    reporter.step(f"reading {request.model}")
    facts = resolve_model(request.model, trust_remote_code=request.trust_remote_code, revision=request.revision)
    quant = quant_of(request.recipe, request.format, request.quant) or target.default_quant(facts)
    device = request.limits.device
    options = EmitOptions(
        known_quant(quant, target.presets()),
        calibration=request.calibration,
        engine=device.onnxruntime if device else None,
        context=request.running.options.context,
        arch=device.arch if device else None,
        split_max_bytes=request.split_max_bytes,
        journalled=request.format == "gguf" and request.recipe is None,
        types=request.types,
    )
    refuse_problems(target, facts, options)
    kv_type = kv_type_of(request, facts)
    refuse_other_limits(request.limits, lambda: task_of_source(facts), request.running)
    if request.verify is not None:
        from exporter.verify import refuse_too_large

        refuse_too_large(facts, request.verify)
    if request.measure:
        request.running.refuse(request.format, reporter)
    made_of = None
    if options.journalled:
        made_of = request_of(facts, options, request.format)
        refuse_occupied(out, overwrite=request.overwrite or (request.resume and is_finished(out, made_of)))
    with staging(out, made_of, resume=request.resume) as room:
        trusted = (request.running.options.threads, request.trust_remote_code)
        with compressed(request.recipe, facts, out, trusted, reporter) as (packed, done):
            reporter.step(f"writing {request.format} {options.quant}")
            artifact = target.emit(packed, options, room, reporter.advance)
        artifact = with_mobile_check(recorded(artifact, done), reporter)
        if kv_type is not None:
            artifact = dataclasses.replace(artifact, contract={**artifact.contract, "kv_type": kv_type})
        report = examine(request, artifact, facts, reporter)
        report = report.at(dataclasses.replace(artifact, root=out))
        said = {DIGEST: digest_of(made_of)} if made_of is not None else {}
        report = write_documents(report, facts, room, request.running.options.context, said)
        settle(room)
        publish(room, out)
    return report


def kv_type_of(request: ExportRequest, facts: ModelFacts) -> str | None:
    """The KV cache that the artifact is verified and measured with; None for the engine's own.

    What the user names, else what the recipe does, that of the export or of the model's directory.
    Raises UserError for a model whose heads it cannot hold.
    """
    by = request.recipe.recipe.kv_cache if request.recipe is not None else None
    kv_type = request.running.options.kv_type or by or recorded_kv_type(facts.path)
    if kv_type is None or request.format != "gguf" or task_of_source(facts) in ENCODER_TASKS:
        return None
    width = head_dim(facts.config) if facts.config.get("num_attention_heads") else 0
    if kv_type not in KV_FLOATS and width % KV_BLOCK:
        what = f"heads of {width} are no whole blocks of {KV_BLOCK}"
        raise UserError(f"{facts.requested}: {what}, which a KV cache of {kv_type} is made of; use --kv-type f16")
    return kv_type


def with_mobile_check(artifact: Artifact, reporter: Reporter) -> Artifact:
    """The artifact with what ONNX Runtime's mobile check says of its graph in the contract; others as they are."""
    if artifact.format != "onnx":
        return artifact
    from targets.onnx.usability import usability

    reporter.step("asking ONNX Runtime's mobile usability check")
    found = usability(artifact.entry_path)
    return dataclasses.replace(artifact, contract=found.recorded(artifact.contract))


def examine(request: ExportRequest, artifact: Artifact, facts: ModelFacts, reporter: Reporter) -> Report:
    """Verify and measure what was written, and hold it against the limits.

    Whatever goes wrong now, a source that does not load or a text that is too short, is a failing line: the weights
    are converted, and nobody wants to lose that.
    """
    findings = Findings(tolerated=(PacklightError,))
    if request.verify is not None:
        findings.verify(artifact, facts, request.verify, reporter)
    if request.measure:
        findings.measure(artifact, request.running, request.command, reporter)
    left_out = {"verified": request.verify is None, "measured": not request.measure}
    skipped = tuple(part for part, left in left_out.items() if left)
    return findings.report(artifact, request.limits, provenance(request.command, facts), skipped)


@dataclass(frozen=True)
class Source:
    """MODEL of `verify`: a directory, a hub id (at `revision`) or a .gguf file."""

    model: str
    revision: str | None = None


def verify_artifact(
    path: Path, source: Source, limits: Limits, options: VerifyOptions, command: str, reporter: Reporter
) -> Report:
    """Compare an artifact on disk with its source."""
    artifact = open_artifact(path)
    refuse_other_limits(limits, lambda: task_of(artifact))
    artifact, facts = with_source(artifact, source, options, reporter)
    findings = Findings()
    findings.look_whole(artifact)
    findings.verify(artifact, facts, options, reporter)
    return findings.report(artifact, limits, provenance(command, facts))


def with_source(
    artifact: Artifact, source: Source, options: VerifyOptions, reporter: Reporter
) -> tuple[Artifact, ModelFacts]:
    """The source's facts, and the artifact with its bits per weight, which a bare file does not say."""
    from exporter.verify import bits_per_weight, refuse_too_large

    reporter.step(f"reading {source.model}")
    facts = resolve_model(source.model, trust_remote_code=options.trust_remote_code, revision=source.revision)
    refuse_too_large(facts, options)
    return dataclasses.replace(artifact, bits_per_weight=bits_per_weight(artifact, facts)), facts


def measure_artifact(path: Path, limits: Limits, how: Running, command: str, reporter: Reporter) -> Report:
    """Measure an artifact on disk."""
    artifact = open_artifact(path)
    refuse_other_limits(limits, lambda: task_of(artifact), how)
    findings = Findings()
    findings.measure(artifact, how, command, reporter)
    return findings.report(artifact, limits, provenance(command))


def check_artifact(path: Path, limits: Limits, how: Running, command: str, reporter: Reporter) -> Report:
    """Measure an artifact on disk under a hard cap of exactly the memory budget."""
    cap = limits.budget.max_memory_bytes
    if cap is None:
        raise UserError("check needs a memory budget; add --max-memory, for example --max-memory 700MB")
    artifact = open_artifact(path)
    refuse_other_limits(limits, lambda: task_of(artifact), how)
    findings = Findings(tolerated=())
    findings.check(artifact, cap, how, command, reporter)
    return findings.report(artifact, limits, provenance(command))


def provenance(command: str, facts: ModelFacts | None = None) -> Provenance:
    """Where and when this runs, and the hub's commit of a source that lies in its cache."""
    cached = facts is not None and facts.path.parent.name == "snapshots"
    return Provenance(command, utc_now(), version(), host_facts(), facts.path.name if facts and cached else None)


def write_documents(
    report: Report, facts: ModelFacts, room: Path, context: int, extra: Mapping[str, str] | None = None
) -> Report:
    """Write report.json, report.html, README.md, Modelfile and manifest.json beside the artifact's files in `room`.

    extra: more keys of the manifest
    A page that cannot be drawn is left out and noted in the report that is returned: the conversion is not lost for it.
    """
    from exporter.report.card import model_card
    from exporter.report.page import PAGE, page_of

    artifact = report.artifact
    if artifact.format == "gguf":
        text, said = _modelfile(artifact, room, context)
        if text:
            write_text(room / "Modelfile", text)
        report = dataclasses.replace(report, notes=(*report.notes, *said))
    try:
        write_text(room / PAGE, page_of(report, dataclasses.replace(artifact, root=room)))
    except ArtifactError as error:
        report = dataclasses.replace(report, notes=(*report.notes, f"{PAGE} could not be drawn ({error})"))
    write_text(room / "README.md", model_card(report, facts, context))
    write_json(room / "report.json", report.to_json())
    write_manifest(dataclasses.replace(artifact, root=room), {**report.manifest_extra(), **(extra or {})})
    return report


def _modelfile(artifact: Artifact, room: Path, context: int) -> tuple[str, tuple[str, ...]]:
    """The text of a Modelfile for a GGUF in `room`, "" where Ollama does not take it, with a note that says why."""
    from exporter.report.modelfile import Chat, embedding_modelfile, modelfile
    from targets.gguf.reading import read_gguf_metadata

    if len(artifact.files) != 1:
        return "", ("no Modelfile: Ollama takes a model in one file; leave out --split-max-size for it",)
    if task_of(artifact) == TEXT2TEXT_GENERATION:
        return "", ("no Modelfile: Ollama runs no model with an encoder and a decoder",)
    if is_encoder(artifact):
        embeds = task_of(artifact) == FEATURE_EXTRACTION
        return (
            (embedding_modelfile(artifact.entry), ()) if embeds else ("", ("no Modelfile: Ollama classifies nothing",))
        )
    metadata = {entry.key: entry.value for entry in read_gguf_metadata(room / artifact.entry)}
    return modelfile(artifact.entry, context, Chat.of_gguf(metadata), artifact.contract.get("kv_type")), ()


def _refuse_types(request: ExportRequest) -> None:
    """Types of tensors that nothing would heed. Raises UserError."""
    if request.types == TypeChoice():
        return
    if request.format != "gguf":
        raise UserError(f"--format {request.format}: {TYPES_OF_GGUF}; leave them out")
    if request.recipe is not None and request.recipe.recipe.preset is not None:
        what = "chooses the types itself, and writes what it has chosen"
        raise UserError(
            f"--recipe {request.recipe.name}: {what}; leave --rule and its like out, and write rules into it"
        )


def _check_request(request: ExportRequest, out: Path) -> Target:
    """Everything that can be wrong with a request before MODEL is looked at. Raises UserError."""
    budget, device = request.limits.budget, request.limits.device
    target = get_target(request.format)
    if device is not None and request.format not in device.formats:
        raise UserError(f"{device.id}: does not run '{request.format}'; it runs {', '.join(device.formats)}")
    refuse_kv_type(request.running.options.kv_type)
    _refuse_types(request)
    if not request.measure and request.running.host.name != LOCAL:
        raise UserError("--on names a machine that measures; leave out --no-measure or --on")
    speeds = dataclasses.replace(budget, max_artifact_bytes=None)
    if not request.measure and speeds != Budget():
        raise UserError("a memory, load or speed budget needs a measurement; leave out --no-measure or the budget")
    trials = request.running.trials
    if not request.measure and (trials.sustained_s or trials.fill_context):
        raise UserError("--sustained and --fill-context measure; leave out --no-measure or them")
    if request.verify is None and (request.limits.drift or request.limits.encoder_drift) is not None:
        raise UserError("a drift budget needs verifying; leave out --no-verify or the budget")
    if request.verify is not None and request.verify.text is not None:
        from targets.text import load_text

        load_text(request.verify.text)
    _refuse_of_other_formats(request)
    refuse_occupied(out, overwrite=request.overwrite or request.resume)
    return target


def _refuse_of_other_formats(request: ExportRequest) -> None:
    """Raise UserError for what only a GGUF export has."""
    if request.resume and request.recipe is not None:
        raise UserError("export --recipe does not keep its work; use 'packlight compress --resume', then export that")
    for option, named in (("--resume", request.resume), ("--split-max-size", request.split_max_bytes is not None)):
        if named and request.format != "gguf":
            raise UserError(f"{option} is for --format gguf; leave it out for {request.format}")
