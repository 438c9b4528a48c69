"""The GGUF backend: plan, stream, name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.artifact import Artifact
from runtime.host import usable_cores
from targets.gguf.architectures import ARCHITECTURES
from targets.gguf.encoders import contract_of
from targets.gguf.files import cut_problems, files_of
from targets.gguf.plan import Plan, make_plan
from targets.gguf.presets import COPY, PRESETS
from targets.gguf.writing import write_files
from targets.ongrid import recorded_preset
from targets.planned import PlannedTarget

if TYPE_CHECKING:
    from pathlib import Path

    from targets.base import EmitOptions, Problem, Progress
    from targets.facts import ModelFacts


class GgufTarget(PlannedTarget[Plan]):
    """Writes `.gguf` files for llama.cpp."""

    name = "gguf"

    def presets(self) -> dict[str, str]:
        """Quantization presets by name, with a line for people."""
        needed = {True: "; needs an importance matrix", False: ""}
        return {preset.name: f"{preset.help}{needed[preset.weighted]}" for preset in (*PRESETS.values(), COPY)}

    def default_quant(self, facts: ModelFacts) -> str:
        """See `Target`: what the model was compressed for, else what most GGUF files of its kind on a hub have."""
        known = ARCHITECTURES.get(facts.architecture)
        return recorded_preset(facts.path, self.name) or ("q8_0" if known is not None and known.encoder else "q4_k_m")

    def make_plan(self, facts: ModelFacts, options: EmitOptions) -> tuple[Plan | None, list[Problem]]:
        """See `PlannedTarget`."""
        plan, problems = make_plan(facts, options)
        return plan, problems or (cut_problems(plan, options.split_max_bytes) if plan is not None else [])

    def emit(self, facts: ModelFacts, options: EmitOptions, out: Path, progress: Progress) -> Artifact:
        """Write the file, or its parts, into the existing directory `out`. Raises ModelError for bad weights."""
        plan = self.plan(facts, options)
        planned = files_of(plan, options.split_max_bytes)
        names = [file.name for file in planned]
        importance = plan.importance.means if plan.importance is not None else None
        files = write_files(
            out, planned, options.threads or usable_cores(), progress, journalled=options.journalled,
            importance=importance,
        )  # fmt: skip
        return Artifact(
            root=out,
            format=self.name,
            entry=names[0],
            name=plan.name.name,
            quant=plan.preset.name,
            n_params=plan.n_params,
            bits_per_weight=plan.bits_per_weight,
            context_length=plan.context_length,
            source=facts.requested,
            contract={
                "engine": "llama.cpp",
                "tensors": _type_counts(plan),
                "notes": list(plan.notes),
                **contract_of(facts, {entry.key: entry.value for entry in plan.metadata}),
                **({"model_files": names} if len(names) > 1 else {}),
            },
            files=files,
        )


def _type_counts(plan: Plan) -> dict[str, int]:
    """How many tensors have each type."""
    counts: dict[str, int] = {}
    for _, placed in plan.tensors:
        counts[placed.kind.name] = counts.get(placed.kind.name, 0) + 1
    return counts
