"""Models with units taken out, and what they compute."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from exporter.compress.job import CompressRequest, compress
from exporter.progress import SilentReporter
from exporter.recipe import Recipe
from targets.ongrid import RECIPE

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

TEXT = {"source": "help", "chunks": 4, "tokens": 64}
IDS = [5, 9, 40, 7, 100, 33, 12, 60] * 5


def opened(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def removed(source: Path, out: Path, *more: dict[str, Any], format_name: str | None = None, **how: Any) -> list[Any]:
    recipe = Recipe.model_validate(
        {"calibration": TEXT, "steps": [{"step": "remove", **how}, *more], "format": format_name}
    )
    compress(CompressRequest(str(source), out, recipe, "test", 2), SilentReporter())
    found: list[Any] = json.loads((out / RECIPE).read_text(encoding="utf-8"))["steps"]
    return found


def logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = model(torch.tensor([IDS])).logits[0].numpy()
    return found


def kept_rows(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Numbers of the rows of `before` that `after` is made of."""
    return torch.tensor([int((before == row).all(1).nonzero()[0, 0]) for row in after])
