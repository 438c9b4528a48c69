"""`optimum-cli export packlight`: packlight's plug-in for optimum's command line.

optimum reads every module of `optimum/commands/register` each time that it starts, so nothing of packlight is imported
before the command runs. None of the directories above has an `__init__.py`: they are portions of optimum's namespace.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

if TYPE_CHECKING:
    from argparse import ArgumentParser

_HELP_OPTIONS = {"-h", "--help"}
_OUT = re.compile(r"--out(=|$)|-[a-z]*o")  # -o may stand with other short ones: -qo OUT
_HELP = """\
optimum-cli export packlight MODEL [OPTIONS] OUT

The options are those of 'packlight export'. As with optimum's other exporters, MODEL may be given as --model MODEL;
OUT, the last argument, may be given as --out OUT.
"""


class PacklightExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]  # optimum has no types
    """Hands its arguments to `packlight export`; the exit status is packlight's."""

    COMMAND = CommandInfo(
        name="packlight",
        help="Compress a language model for a phone or an edge box (GGUF, ONNX Runtime), verified and measured.",
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Take all that follows as it is: options are packlight's to read, `--help` too."""
        # With "-" no longer a prefix, argparse sees no options here: it would refuse those that it does not know.
        parser.prefix_chars = "\0"
        parser.add_argument("arguments", nargs="...")

    def run(self) -> None:
        """Run packlight and exit with its status."""
        import typer

        from exporter.cli import main

        arguments: list[str] = self.args.arguments
        if not arguments or _HELP_OPTIONS & set(arguments):
            typer.echo(_HELP)
            arguments = ["--help"]
        # packlight records the command of an export: what stands here can be typed again.
        sys.argv = ["packlight", "export", *packlight_arguments(arguments)]
        main()


def packlight_arguments(arguments: list[str]) -> list[str]:
    """Arguments in optimum's manner, `--model MODEL … OUT`, as `packlight export` takes them: `-o OUT MODEL …`."""
    rest = list(arguments)
    out: list[str] = []
    # Where OUT was forgotten, the last argument is an option, or the value of one: packlight says so then.
    if len(rest) > 1 and not rest[-1].startswith("-") and not any(map(_OUT.match, rest)):
        out = ["-o", rest.pop()]
    for at, argument in enumerate(rest):
        if argument in ("-m", "--model") and at + 1 < len(rest):
            return [*out, rest[at + 1], *rest[:at], *rest[at + 2 :]]
        if argument.startswith("--model="):
            return [*out, argument.removeprefix("--model="), *rest[:at], *rest[at + 1 :]]
    return [*out, *rest]


REGISTER_COMMANDS = [(PacklightExportCommand, ExportCommand)]
