"""What every verb does around its library call: options in groups, errors in one line, exit statuses."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
import sys
from typing import TYPE_CHECKING, Any, get_type_hints

import typer

from exporter.cli.options import Output
from runtime.atomic import json_text
from runtime.errors import PacklightError, said_of

if TYPE_CHECKING:
    from collections.abc import Callable

INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""


def with_groups(verb: Callable[..., int], groups: tuple[type, ...]) -> Callable[..., None]:
    """A function for Typer whose parameters are the fields of `groups` and of `Output`.

    It calls verb(group, …, output) with the groups filled in, and exits with the status that verb returns.
    """
    kinds = (*groups, Output)
    parameters = [parameter for kind in kinds for parameter in _parameters(kind)]

    def run(**values: Any) -> None:
        filled = [kind(**{f.name: values[f.name] for f in dataclasses.fields(kind)}) for kind in kinds]
        raise typer.Exit(_guarded(verb, filled))

    # Typer reads these two. Required parameters come first, as a signature wants it.
    parameters.sort(key=lambda parameter: parameter.default is not inspect.Parameter.empty)
    vars(run)["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__name__ = verb.__name__
    run.__doc__ = verb.__doc__
    return run


def command_line() -> str:
    """The command as typed, for the record."""
    return shlex.join(["packlight", *sys.argv[1:]])


def _parameters(kind: type) -> list[inspect.Parameter]:
    """One keyword parameter a field."""
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(kind)
    ]


def _guarded(verb: Callable[..., int], filled: list[Any]) -> int:
    """The verb's exit status; its errors as text for people, and as JSON where that was asked for."""
    output: Output = filled[-1]
    try:
        return verb(*filled)
    except PacklightError as error:
        return _fail(str(error), error.exit_status, output)
    except OSError as error:
        # Nobody is helped by a traceback.
        if isinstance(error, BrokenPipeError):
            raise
        return _fail(said_of(error), 2, output)
    except KeyboardInterrupt as error:
        return _fail(f"interrupted; {str(error) or 'nothing was left behind'}", INTERRUPTED, output)


def _fail(message: str, status: int, output: Output) -> int:
    return fail(message, status, as_json=output.json)


def fail(message: str, status: int, *, as_json: bool) -> int:
    """Say what went wrong, on standard error and where asked for as a JSON document too; `status` again."""
    typer.echo(f"error: {message}", err=True)
    if as_json:
        typer.echo(json_text({"error": message, "exit_status": status}, indent=None))
    return status
