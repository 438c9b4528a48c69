"""The verbs. Each fills a request from its options, makes one library call, and shows what comes back.

A verb returns its exit status. Everything heavy is imported inside.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from exporter.cli.command import command_line
from exporter.cli.terminal import print_json, progress, show_report, show_rows
from runtime.errors import UserError
from runtime.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from exporter.cli.options import (
        Against,
        Archive,
        ArchiveOut,
        ArtifactPath,
        BudgetOptions,
        Cache,
        Checked,
        CompressJob,
        HarnessOut,
        Job,
        Output,
        PageOut,
        Reported,
        Running,
        Threads,
        Verifying,
    )
    from exporter.cli.type_options import Types
    from exporter.compress.job import CompressRequest
    from exporter.compress.processes import Launched
    from exporter.report.report import Report
    from targets.device import Device


def export(
    job: Job, types: Types, budget: BudgetOptions, running: Running, verifying: Verifying, output: Output
) -> int:
    """Compress MODEL for a target; verify, measure and report."""
    from exporter.by_recipe import NamedRecipe
    from exporter.compress.processes import launched
    from exporter.pipeline import ExportRequest
    from exporter.pipeline import export as run
    from exporter.recipe import load_recipe
    from exporter.report.page import PAGE
    from targets.base import Calibration

    by = NamedRecipe(load_recipe(job.recipe), job.recipe) if job.recipe is not None else None
    if by is not None and (count := launched().count) > 1:
        what = f"export --recipe runs in one process, WORLD_SIZE says {count}"
        raise UserError(f"{what}; let them compress, and export what that has written")
    request = ExportRequest(
        model=job.model,
        out=job.out,
        format=job.format or (by.recipe.format if by else None) or "gguf",
        quant=job.quant,
        limits=budget.limits(verifying.thresholds(), verifying.encoder_thresholds()),
        running=running.how(),
        verify=None if job.no_verify else verifying.options(running.threads),
        measure=not job.no_measure,
        overwrite=job.overwrite,
        trust_remote_code=verifying.trust_remote_code,
        revision=job.revision,
        calibration=Calibration(job.calibration, job.calibration_text),
        recipe=by,
        split_max_bytes=parse_bytes(job.split_max_size) if job.split_max_size is not None else None,
        resume=job.resume,
        types=types.choice(),
        command=command_line(),
    )
    with progress(output) as reporter:
        report = run(request, reporter)
    page = report.artifact.root / PAGE
    return _finish(report, output, f"{report.artifact.entry_path}", f"{page}" if page.exists() else "")


def compress(job: CompressJob, output: Output) -> int:
    """Put MODEL through a recipe: a directory that transformers loads and 'export' packs as it is."""
    from exporter.compress.job import compress as run
    from exporter.compress.job import follow
    from exporter.compress.journal import work_of
    from exporter.compress.processes import launched, said_after_first

    here = launched()
    if not here.first:
        with said_after_first(here):
            request = _compression(job, here)
        follow(request)
        return 0
    request = _compression(job, here)
    try:
        with progress(output) as reporter:
            report = run(request, reporter)
    except KeyboardInterrupt as error:
        work = work_of(job.out.absolute())
        said = (f"{work} holds what is done, the same command with --resume goes on",) if work.exists() else ()
        raise KeyboardInterrupt(*said) from error
    if output.json:
        print_json(report.to_json())
    elif not output.quiet:
        rows = [
            (step.said, format_bytes(step.n_bytes), f"{step.n_params:,}", f"{step.sparsity:.0%}",
             *step.drift.values(), f"{step.seconds:.0f} s")
            for step in report.steps
        ]  # fmt: skip
        moved = report.steps[0].drift
        show_rows(("step", "bytes", "parameters", "zeros", *moved, "time"), rows)
        for note in (note for step in report.steps for note in step.notes):
            typer.echo(f"note: {note}")
        typer.echo(f"written: {report.out}")
        usual = "gguf" if report.steps[0].mean_kl is not None else "onnx"
        typer.echo(f"next: packlight export {report.out} --format {report.format or usual} -o ARTIFACT --no-verify")
        typer.echo(f"      packlight verify ARTIFACT --against {report.model}")
    return 0


def _compression(job: CompressJob, here: Launched) -> CompressRequest:
    from exporter.compress.job import CompressRequest
    from exporter.recipe import load_recipe

    return CompressRequest(
        model=job.model,
        out=job.out,
        recipe=load_recipe(job.recipe),
        recipe_name=job.recipe,
        threads=job.threads,
        trust_remote_code=job.trust_remote_code,
        revision=job.revision,
        resume=job.resume,
        here=here,
    )


def recipes(output: Output) -> int:
    """List the recipes of 'compress'."""
    from exporter.recipe import list_recipes

    known = list_recipes()
    if output.json:
        print_json({name: recipe.model_dump(mode="json") for name, recipe in known.items()})
    elif not output.quiet:
        show_rows(
            ("recipe", "format", ""), [(name, one.format or "any", one.description) for name, one in known.items()]
        )
    return 0


def verify(
    path: ArtifactPath, against: Against, verifying: Verifying, threads: Threads, cache: Cache, output: Output
) -> int:
    """Compare ARTIFACT with the model that it was made from."""
    from exporter.findings import Limits
    from exporter.pipeline import Source, verify_artifact

    limits = Limits(drift=verifying.thresholds(), encoder_drift=verifying.encoder_thresholds())
    with progress(output) as reporter:
        report = verify_artifact(
            path.artifact,
            Source(against.against, against.revision),
            limits,
            verifying.options(threads.threads, cache.kv_type),
            command_line(),
            reporter,
        )
    return _finish(report, output)


def measure(path: ArtifactPath, budget: BudgetOptions, running: Running, output: Output) -> int:
    """Measure the memory and the speed of ARTIFACT."""
    from exporter.pipeline import measure_artifact

    with progress(output) as reporter:
        report = measure_artifact(path.artifact, budget.limits(), running.how(), command_line(), reporter)
    return _finish(report, output)


def check(checked: Checked, budget: BudgetOptions, running: Running, output: Output) -> int:
    """Run ARTIFACT under a hard memory cap: does it fit? Without ARTIFACT: do all checks of a budget file."""
    if checked.artifact is None:
        return _check_all(checked, budget, running, output)
    from exporter.pipeline import check_artifact

    if checked.budget is not None:
        raise UserError(f"either ARTIFACT or --budget: {checked.budget} names its artifacts itself")
    _clear_junit(checked)
    with progress(output) as reporter:
        report = check_artifact(checked.artifact, budget.limits(), running.how(), command_line(), reporter)
    status = _finish(report, output)
    _write_junit(checked, {checked.artifact.absolute().name: report})
    return status


def _check_all(checked: Checked, budget: BudgetOptions, running: Running, output: Output) -> int:
    from exporter.checks import open_all, run_all
    from exporter.cli.budget_file import NAME, load_checks

    path = checked.budget or Path(NAME)
    if checked.budget is None and not path.is_file():
        raise UserError(f"name an ARTIFACT, or write its limits into {NAME} here")
    if budget != type(budget)() or running != type(running)():
        raise UserError(f"limits and options of the checks are keys of {path}; write them there, or name an ARTIFACT")
    checks = load_checks(path)
    artifacts = open_all(checks, str(path))
    _clear_junit(checked)
    with progress(output) as reporter:
        reports = run_all(checks, artifacts, command_line(), reporter)
    failed = [name for name, report in reports.items() if report.exit_status]
    if output.json:
        verdict = "failed" if failed else "met"
        print_json({"verdict": verdict, "checks": {name: report.to_json() for name, report in reports.items()}})
    elif not output.quiet:
        for name, report in reports.items():
            typer.echo(f"check {name}: {report.artifact.entry_path}")
            show_report(report)
            typer.echo("")
        typer.echo(f"checks: {len(reports)}, failed: {', '.join(failed) or 'none'}")
    _write_junit(checked, reports)
    return 1 if failed else 0


def _clear_junit(checked: Checked) -> None:
    """Before anything runs: the file can be written, and what an earlier run has left does not stand for this one.

    Raises UserError for a file that is something else: a model, where the name of the file was forgotten.
    """
    path = checked.junit
    if path is None:
        return
    if path.exists() and not (path.is_file() and _begins(path) in (b"<?xml", b"")):
        raise UserError(f"{path}: is there and no JUnit file of an earlier run; name another, or remove it")
    try:
        with tempfile.TemporaryFile(dir=path.absolute().parent):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    path.unlink(missing_ok=True)


def _begins(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(5)


def _write_junit(checked: Checked, reports: dict[str, Report]) -> None:
    if checked.junit is not None:
        from exporter.report.junit import junit
        from runtime.atomic import write_text

        write_text(checked.junit, junit(reports))


def report(what: Reported, to: PageOut, output: Output) -> int:
    """Write one HTML page about ARTIFACT, or about several side by side. It judges nothing anew."""
    from exporter.report.page import write_page

    write_page(what.artifacts, to.out)
    if output.json:
        print_json({"out": str(to.out), "bytes": to.out.stat().st_size})
    elif not output.quiet:
        typer.echo(f"written: {to.out}")
    return 0


def harness(to: HarnessOut, output: Output) -> int:
    """Write the measuring harness as one file, which a device's Python runs: for a device without SSH."""
    from runtime.atomic import replacing
    from runtime.hosts.archive import NAME, zipapp

    if to.out.is_dir():
        raise UserError(f"{to.out}: is a directory; name a file, such as {to.out / NAME}")
    with replacing(to.out) as temporary:
        temporary.write_bytes(zipapp())
    if output.json:
        print_json({"out": str(to.out), "bytes": to.out.stat().st_size})
    elif not output.quiet:
        typer.echo(f"written: {to.out}")
        typer.echo(f"there: python3 {to.out.name} ARTIFACT")
    return 0


