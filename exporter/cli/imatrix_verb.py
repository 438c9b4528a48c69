"""The verb `imatrix`. As `exporter.cli.verbs`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from exporter.cli.terminal import progress
from runtime.atomic import json_text

if TYPE_CHECKING:
    from exporter.cli.options import Output
    from exporter.cli.type_options import ImatrixJob


def imatrix(job: ImatrixJob, output: Output) -> int:
    """Find out what each column of MODEL's matrices counts, for types of few bits: an importance matrix."""
    from exporter.imatrix.job import ImatrixRequest, compute, said

    request = ImatrixRequest(
        model=job.model,
        out=job.out,
        text=job.text,
        chunks=job.chunks,
        tokens=job.tokens,
        form=job.form.lower() if job.form else None,
        low_memory=job.low_memory,
        threads=job.threads,
        overwrite=job.overwrite,
        trust_remote_code=job.trust_remote_code,
        revision=job.revision,
    )
    with progress(output) as reporter:
        report = compute(request, reporter)
    if output.json:
        typer.echo(json_text(report.to_json()))
    elif not output.quiet:
        typer.echo("\n".join(said(report)))
    return 0
