"""The source's logits in torch beside an artifact's in its engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from exporter.checkpoint import resolve
from runtime.measurement import RunOptions
from runtime.sessions import open_session
from targets import TARGETS, get_target
from targets.base import EmitOptions, TypeChoice

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from runtime.artifact import Artifact

LOSSLESS = {name: "f32" if name == "gguf" else "fp32" for name in TARGETS}
"""The preset of each target that keeps the weights as they are."""

OPTIONS = RunOptions(threads=2, context=64, batch=64, kv_type="f32")

# longer than the tiny Gemma's sliding window of 16, so that the mask matters
TOKENS = [int(token) for token in np.random.default_rng(0).integers(10, 500, 48)]


def no_progress(_what: str, _done: int, _total: int) -> None:
    """Progress that nobody watches."""


def emit(
    directory: Path, out: Path, format_name: str = "gguf", preset: str | None = None, types: TypeChoice | None = None
) -> Artifact:
    """Export a model directory into an existing directory."""
    options = EmitOptions(preset or LOSSLESS[format_name], threads=2, types=types or TypeChoice())
    return get_target(format_name).emit(resolve(str(directory)), options, out, no_progress)


def torch_logits(directory: Path, ids: list[int]) -> npt.NDArray[np.float32]:
    """Logits of the source, float32 arithmetic, shape (len(ids), vocab)."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: npt.NDArray[np.float32] = model(torch.tensor([ids])).logits[0].numpy()
    return logits


def worst_difference(directory: Path, artifact: Artifact) -> float:
    """Largest difference of logits, relative to the largest logit: whole sequence, and last token through the cache."""
    expected = torch_logits(directory, TOKENS)
    session = open_session(artifact, OPTIONS)
    try:
        actual = session.all_logits(TOKENS)
        session.reset()
        session.prefill(TOKENS[:-1])
        session.decode(TOKENS[-1])
        cached = session.last_logits()
    finally:
        session.close()
    width = min(expected.shape[1], actual.shape[1])
    scale = float(np.abs(expected).max())
    if scale < 0.1:
        raise ValueError("the tiny model's logits are too flat to tell a wrong graph")
    whole = np.abs(actual[:, :width] - expected[:, :width]).max()
    last = np.abs(cached[:width] - expected[-1, :width]).max()
    return float(max(whole, last)) / scale


def usual_difference(directory: Path, artifact: Artifact) -> float:
    """The median over positions of the largest difference of logits, relative to the largest logit.

    For quantized weights of a model with experts: where two experts are nearly alike for a token, another one is taken.
    """
    expected = torch_logits(directory, TOKENS)
    session = open_session(artifact, OPTIONS)
    try:
        actual = session.all_logits(TOKENS)
    finally:
        session.close()
    width = min(expected.shape[1], actual.shape[1])
    worst = np.abs(actual[:, :width] - expected[:, :width]).max(axis=1)
    return float(np.median(worst)) / float(np.abs(expected).max())