def pack(path: ArtifactPath, to: ArchiveOut, threads: Threads, output: Output) -> int:
    """Pack ARTIFACT into one smaller file for the way to the device, without loss."""
    from exporter.archive.pack import pack as run

    with progress(output) as reporter:
        reporter.step(f"packing {path.artifact}")
        report = run(path.artifact, to.out, threads.threads, reporter.advance)
    if output.json:
        print_json(report.to_json())
    elif not output.quiet:
        rows = [
            (kind, format_bytes(before), format_bytes(after), f"{after / before:.1%}")
            for kind, (before, after) in sorted(report.types.items(), key=lambda one: -one[1][0])
        ]
        whole = (format_bytes(report.n_bytes), format_bytes(report.packed_bytes))
        rows.append(("all", *whole, f"{report.packed_bytes / max(report.n_bytes, 1):.1%}"))
        show_rows(("type", "bytes", "packed", ""), rows)
        typer.echo(f"written: {report.archive}")
    return 0


def unpack(archive: Archive, output: Output) -> int:
    """Unpack what 'pack' has written, every file to the bit."""
    from exporter.archive.unpack import unpack as run

    with progress(output) as reporter:
        reporter.step(f"unpacking {archive.archive}")
        names = run(archive.archive, archive.out, reporter.advance)
    if output.json:
        print_json({"out": str(archive.out), "files": names})
    elif not output.quiet:
        typer.echo(f"written: {archive.out}, {len(names)} files")
    return 0


