"""Help pages: plain text with the options in sections. Typer's own pages with rich take twice the time to start."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class SectionedCommand(TyperCommand):
    """A verb whose help shows each `rich_help_panel` as a section of its own."""

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401  click's types, which Typer vendors
        """Write the arguments, then the sections in the order of their first option."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                title = "Arguments" if parameter.param_type_name == "argument" else None
                section = title or getattr(parameter, "rich_help_panel", None) or "Output"
                sections.setdefault(section, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)
