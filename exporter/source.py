"""MODEL, before anything is done to it: found, and refused where a target cannot take it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.errors import UnsupportedError
from runtime.sessions.base import TEXT_GENERATION

if TYPE_CHECKING:
    from targets.base import EmitOptions, Target
    from targets.facts import ModelFacts

MOST_PROBLEMS = 12
"""Problems that are listed; a wrong config.json makes every tensor of every layer one."""


def resolve_model(model: str, *, trust_remote_code: bool, revision: str | None = None) -> ModelFacts:
    """The facts of MODEL."""
    from exporter.checkpoint import resolve

    return resolve(model, trust_remote_code=trust_remote_code, revision=revision)


def refuse_problems(target: Target, facts: ModelFacts, options: EmitOptions) -> None:
    """Raise UnsupportedError with the problems that the target finds, one a line, at most a screenful."""
    problems = target.check(facts, options)
    if problems:
        more = [f"… and {len(problems) - MOST_PROBLEMS} more like these"] if len(problems) > MOST_PROBLEMS else []
        raise UnsupportedError("\n".join([*map(str, problems[:MOST_PROBLEMS]), *more]))


def task_of_source(facts: ModelFacts) -> str:
    """What a model is for. A .gguf file, and a directory that names no class, generate text."""
    from targets.task import infer_task

    return infer_task(facts) if facts.architecture else TEXT_GENERATION
