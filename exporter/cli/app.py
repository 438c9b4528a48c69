"""The Typer application and the console script."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exporter.cli import adapter_verbs, plan_verbs, verbs
from exporter.cli.adapter_options import AdapterJob, AdapterOut, MergedOut
from exporter.cli.command import INTERRUPTED, fail, with_groups
from exporter.cli.formats import formats
from exporter.cli.help import SectionedCommand
from exporter.cli.imatrix_verb import imatrix
from exporter.cli.options import (
    Against,
    Archive,
    ArchiveOut,
    ArtifactPath,
    BudgetOptions,
    Cache,
    Checked,
    CompressJob,
    FormatsShown,
    HarnessOut,
    Job,
    PageOut,
    Reported,
    Running,
    Threads,
    Verifying,
)
from exporter.cli.plan_options import Calibrating, PlanLimits, Planned
from exporter.cli.type_options import ImatrixJob, Types

if TYPE_CHECKING:
    from types import FrameType

app = typer.Typer(
    name="packlight",
    help="Compress a language model for a phone or an edge box, and prove that it fits.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 met; 1 a budget or a parity check failed; 2 bad input or usage.",
)

for _verb, _groups in (
    (verbs.export, (Job, Types, BudgetOptions, Running, Verifying)),
    (plan_verbs.plan, (Planned, Types, PlanLimits)),
    (verbs.compress, (CompressJob,)),
    (imatrix, (ImatrixJob,)),
    (adapter_verbs.merge, (AdapterJob, MergedOut)),
    (adapter_verbs.adapter, (AdapterJob, AdapterOut)),
    (verbs.verify, (ArtifactPath, Against, Verifying, Threads, Cache)),
    (verbs.measure, (ArtifactPath, BudgetOptions, Running)),
    (verbs.check, (Checked, BudgetOptions, Running)),
    (plan_verbs.calibrate_host, (Calibrating,)),
    (verbs.report, (Reported, PageOut)),
    (verbs.harness, (HarnessOut,)),
    (verbs.pack, (ArtifactPath, ArchiveOut, Threads)),
    (verbs.unpack, (Archive,)),
    (verbs.devices, ()),
    (formats, (FormatsShown,)),
    (verbs.recipes, ()),
):
    app.command(name=_verb.__name__.replace("_", "-"), cls=SectionedCommand)(with_groups(_verb, _groups))


def _show_version(wanted: bool) -> None:
    if wanted:
        from exporter.report.report import version

        typer.echo(f"packlight {version()}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Compress a language model for a phone or an edge box, and prove that it fits."""


def main() -> None:
    """Run the command line and exit."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status = app(standalone_mode=False)
    except typer.Abort:
        status = INTERRUPTED
    except Exception as error:
        # Typer bundles its own copy of click: its usage errors are known by their shape
        if not hasattr(error, "format_message"):
            raise
        status = _usage_error(error)
    sys.exit(status or 0)


def _usage_error(error: Any) -> int:  # noqa: ANN401  click's, which Typer bundles
    """One line for an option that is unknown, missing or out of range; status 2."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return 2
    path = error.ctx.command_path if getattr(error, "ctx", None) else "packlight"
    line = " ".join(error.format_message().split())
    return fail(f"{line} ('{path} --help' lists the options)", 2, as_json="--json" in sys.argv)


def _terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  the signature of a handler
    """Leave as an interrupt does, so that temporary files are removed; the status is the shell's for the signal."""
    sys.exit(128 + number)
