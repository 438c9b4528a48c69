"""The `.ort` backend: the ONNX export in ONNX Runtime's own flatbuffer, for apps that ship a reduced build of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from runtime.artifact import Artifact, record
from runtime.atomic import write_json, write_text
from runtime.units import format_bytes
from targets.base import Problem
from targets.onnx import clients, mobile
from targets.onnx.target import OnnxTarget
from targets.onnx.usability import usability

if TYPE_CHECKING:
    from pathlib import Path

    from targets.base import EmitOptions, Progress
    from targets.facts import ModelFacts
    from targets.onnx.plan import Plan

OPERATORS = "required_operators_and_types.config"
NOT_HERE = ("fp16",)
"""Converted on an x86, the file holds casts to float32: slower everywhere, and not the model that was asked for."""


class OrtTarget(OnnxTarget):
    """Writes directories with an `.ort` file and the operators that it needs."""

    name = "ort"

    def presets(self) -> dict[str, str]:
        """Quantization presets by name, with a line for people."""
        return {name: text for name, text in super().presets().items() if name not in NOT_HERE}

    def make_plan(self, facts: ModelFacts, options: EmitOptions) -> tuple[Plan | None, list[Problem]]:
        """See `PlannedTarget`; the format's limit of 2 GB is one more problem."""
        plan, problems = super().make_plan(facts, options)
        if options.engine is not None:
            fix = "take the device's [onnxruntime] table out, or use --format onnx"
            problems.append(Problem("the device", "pins ONNX Runtime, an .ort needs the version that made it", fix))
        if plan is not None and sum(plan.data_bytes) > mobile.ORT_LIMIT_BYTES:
            what = f"weights of {format_bytes(sum(plan.data_bytes))} are over the format's 2 GB"
            problems.append(Problem(facts.requested, what, "use --format onnx, or a smaller quantization"))
        return plan, problems

    def emit(self, facts: ModelFacts, options: EmitOptions, out: Path, progress: Progress) -> Artifact:
        """Write the directory. Raises ModelError for bad weights, EngineError where ONNX Runtime does not convert."""
        artifact = super().emit(facts, options, out, progress)
        model = artifact.entry_path
        progress("mobile usability check", 0, 1)
        judged = usability(model).recorded(artifact.contract)  # the check reads no .ort
        progress("mobile usability check", 1, 1)
        progress("convert to .ort", 0, 1)
        made = mobile.to_ort(model, model.with_suffix(".ort"))
        write_text(out / OPERATORS, mobile.required_operators(made.path))
        gone = [*artifact.contract["model_files"], clients.GENAI_CONFIG]  # the engine that reads it wants an .onnx
        for name in gone:
            (out / name).unlink(missing_ok=True)
        progress("convert to .ort", 1, 1)
        write_json(out / "config.json", facts.config)  # transformers.js, whose settings it had, wants an .onnx
        entry = made.path.relative_to(out).as_posix()
        kept = {name: entry_record for name, entry_record in artifact.files.items() if name not in gone}
        newer = f"an .ort loads in ONNX Runtime {made.onnxruntime} and newer ones"
        contract = {
            **judged,
            "minimum_onnxruntime": ".".join(made.onnxruntime.split(".")[:2]),
            "model_files": [entry],
            "notes": [*judged["notes"], newer],
        }
        files = {**kept, **{name: record(out / name) for name in (entry, OPERATORS, "config.json")}}
        return dataclasses.replace(artifact, format=self.name, entry=entry, contract=contract, files=files)
