"""The GGUF backend: plan, stream, name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from runtime.artifact import Artifact, record
from runtime.atomic import replacing
from runtime.errors import ModelError
from runtime.host import usable_cores
from targets.gguf.plan import Plan, make_plan
from targets.gguf.presets import PRESETS
from targets.gguf.stream import write_tensors
from targets.ongrid import recorded_preset
from targets.planned import PlannedTarget
from targets.stream import reserve

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
        return {preset.name: f"{preset.help}{needed[preset.weighted]}" for preset in PRESETS.values()}

    def default_quant(self, facts: ModelFacts) -> str:
        """See `Target`: what the model was compressed for, else what most GGUF files on a hub have."""
        return recorded_preset(facts.path, self.name) or "q4_k_m"

    def make_plan(self, facts: ModelFacts, options: EmitOptions) -> tuple[Plan | None, list[Problem]]:
        """See `PlannedTarget`."""
        return make_plan(facts, options)

    def emit(self, facts: ModelFacts, options: EmitOptions, out: Path, progress: Progress) -> Artifact:
        """Write the file into the existing directory `out`. Raises ModelError for NaN or infinite weights."""
        plan = self.plan(facts, options)
        path = out / plan.name.file_name(plan.preset.name)
        threads = options.threads or usable_cores()
        with replacing(path) as temporary:
            _write(temporary, plan, threads, progress)
        return Artifact(
            root=out,
            format=self.name,
            entry=path.name,
            name=plan.name.name,
            quant=plan.preset.name,
            n_params=plan.n_params,
            bits_per_weight=plan.bits_per_weight,
            context_length=plan.context_length,
            source=facts.requested,
            contract={"engine": "llama.cpp", "tensors": _type_counts(plan), "notes": list(plan.notes)},
            files={path.name: record(path)},
        )


def _write(path: Path, plan: Plan, threads: int, progress: Progress) -> None:
    """Write the whole file at `path`. Raises UserError where the disk is too small, before any work."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        reserve(descriptor, path, plan.file_bytes)
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(plan.header)
        importance = plan.importance.means if plan.importance is not None else None
        write_tensors(descriptor, len(plan.header), plan.tensors, threads, progress, importance)
    except OSError as error:
        raise ModelError(
            f"{path.parent}: cannot be written ({error.strerror}); free space or choose another -o"
        ) from error
    finally:
        os.close(descriptor)


def _type_counts(plan: Plan) -> dict[str, int]:
    """How many tensors have each type."""
    counts: dict[str, int] = {}
    for _, placed in plan.tensors:
        counts[placed.kind.name] = counts.get(placed.kind.name, 0) + 1
    return counts
