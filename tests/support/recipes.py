"""Recipes of tiny models, made and run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporter.checkpoint import resolve
from exporter.compress.job import CompressRequest, compress
from exporter.compress.mapped import open_mapped
from exporter.compress.subject import Subject
from exporter.compress.tasks import task_of
from exporter.progress import SilentReporter
from exporter.recipe import Recipe
from targets.weights import WeightReader

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

TEXT = {"source": "help", "chunks": 64, "tokens": 32}
"""What tiny models learn from."""


def recipe(*steps: dict[str, Any], **more: Any) -> Recipe:
    """Steps as a YAML file has them; more: keys of the recipe."""
    return Recipe.model_validate({"calibration": {**TEXT, "chunks": 3}, **more, "steps": list(steps)})


def run(source: Path, out: Path, *steps: dict[str, Any], resume: bool = False, **more: Any) -> list[dict[str, Any]]:
    """The reports of the steps."""
    made = recipe(*steps, **more)
    report = compress(CompressRequest(str(source), out, made, "test", 1, resume=resume), SilentReporter())
    found: list[dict[str, Any]] = report.to_json()["steps"]
    return found


def opened_subject(source: Path, room: Path, *steps: dict[str, Any], **more: Any) -> Subject:
    """The model as a recipe's steps find it; its source is for the caller to close."""
    facts = resolve(str(source))
    source = open_mapped(facts, room, task_of(facts), threads=1)
    return Subject(facts, source, recipe(*steps, **more), lambda *_: None)


def weights_of(directory: Path) -> dict[str, np.ndarray]:
    """The stored weights in float32, by name."""
    with WeightReader() as reader:
        return {
            name: reader.read_rows(fact, 0, fact.n_elements // fact.shape[-1])
            for name, fact in resolve(str(directory)).tensors.items()
        }