def devices(output: Output) -> int:
    """List the device profiles, every figure with its kind."""
    from targets.device import list_devices

    profiles = list_devices()
    if output.json:
        print_json([device.to_json() for device in profiles])
    elif not output.quiet:
        show_rows(("device", "memory", "usable by one app", "bandwidth", "cores"), map(_device_row, profiles))
        typer.echo("= computed from the interface, ~ estimate, * measured; the others are the maker's own figures.")
        typer.echo("Sources: packlight devices --json. Your own: --device path/to/device.toml")
    return 0


_MARKS = {"vendor": "", "measured": "*", "computed": "=", "estimate": "~"}


def _device_row(device: Device) -> tuple[str, ...]:
    def marked(figure: str, text: str) -> str:
        return _MARKS[device.sources[figure].kind] + text

    return (
        device.id,
        marked("memory", f"{device.memory_bytes / 1e9:.1f} GB"),
        marked("usable", f"{device.usable_bytes / 1e9:.1f} GB"),
        marked("bandwidth", f"{device.bandwidth_bytes_per_s / 1e9:.1f} GB/s"),
        marked("cores", str(device.cores)),
    )


def _finish(report: Report, output: Output, where: str = "", page: str = "") -> int:
    """Show a report and give its exit status."""
    if output.json:
        print_json(report.to_json())
    elif not output.quiet:
        show_report(report, where, page)
    return report.exit_status
