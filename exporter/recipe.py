"""What to do with a model, in order, and never how the result is packed: `Recipe`, a YAML file.

A mistake in the file is one line that names the file, the line and the key.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from exporter.steps import Step, Strict, Text, Training, training_of
from runtime.errors import UserError
from runtime.measurement import KvType  # noqa: TC001 - pydantic reads it

RECIPES = Path(__file__).parent / "recipes"
LATE = (
    # They rewrite rows and columns, which two factors have not.
    ("factorize", ("remove", "rotate", "smooth"), "it changes whole matrices"),
    ("share", ("distill", "prune with training"), "training makes equal weights differ"),
)
"""A step, those that cannot stand behind it, and why."""


class Recipe(Strict):
    """The steps of a compression.

    format: that the last step's grids are of; None where nothing is quantized
    kv_cache: type of the keys and values that llama.cpp keeps, with which an export is verified and measured
    seed: of everything that is drawn
    """

    description: str = ""
    format: Literal["gguf", "onnx", "torchscript", "executorch"] | None = None
    kv_cache: KvType | None = None
    calibration: Text = Text()
    seed: int = 0
    steps: tuple[Step, ...] = Field(min_length=1)

    @property
    def preset(self) -> str | None:
        """What the model is quantized to; None where it is not."""
        last = self.steps[-1]
        return last.preset if last.step == "quantize" else None

    @property
    def trainings(self) -> tuple[Training, ...]:
        """What is trained, in order."""
        return tuple(one for step in self.steps if (one := training_of(step)) is not None)

    @property
    def shapes(self) -> tuple[Path, ...]:
        """Configurations of students, in files of their own."""
        return tuple(step.config for step in self.steps if step.step == "initialize" and step.config is not None)

    @model_validator(mode="after")
    def _ends_with_what_is_final(self) -> Recipe:
        quantizing = [number for number, step in enumerate(self.steps) if step.step == "quantize"]
        if quantizing and quantizing != [len(self.steps) - 1]:
            raise ValueError("quantize has to be the last step, and once: nothing is changed on a grid")
        if quantizing and self.format is None:
            raise ValueError("quantize needs a format, on whose grids the weights are put")
        return self

    @model_validator(mode="after")
    def _has_types_of_its_own(self) -> Recipe:
        last = self.steps[-1]
        if last.step == "quantize" and self.format != "gguf" and (last.rules or last.types != "preset"):
            key = "rules" if last.rules else "types: measured"
            raise ValueError(f"{key} are for format gguf; other presets say themselves which matrix gets what")
        return self

    @model_validator(mode="after")
    def _learns_what_is_new(self) -> Recipe:
        names = [step.step for step in self.steps]
        if "initialize" in names:
            learned = [step.train == "all" for step in self.steps[1:2] if step.step == "distill"]
            if names.count("initialize") > 1 or names[0] != "initialize" or learned != [True]:
                raise ValueError("initialize has to be the first step, and distill with train: all the second")
        return self

    @model_validator(mode="after")
    def _follows_in_its_own_space(self) -> Recipe:
        turned = False
        for step in self.steps:
            training = training_of(step)
            followed = None if training is None else training.features
            if turned and followed is not None and followed.hidden:
                raise ValueError("features: hidden cannot be followed behind rotate, which turns them; say hidden: 0")
            turned = turned or (step.step == "rotate" and "residual" in step.spaces)
        return self

    @model_validator(mode="after")
    def _has_such_a_cache(self) -> Recipe:
        if self.kv_cache is not None and self.format != "gguf":
            raise ValueError("kv_cache is for format gguf: the other formats fix the type in the file")
        return self

    @model_validator(mode="after")
    def _is_in_order(self) -> Recipe:
        trained = [step.step == "prune" and step.training is not None for step in self.steps]
        names = [f"{step.step}{' with training' * one}" for step, one in zip(self.steps, trained, strict=True)]
        for first, refused, why in LATE:
            behind = names[names.index(first) :] if first in names else []
            if early := [name for name in behind if name in refused]:
                raise ValueError(f"{early[0]} has to stand before {first}: {why}")
        return self


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
        first = error.errors(include_url=False)[0]
        where = list(first["loc"])
        if where[:1] == ["steps"] and len(where) > 2:
            del where[2]  # the name of the step, which pydantic puts between
        key = ".".join(map(str, where))
        raise UserError(f"{path}:{_line(tree, where)}: {f'{key}: ' if key else ''}{_said(first)}") from error


def _said(error: Any) -> str:  # noqa: ANN401 - pydantic's dictionary
    """pydantic's message in our words, with what to do."""
    if error["type"] == "extra_forbidden":
        return "is no key of a recipe; take it out"
    if error["type"] == "missing":
        return "is missing; write it"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "union_tag_not_found":
        return "has no step; write which: 'step: quantize', for example"
    if error["type"] == "union_tag_invalid":
        return f"'{error['ctx']['tag']}' is no step; known: {error['ctx']['expected_tags']}"
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
