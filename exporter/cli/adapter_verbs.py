"""The verbs of LoRA adapters; see `verbs`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from exporter.cli.terminal import print_json, progress
from runtime.units import format_bytes

if TYPE_CHECKING:
    from exporter.cli.adapter_options import AdapterJob, AdapterOut, MergedOut
    from exporter.cli.options import Output


def merge(job: AdapterJob, merged: MergedOut, output: Output) -> int:
    """Add a LoRA adapter to its base: a directory that transformers loads and every other verb takes."""
    from exporter.adapter.merge import MergeRequest
    from exporter.adapter.merge import merge as run

    request = MergeRequest(job.adapter, merged.out, job.base, job.revision, merged.keep_dtype, job.trust_remote_code)
    with progress(output) as reporter:
        report = run(request, reporter)
    if output.json:
        print_json(report.to_json())
    elif not output.quiet:
        for note in report.notes:
            typer.echo(f"note: {note}")
        typer.echo(
            f"written: {report.out} ({format_bytes(report.n_bytes)}, {report.added + report.whole} weights changed)"
        )
        typer.echo(f"next: packlight export {report.out} -o ARTIFACT")
    return 0


def adapter(job: AdapterJob, written: AdapterOut, output: Output) -> int:
    """Write a LoRA adapter as the GGUF file that llama.cpp adds to its base when it runs."""
    from exporter.adapter.for_llamacpp import write_adapter
    from exporter.adapter.merge import MergeRequest

    request = MergeRequest(job.adapter, written.out, job.base, job.revision, trust_remote_code=job.trust_remote_code)
    with progress(output) as reporter:
        report = write_adapter(request, reporter)
    if output.json:
        print_json(report.to_json())
    elif not output.quiet:
        typer.echo(f"written: {report.out} ({format_bytes(report.n_bytes)}, {report.matrices} matrices)")
        typer.echo(f"next: llama-cli --model BASE.gguf --lora {report.out}")
    return 0
