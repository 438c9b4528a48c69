"""What people see: progress on standard error, tables on standard output, with rich where it is a terminal."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import typer

from exporter.progress import LineReporter, SilentReporter
from runtime.atomic import json_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.progress import Progress, TaskID

    from exporter.cli.options import Output
    from exporter.progress import Reporter
    from exporter.report.report import Report


@contextlib.contextmanager
def progress(output: Output) -> Iterator[Reporter]:
    """A reporter for this run: silent, rich on a terminal, or plain lines."""
    if output.quiet:
        yield SilentReporter()
        return
    if not sys.stderr.isatty():
        yield LineReporter(sys.stderr)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        reporter = RichReporter(bars)
        yield reporter
        reporter.done()


class RichReporter:
    """One line a step, with a spinner while it runs and its time when it is over."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task: TaskID | None = None
        self._text = ""

    def step(self, text: str) -> None:
        """The last step is over, a new one begins."""
        from rich.markup import escape

        self.done()
        self._text = escape(text)
        self._task = self._bars.add_task(self._text, total=None)

    def note(self, text: str) -> None:
        """Shown beside the step until the next one."""
        from rich.markup import escape

        if self._task is not None:
            self._bars.update(self._task, description=f"{self._text} [dim]({escape(text)})[/dim]")

    def advance(self, what: str, done: int, total: int) -> None:
        """A bar for what is being done now."""
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=total)
            if what:
                self.note(what)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """The bars are not drawn: they would be over what another program asks."""
        self._bars.stop()
        try:
            yield
        finally:
            self._bars.start()

    def done(self) -> None:
        """The step is over."""
        if self._task is not None:
            self._bars.update(self._task, description=self._text, total=1, completed=1)


def show_report(report: Report, where: str = "", page: str = "") -> None:
    """The table, the notes, where files and the page are, and the verdict."""
    from exporter.report.table import HEADER, plain_table, rows, verdict_text

    if sys.stdout.isatty():
        _rich_table(HEADER, rows(report.lines))
    else:
        typer.echo(plain_table(report.lines))
    for note in report.notes:
        typer.echo(f"note: {note}")
    if where:
        typer.echo(f"written: {where}")
    if page:
        typer.echo(f"report: {page}")
    colour = typer.colors.RED if report.failing else typer.colors.GREEN if report.verdict == "met" else None
    typer.secho(verdict_text(report), fg=colour, bold=True)


def show_rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table of text."""
    if sys.stdout.isatty():
        _rich_table(header, rows)
        return
    table = [tuple(header), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _rich_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in header:
        table.add_column(title, overflow="fold")
    for row in rows:
        style = {"NO": "bold red", "yes": "green"}.get(row[-1], "")
        table.add_row(*map(Text, row[:-1]), Text(row[-1], style=style))
    Console().print(table)


def print_json(document: Any) -> None:  # noqa: ANN401  whatever json.dumps takes
    """One document on standard output."""
    typer.echo(json_text(document))
