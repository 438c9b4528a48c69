"""Options of plans. As `exporter.cli.options`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from exporter.cli.options import (
    Batch,
    BudgetOptions,
    ComputeThreads,
    DeviceName,
    MaxMemory,
    MaxSize,
    MinPrefill,
    MinSpeed,
    NoMmap,
)
from exporter.cli.panels import COUNT, JOB, NAME, RUN, option


@dataclass(frozen=True)
class Planned:
    """What to plan. Options that may be repeated make a row each."""

    model: Annotated[
        str, typer.Argument(help="A model directory, a hub id or a .gguf file.", metavar="MODEL", show_default=False)
    ]
    format: Annotated[list[str] | None, option("--format", "Only this format; may be repeated.", JOB, NAME)] = None
    quant: Annotated[list[str] | None, option("--quant", "Only this preset; may be repeated.", JOB, NAME)] = None
    context: Annotated[
        list[int] | None, option("--context", "Tokens of context; default 2048; repeatable.", RUN, COUNT, min=16)
    ] = None
    kv_type: Annotated[
        list[str] | None,
        option("--kv-type", "Type of the KV cache; default the recipe's, else f16; repeatable.", RUN, NAME),
    ] = None
    batch: Batch = 512
    threads: ComputeThreads = None
    no_mmap: NoMmap = False
    revision: Annotated[str | None, option("--revision", "Branch, tag or commit of a hub id.", JOB, NAME)] = None


@dataclass(frozen=True)
class PlanLimits:
    """Limits that are known beforehand, and the device to fit."""

    device: DeviceName = None
    max_memory: MaxMemory = None
    max_size: MaxSize = None
    min_prefill: MinPrefill = None
    min_speed: MinSpeed = None

    def budget_options(self) -> BudgetOptions:
        """The same among all limits."""
        return BudgetOptions(self.device, self.max_memory, self.max_size,
                             min_prefill=self.min_prefill, min_speed=self.min_speed)  # fmt: skip


@dataclass(frozen=True)
class Calibrating:
    """How this machine is calibrated."""

    threads: ComputeThreads = None
    format: Annotated[
        list[str] | None, option("--format", "Only engines of this format; may be repeated.", RUN, NAME)
    ] = None
