"""What to do with a model, in order, and never how the result is packed: `Recipe`, a YAML file.

A mistake in the file is one line that names the file, the line and the key.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runtime.errors import UserError

RECIPES = Path(__file__).parent / "recipes"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Text(_Strict):
    """What statistics are gathered on.

    text: a UTF-8 file; None for the calibration half of Python's own help. chunks: pieces, from all over it;
    tokens: of a piece
    """

    text: Path | None = None
    chunks: int = Field(default=32, ge=1)
    tokens: int = Field(default=512, ge=16)


class Rule(_Strict):
    """Another type for some tensors.

    tensors: a pattern of their names in the file, such as "blk.*.ffn_down.weight"; type: of the format, such as "q5_1"
    """

    tensors: str
    type: str


class Quantize(_Strict):
    """Put every matrix onto the grid that a preset of the format gives it.

    types: "preset", or "measured": those that cost the model least for the bytes that the preset would take
    method: how codes are chosen; rules: types of some tensors whatever else is said, the first that matches counts
    """

    step: Literal["quantize"]
    preset: str
    types: Literal["preset", "measured"] = "preset"
    method: Literal["rtn", "gptq", "gptq-natural"] = "gptq"
    rules: tuple[Rule, ...] = ()


class Recipe(_Strict):
    """The steps of a compression, for one format."""

    description: str = ""
    format: Literal["gguf"]
    calibration: Text = Text()
    steps: tuple[Quantize, ...] = Field(min_length=1, max_length=1)


def list_recipes() -> dict[str, Recipe]:
    """Every recipe that packlight carries, by name."""
    return {path.stem: _read(path) for path in sorted(RECIPES.glob("*.yaml"))}


def load_recipe(name_or_path: str) -> Recipe:
    """The recipe of that name, or the one in that YAML file. Raises UserError."""
    if name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path:
        return _read(Path(name_or_path))
    known = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if name_or_path.lower() in known:
        return _read(RECIPES / f"{name_or_path.lower()}.yaml")
    near = difflib.get_close_matches(name_or_path.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)};"
    raise UserError(f"unknown recipe '{name_or_path}': {hint} or name your own .yaml file")


def _read(path: Path) -> Recipe:
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.compose(text, yaml.SafeLoader)
        content = yaml.safe_load(text)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); 'packlight recipes' lists the known ones"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: is not YAML ({error.problem}); mend that line") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}:1: is no recipe; it needs format and steps")
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = [part for part in first["loc"] if part != "function-after[]"]
        key = ".".join(map(str, where))
        raise UserError(f"{path}:{_line(tree, where)}: {key}: {_said(first)}") from error


def _said(error: Any) -> str:  # noqa: ANN401 - pydantic's dictionary
    """pydantic's message in our words, with what to do."""
    if error["type"] == "extra_forbidden":
        return "is no key of a recipe; take it out"
    if error["type"] == "missing":
        return "is missing; write it"
    message = str(error["msg"])
    return f"{message[0].lower()}{message[1:]}, not {str(error['input'])[:60]!r}"


def _line(node: Any, where: list[int | str]) -> int:  # noqa: ANN401 - a node of yaml
    """The line of a value by its keys; of what holds it where the key is missing."""
    line = node.start_mark.line + 1 if node is not None else 1
    for part in where:
        found = None
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = (node.value[part], node.value[part])
        if found is None:
            return line
        line, node = found[0].start_mark.line + 1, found[1]
    return line
