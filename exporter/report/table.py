"""The table of a report as rows of text: for a log, for Markdown, and for whoever draws it prettier."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from exporter.report.report import Report
    from runtime.budget import Line

HEADER = ("quantity", "measured", "budget", "ok")
_MARKS = {True: "yes", False: "NO", None: ""}


def rows(lines: Iterable[Line]) -> list[tuple[str, str, str, str]]:
    """One row a line, in the columns of HEADER; ok is empty where nobody set a limit."""
    return [(line.name, " ".join(line.text.split()), line.limit_text, _MARKS[line.ok]) for line in lines]


def plain_table(lines: Iterable[Line]) -> str:
    """Aligned columns, no colours, no lines."""
    table = [HEADER, *rows(lines)]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    )


def markdown_table(lines: Iterable[Line]) -> str:
    """A Markdown table."""
    table = [HEADER, ("---",) * len(HEADER), *rows(lines)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table)


def verdict_text(report: Report) -> str:
    """The verdict in one line, with the quantities that fail."""
    if report.failing:
        return f"verdict: {report.verdict}: " + "; ".join(failure_text(line) for line in report.failing)
    return f"verdict: {report.verdict}"


def failure_text(line: Line) -> str:
    """What a line that fails says, in one line: the quantity, its value and its limit."""
    limit = f" (budget {line.limit_text})" if line.limit_text else ""
    return f"{line.name} {' '.join(line.text.split())}{limit}"
