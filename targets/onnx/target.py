"""The ONNX backend: plan, stream the weights, write the graph, lay out the directory that every client loads."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.artifact import Artifact, record
from runtime.atomic import replacing, write_json
from runtime.errors import ModelError, UnsupportedError
from runtime.host import usable_cores
from targets.base import Problem
from targets.gguf.tokenizer.files import read_files
from targets.ongrid import recorded_preset
from targets.onnx import calibration, clients, releases
from targets.onnx.plan import FOLDER, Plan, make_plan
from targets.onnx.presets import PRESETS
from targets.onnx.weights import Sink
from targets.planned import PlannedTarget
from targets.stream import reserve, run_chunks
from targets.weights import WeightReader

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

    from targets.base import EmitOptions, Progress
    from targets.facts import ModelFacts
    from targets.gguf.tokenizer.files import TokenizerFiles

OPSET, IR_VERSION = 21, 10
"""Nothing that is written needs more."""


class OnnxTarget(PlannedTarget[Plan]):
    """Writes directories with an `.onnx` graph and its weights beside it, for ONNX Runtime and its clients."""

    name = "onnx"

    def presets(self) -> dict[str, str]:
        """Quantization presets by name, with a line for people."""
        return {preset.name: preset.help for preset in PRESETS.values()}

    def default_quant(self, facts: ModelFacts) -> str:
        """The preset where the user names none."""
        from targets.task import TEXT_GENERATION, infer_task

        recorded = recorded_preset(facts.path, self.name)
        return recorded or ("int4" if infer_task(facts) == TEXT_GENERATION else "dynamic-int8")

    def make_plan(self, facts: ModelFacts, options: EmitOptions) -> tuple[Plan | None, list[Problem]]:
        """See `PlannedTarget`."""
        plan, problems = make_plan(facts, options)
        return plan, problems if plan is None else _too_new(plan, options)

    def file_bytes(self, facts: ModelFacts, options: EmitOptions) -> int:
        """See `PlannedTarget`; of a preset that is calibrated as if a fixed range holds every input."""
        return self.final_plan(facts, options).file_bytes

    def final_plan(self, facts: ModelFacts, options: EmitOptions) -> Plan:
        """The plan; of a preset that is calibrated as if a fixed range holds every input."""
        plan = self.plan(facts, options)
        if not plan.recorded:
            return plan
        held = calibration.Ranges(dict.fromkeys(plan.recorded, (0.0, 1.0)), frozenset(), {})
        return _final_plan(facts, options, held)

    def emit(self, facts: ModelFacts, options: EmitOptions, out: Path, progress: Progress) -> Artifact:
        """Write the directory. Raises ModelError for NaN or infinite weights."""
        plan = self.taken_plan(facts, options)  # its blobs know their places: a graph is written once
        if plan.recorded:
            plan = _calibrated(facts, options, plan, out, progress)
        proto = write_graph(out, plan, options, progress)
        files = [plan.file, *plan.data_files, *write_side_files(facts, plan, out)]
        return Artifact(
            root=out,
            format=self.name,
            entry=plan.file,
            name=facts.name,
            quant=plan.preset.name,
            n_params=plan.n_params,
            bits_per_weight=plan.bits_per_weight,
            context_length=plan.context,
            source=facts.requested,
            contract={
                "engine": "ONNX Runtime",
                "task": plan.task,
                "opset": proto.opset_import[0].version,
                "minimum_onnxruntime": releases.minimum_onnxruntime(proto).version,
                "inputs": [value.name for value in proto.graph.input],
                "outputs": [value.name for value in proto.graph.output],
                "tensors": plan.counts,
                "model_files": [plan.file, *plan.data_files],
                **({"n_vocab": plan.encoder.vocab} if plan.encoder else {}),
                "notes": list(plan.notes),
            },
            files={name: record(out / name) for name in files},
        )


def _calibrated(facts: ModelFacts, options: EmitOptions, plan: Plan, out: Path, progress: Progress) -> Plan:
    """The plan of a static preset, once its ranges are known from running `plan`."""
    # A longer piece would be looked up behind the end of the table of positions.
    pieces = dataclasses.replace(options.calibration, tokens=min(options.calibration.tokens, plan.context))
    chunks, name = calibration.token_chunks(facts.path / "tokenizer.json", pieces)
    for value in sorted(set(plan.recorded.values())):
        plan.graph.output(value, np.float32, ("batch_size", "sequence_length", None))
    with calibration.scratch(out) as room:
        write_graph(room, plan, options, progress)
        ranges = calibration.find_ranges(
            room / plan.file, plan.recorded, chunks, options.calibration, progress, plan.fixed
        )
    final = _final_plan(facts, options, ranges)
    if plan.preset.calibrated == "smoothing":
        method = f"inputs smoothed by what {sum(map(len, chunks))} tokens of {name} showed"
    else:
        method = f"activation ranges: {options.calibration.method} over {sum(map(len, chunks))} tokens of {name}"
    return dataclasses.replace(final, notes=(*final.notes, method))


def _final_plan(facts: ModelFacts, options: EmitOptions, ranges: calibration.Ranges) -> Plan:
    final, problems = make_plan(facts, options, ranges)
    if final is None:
        raise UnsupportedError("\n".join(map(str, problems)))
    return final


def graph_of(plan: Plan, options: EmitOptions) -> onnx.ModelProto:
    """The graph, in the newest opset that both we need and the device's ONNX Runtime loads."""
    release = releases.opset_for(options.engine)
    names = [name.removeprefix(f"{FOLDER}/") for name in plan.data_files]
    return plan.graph.proto(names, min(release.opset, OPSET), min(release.ir, IR_VERSION))


