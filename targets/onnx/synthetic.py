"""ONNX graphs whose matrices are all of one scheme: for timing what ONNX Runtime does with it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from runtime.artifact import Artifact
from runtime.errors import UnsupportedError
from targets.base import EmitOptions
from targets.onnx.blocks import BlockGrid
from targets.onnx.calibration import Ranges
from targets.onnx.linear import BlockScheme, DynamicScheme, FloatScheme
from targets.onnx.plan import plan_decoder
from targets.onnx.presets import PRESETS, Preset
from targets.onnx.target import write_graph
from targets.safetensors import read_facts

if TYPE_CHECKING:
    from pathlib import Path

    from targets.facts import ModelFacts
    from targets.onnx.linear import Scheme
    from targets.synthetic import Shape

BASE, HALVES = "float32", "float16"
"""The label that layers and attention are timed with, and that whose cache is of halves."""


def write_source(directory: Path, shape: Shape) -> ModelFacts:
    """A Hugging Face directory of that shape, random, float16, without a tokenizer."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    directory.mkdir()
    tensors = {
        name: np.ones(size, np.float16)
        if len(size) == 1
        else (rng.standard_normal(size, np.float32) * np.float32(0.05)).astype(np.float16)
        for name, size in shape.tensors().items()
    }
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(shape.config()), encoding="utf-8")
    return read_facts(directory, str(directory))


def presets() -> dict[str, Preset]:
    """For every label that a preset of the target can give a matrix of a layer, one that gives it to all of them."""
    blocks = [(4, 32, False), (4, 64, False), (8, 32, True), (8, 64, True), (8, 128, True)]
    schemes: list[Scheme] = [
        FloatScheme(BASE),
        FloatScheme(HALVES),
        *(BlockScheme(BlockGrid(bits=bits, size=size, symmetric=symmetric)) for bits, size, symmetric in blocks),
        DynamicScheme(),
    ]
    found = {scheme.label: _of(scheme) for scheme in schemes}
    return found | {"int8 channels, static activations": PRESETS["static-int8"]}


def _of(scheme: Scheme) -> Preset:
    # The name tells the graph whether its activations are halves.
    name = "fp16" if scheme.label == HALVES else "fp32"
    return Preset(name, "", "model.onnx", lambda _role, _layer, _layers: scheme)


def write_onnx(facts: ModelFacts, preset: Preset, out: Path) -> Artifact:
    """Write the graph below the existing directory `out`; it runs, nothing more."""
    plan, problems = plan_decoder(facts, preset, None)
    if plan is not None and plan.recorded:
        plan, problems = plan_decoder(facts, preset, Ranges(dict.fromkeys(plan.recorded, (-4.0, 4.0)), frozenset(), {}))
    if plan is None:
        raise UnsupportedError("\n".join(map(str, problems)))
    write_graph(out, plan, EmitOptions(preset.name), lambda _what, _done, _total: None)
    return Artifact(
        root=out, format="onnx", entry=plan.file, name="calibration", quant=preset.name, n_params=plan.n_params,
        bits_per_weight=plan.bits_per_weight, context_length=plan.context, source="", contract={},
    )  # fmt: skip
