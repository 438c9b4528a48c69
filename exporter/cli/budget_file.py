"""`packlight.toml`: checks by name, whose keys are the options of the command line by the same names.

    [checks.phone]
    artifact = "out/"
    max_memory = "300MB"

A mistake in the file is one line that names the file and the key.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from exporter.checks import Check, is_path
from exporter.cli.options import BudgetOptions, Running, Verifying
from exporter.pipeline import Source
from runtime.errors import PacklightError, UserError
from targets.toml_file import load_toml

NAME = "packlight.toml"
GROUPS = (BudgetOptions, Running, Verifying)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _fields(group: type) -> dict[str, Any]:
    """pydantic's fields for a group of options: the same names, types, defaults and bounds."""
    found = {}
    hints = get_type_hints(group, include_extras=True)
    for field in dataclasses.fields(group):
        hint, bounds = hints[field.name], {}
        if get_origin(hint) is Annotated:
            hint, option = get_args(hint)[:2]
            bounds = {key: value for key, value in (("ge", option.min), ("le", option.max)) if value is not None}
        # TOML has no paths: they are strings.
        hint = str | None if hint == Path | None else hint
        found[field.name] = (hint, Field(field.default, **bounds))
    return found


_Entry: Any = create_model(
    "_Entry",
    __base__=_Strict,
    artifact=(str, ...),
    against=(str | None, None),
    revision=(str | None, None),
    **{name: field for group in GROUPS for name, field in _fields(group).items()},
)
_File: Any = create_model("_File", __base__=_Strict, checks=(dict[str, _Entry], Field(min_length=1)))


def load_checks(path: Path) -> dict[str, Check]:
    """The checks of a budget file, by name. Paths in it are relative to its directory. Raises UserError."""
    content = load_toml(path, "name a budget file")
    try:
        entries = _File.model_validate(content).checks
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {_said(first)}") from error
    checks = {}
    for name, entry in entries.items():
        try:
            checks[name] = _check(entry, path.parent)
        except PacklightError as error:
            raise UserError(f"{path}: checks.{name}: {error}") from error
    return checks


def _check(entry: Any, directory: Path) -> Check:  # noqa: ANN401  an _Entry
    budget = BudgetOptions(**_of(BudgetOptions, entry))
    running = Running(**_of(Running, entry))
    verifying = Verifying(**_of(Verifying, entry))
    if budget.device is not None and budget.device.endswith(".toml"):
        budget = dataclasses.replace(budget, device=str(_beside(directory, budget.device)))
    if verifying.text is not None:
        verifying = dataclasses.replace(verifying, text=_beside(directory, str(verifying.text)))
    if running.engine is not None:
        running = dataclasses.replace(running, engine=_beside(directory, str(running.engine)))
    limits = budget.limits(verifying.thresholds(), verifying.encoder_thresholds())
    compared = None
    if entry.against is not None:
        beside = _beside(directory.absolute(), entry.against)
        source = Source(str(beside) if is_path(entry.against) or beside.exists() else entry.against, entry.revision)
        compared = (source, verifying.options(running.threads, running.kv_type))
    elif verifying != Verifying() or entry.revision is not None:
        raise UserError("max_kl, chunks and their kin need the model to compare with; add against")
    elif budget == BudgetOptions():
        raise UserError("holds the artifact against nothing; add a limit such as max_memory, or against")
    return Check(_beside(directory, entry.artifact), limits, running.how(), compared)


def _beside(directory: Path, name: str) -> Path:
    return directory / Path(name).expanduser()


def _of(group: type, entry: Any) -> dict[str, Any]:  # noqa: ANN401  an _Entry
    return {field.name: getattr(entry, field.name) for field in dataclasses.fields(group)}


def _said(error: Any) -> str:  # noqa: ANN401  pydantic's dictionary
    """pydantic's message in our words, with what to do."""
    if error["type"] == "extra_forbidden":
        return (
            f"is no key here; a check has {', '.join(_Entry.model_fields)}"
            if "checks" in error["loc"]
            else ("is no key here; write tables such as [checks.phone]")
        )
    if error["type"] == "missing":
        return "is missing; write it"
    if error["type"] in ("model_type", "dict_type"):
        return "has to be a table; write [checks.phone], for example"
    message = str(error["msg"])
    return f"{message[0].lower()}{message[1:]}, not {str(error['input'])[:60]!r}"
