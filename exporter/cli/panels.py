"""How an option of the command line is declared: `option`, the sections of help pages, and placeholders of values."""

from __future__ import annotations

from typing import Any

import typer

SIZE, SECONDS, MS, SPEED, NUMBER, COUNT, NAME = "SIZE", "SECONDS", "MS", "TOKENS/S", "X", "N", "NAME"
JOB, TYPES, BUDGET, RUN, DRIFT, OUTPUT = (
    "The job", "Types of tensors (gguf)", "The budget", "How it is run", "Verifying", "Output",
)  # fmt: skip


def option(names: str, help: str, panel: str, metavar: str | None = None, **more: Any) -> Any:  # noqa: ANN401  Typer's own
    """A Typer option; `names` separated by spaces."""
    return typer.Option(*names.split(), help=help, rich_help_panel=panel, metavar=metavar, show_default=False, **more)
