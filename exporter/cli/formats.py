"""`packlight formats`: what can be written, and of GGUF the model classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from exporter.cli.terminal import show_rows
from runtime.atomic import json_text

if TYPE_CHECKING:
    from exporter.cli.options import FormatsShown, Output


def formats(shown: FormatsShown, output: Output) -> int:
    """List the formats and their quantization presets."""
    if shown.architectures:
        return _architectures(output)
    from targets import TARGETS, get_target

    presets = {name: get_target(name).presets() for name in TARGETS}
    if output.json:
        typer.echo(json_text(presets))
    elif not output.quiet:
        rows = [(name, preset, text) for name, known in presets.items() for preset, text in known.items()]
        show_rows(("format", "quant", ""), rows)
    return 0


def _architectures(output: Output) -> int:
    """The classes that can be written as GGUF, and those that are known and cannot."""
    from targets.gguf.architectures import ARCHITECTURES, UNSUPPORTED

    written = {name: entry.gguf for name, entry in sorted(ARCHITECTURES.items())}
    refused = dict(sorted(UNSUPPORTED.items()))
    if output.json:
        typer.echo(json_text({"written": written, "refused": refused}))
    elif not output.quiet:
        rows = [(name, gguf, "") for name, gguf in written.items()]
        show_rows(
            ("model class", "gguf", "refused because"), [*rows, *((name, "", why) for name, why in refused.items())]
        )
    return 0
