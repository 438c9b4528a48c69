"""A plan for people: a table, what is best, what cannot be written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from exporter.cli.terminal import show_rows
from exporter.plan import BOUND
from runtime.units import format_bytes

if TYPE_CHECKING:
    from exporter.plan import PlanReport, PlanRow


def show_plan(report: PlanReport) -> None:
    """Write it to standard output."""
    limited = any(row.over is not None for row in report.rows)
    header = ["format", "quant", "bits", "context", "kv", "size", "peak memory", "decode", "prefill"]
    show_rows((*header, *(["fits"] if limited else [])), [_cells(row, report.speeds, limited) for row in report.rows])
    if report.exit_status:
        nearest = min(report.rows, key=lambda row: (len(row.over or ()), row.peak_bytes or row.file_bytes))
        typer.echo(f"nothing fits; the nearest: {nearest.format} {nearest.quant}: {', '.join(nearest.over or ())}")
    elif report.best is None:
        named = sorted({name for row in report.rows for name in row.unknown})
        typer.echo(
            f"whether anything fits is not known beforehand ({', '.join(named) or 'memory'}); 'export' measures it"
        )
    elif report.best is not None:
        best = report.best
        fits = "best that fits" if limited else "most for its bytes"
        typer.echo(f"{fits}: --format {best.format} --quant {best.quant}, {_memory(best)}")
    for name, presets in report.refused.items():
        for reason in sorted(set(presets.values())):
            which = [preset for preset, said in presets.items() if said == reason]
            typer.echo(f"not {name} {', '.join(which)}: {reason}")
    for note in report.notes:
        typer.echo(f"note: {note}")


def _cells(row: PlanRow, speeds: str, limited: bool) -> tuple[str, ...]:
    mark = "<= " if speeds == BOUND else ""
    decode = "" if row.decode_tokens_per_s is None else f"{mark}{row.decode_tokens_per_s:.1f} tokens/s"
    prefill = "" if row.prefill_tokens_per_s is None else f"{row.prefill_tokens_per_s:.0f} tokens/s"
    fits = ({True: "yes", False: "NO", None: "unknown"}[row.fits],) if limited else ()
    size = ("" if row.exact else "~") + format_bytes(row.file_bytes)
    peak = "" if row.peak_bytes is None else format_bytes(row.peak_bytes)
    return (row.format, row.quant, f"{row.bits_per_weight:.2f}", str(row.context), row.kv_type or "", size, peak,
            decode, prefill, *fits)  # fmt: skip


def _memory(row: PlanRow) -> str:
    parts = row.footprint
    if parts is None:
        return f"{format_bytes(row.file_bytes)} on disk"
    named = (("weights", parts.weights_bytes), ("KV cache", parts.kv_cache_bytes), ("compute", parts.compute_bytes),
             ("the rest", parts.other_bytes))  # fmt: skip
    return f"{format_bytes(parts.peak_bytes)}: " + ", ".join(f"{name} {format_bytes(n)}" for name, n in named if n)