def _too_new(plan: Plan, options: EmitOptions) -> list[Problem]:
    """Whether the device's ONNX Runtime is older than what the graph needs."""
    if options.engine is None:
        return []
    need = releases.minimum_onnxruntime(graph_of(plan, options))
    if releases.parse_version(need.version) <= releases.parse_version(options.engine):
        return []
    what = f"has ONNX Runtime {options.engine}, {plan.preset.name} needs {need.version} ({need.because})"
    return [Problem("the device", what, "ship a newer ONNX Runtime with the app, or use another --quant")]


def write_graph(out: Path, plan: Plan, options: EmitOptions, progress: Progress) -> onnx.ModelProto:
    """Write the graph and its weights below `out`; returns the graph."""
    model = out / plan.file
    model.parent.mkdir(exist_ok=True)
    write_data(out, plan, options.threads or usable_cores(), progress)
    proto = graph_of(plan, options)
    with replacing(model) as temporary:
        temporary.write_bytes(proto.SerializeToString())
    return proto


def write_data(out: Path, plan: Plan, threads: int, progress: Progress) -> None:
    """Write the data files. Raises UserError where the disk is too small, before any work."""
    with contextlib.ExitStack() as stack:
        descriptors = []
        for name, n_bytes in zip(plan.data_files, plan.data_bytes, strict=True):
            temporary = stack.enter_context(replacing(out / name))
            descriptors.append(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644))
            stack.callback(os.close, descriptors[-1])
            reserve(descriptors[-1], temporary, n_bytes)
        reader = stack.enter_context(WeightReader())
        for job in plan.graph.jobs:
            for fact in job.files():
                reader.open_all(fact)
        sink = Sink(reader, tuple(descriptors))
        chunks = (partial(chunk, sink) for job in plan.graph.jobs for chunk in job.chunks())
        try:
            run_chunks(chunks, threads, sum(plan.data_bytes), progress)
        except OSError as error:
            raise ModelError(f"{out}: cannot be written ({error.strerror}); free space or choose another -o") from error


def write_side_files(facts: ModelFacts, plan: Plan, out: Path) -> list[str]:
    """What the clients read beside the graph; returns the names."""
    return [*clients.copy_side_files(facts.path, out), *write_settings(facts, plan, out)]


def write_settings(facts: ModelFacts, plan: Plan, out: Path, files: TokenizerFiles | None = None) -> list[str]:
    """Of the side files those that name the graph; returns the names. files: what `read_files` has found there"""
    names = []
    config: dict[str, Any]
    if plan.decoder is not None:
        files = files or read_files(facts.path)
        spec = plan.decoder
        decoder = clients.Decoder(
            file=plan.file, n_layers=spec.n_layers, n_heads=spec.n_heads, n_kv_heads=spec.n_kv_heads,
            head_dim=spec.head_dim, hidden=spec.hidden, vocab=spec.vocab, context_length=spec.context,
            ids=clients.token_ids(files, plan.config),
        )  # fmt: skip
        write_json(out / clients.GENAI_CONFIG, clients.genai_config(plan.config, decoder, files.generation))
        names.append(clients.GENAI_CONFIG)
        config = clients.web_config(
            plan.config,
            plan.file,
            data_files=len(plan.data_files),
            decoder=decoder,
            half_cache=plan.preset.name == "fp16",
        )
    else:
        config = clients.web_config(plan.config, plan.file, data_files=len(plan.data_files))
    write_json(out / "config.json", config)
    return [*names, "config.json"]
