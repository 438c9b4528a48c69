"""An export that compresses by a recipe first."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.source import resolve_model
from exporter.staging import staging
from runtime.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from exporter.compress.job import CompressReport
    from exporter.progress import Reporter
    from exporter.recipe import Recipe
    from runtime.artifact import Artifact
    from targets.facts import ModelFacts


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe, and its name as typed."""

    recipe: Recipe
    name: str


def quant_of(by: NamedRecipe | None, format_name: str, quant: str | None) -> str | None:
    """The preset that the recipe or the user names; None where neither does. Raises UserError where they disagree."""
    if by is None:
        return quant
    if by.recipe.format not in (None, format_name):
        raise UserError(f"--recipe {by.name}: is for {by.recipe.format}; leave out --format {format_name}")
    if by.recipe.preset is not None and quant is not None:
        raise UserError(f"--recipe {by.name}: quantizes to {by.recipe.preset} itself; leave out --quant")
    return by.recipe.preset or quant


@contextlib.contextmanager
def compressed(
    by: NamedRecipe | None, facts: ModelFacts, out: Path, how: tuple[int | None, bool], reporter: Reporter
) -> Iterator[tuple[ModelFacts, CompressReport | None]]:
    """What is to be packed: the model itself, or what the recipe makes of it, in a directory that is deleted after.

    how: threads, and whether code that the model carries may run
    """
    if by is None:
        yield facts, None
        return
    from exporter.compress.job import CompressRequest, compress

    threads, trusted = how
    with staging(out.with_name(f"{out.name}.compressed")) as between:
        request = CompressRequest(str(facts.path), between / facts.name, by.recipe, by.name, threads, trusted)
        done = compress(request, reporter)
        packed = resolve_model(done.out, trust_remote_code=trusted)
        yield dataclasses.replace(packed, requested=facts.requested), done


def recorded(artifact: Artifact, done: CompressReport | None) -> Artifact:
    """The artifact with what was done to the model before in its contract."""
    if done is None:
        return artifact
    notes = [note for step in done.steps for note in step.notes]
    steps = ", ".join(step.said for step in done.steps)
    contract = dict(artifact.contract)
    contract["notes"] = [*contract.get("notes", ()), f"compressed by the recipe {done.recipe_name}: {steps}", *notes]
    contract["compression"] = {key: value for key, value in done.to_json().items() if key not in ("model", "out")}
    return dataclasses.replace(artifact, contract=contract)
