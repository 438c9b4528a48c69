"""The verbs of plans; see `verbs`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import typer

from exporter.cli.terminal import print_json, progress, show_rows
from runtime.errors import UserError

if TYPE_CHECKING:
    from exporter.cli.options import Output
    from exporter.cli.plan_options import Calibrating, PlanLimits, Planned
    from exporter.cli.type_options import Types


def plan(planned: Planned, types: Types, limits: PlanLimits, output: Output) -> int:
    """Before anything is converted: bytes, memory and speed of every format and quantization, and what fits."""
    from exporter.cli.plan_table import show_plan
    from exporter.plan import PlanRequest, known_speed
    from exporter.plan import plan as run

    held = limits.budget_options().limits()
    report = run(
        PlanRequest(
            model=planned.model,
            budget=held.budget,
            device=held.device,
            formats=planned.format,
            quants=planned.quant or None,
            contexts=planned.context,
            kv_types=[name.lower() for name in planned.kv_type] if planned.kv_type else None,
            batch=planned.batch,
            threads=planned.threads,
            mmap=not planned.no_mmap,
            revision=planned.revision,
            speed=known_speed(planned.threads),
            types=types.choice(),
        )
    )
    if output.json:
        print_json(report.to_json())
    elif not output.quiet:
        show_plan(report)
    return report.exit_status


def calibrate_host(calibrating: Calibrating, output: Output) -> int:
    """Measure this machine once, so that 'plan' can say how fast a model will be on it."""
    from exporter.calibrate_host import calibrate
    from exporter.plan import calibration_path, known_speed
    from runtime.atomic import write_json

    out = calibration_path(calibrating.threads)
    with progress(output) as reporter:
        speed = calibrate(calibrating.threads, calibrating.format, reporter)
        with contextlib.suppress(UserError):  # a damaged one is replaced
            if (known := known_speed(calibrating.threads)) is not None:
                speed = speed.beside(known)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, speed.to_json())
    if output.json:
        print_json({"out": str(out), **speed.to_json()})
    elif not output.quiet:
        rows = [
            (name, label, *(f"{1e-9 / costs[label]:.2f}" if label in costs else "" for costs in engine.costs))
            for name, engine in speed.engines.items()
            for label in {**engine.decode_s, **engine.prefill_s}
        ]
        show_rows(("format", "stored as", "decode, G elements/s", "prefill, G elements/s"), rows)
        typer.echo(f"memory read: {speed.bandwidth_bytes_per_s / 1e9:.1f} GB/s with {speed.threads} threads")
        typer.echo(f"written: {out}")
    return 0
