"""The directory of an export to a PyTorch format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.artifact import Artifact, record
from runtime.atomic import write_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from targets.facts import ModelFacts
    from targets.pytorch.plan import Plan


def finish(out: Path, facts: ModelFacts, plan: Plan, names: tuple[str, str, Sequence[str]], stored: int,
           context_length: int, contract: dict[str, Any]) -> Artifact:  # fmt: skip
    """Write config.json beside what was written, and describe it all.

    names: of the format, of the model's file, of the files copied; stored: bytes of the weights
    """
    format_name, entry, copied = names
    write_json(out / "config.json", plan.config)
    return Artifact(
        root=out,
        format=format_name,
        entry=entry,
        name=facts.name,
        quant=plan.preset.name,
        n_params=plan.n_params,
        bits_per_weight=8 * stored / plan.n_params,
        context_length=context_length,
        source=facts.requested,
        contract=contract,
        files={name: record(out / name) for name in (entry, *copied, "config.json")},
    )
