"""Corners of the architectures, each a tiny model whose logits a forgotten setting would change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.parity import emit, worst_difference

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
GEMMA_4B = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-linear": ("llama", {"rope_parameters": LINEAR}),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-untied": ("llama", {"tied": False}),
    "llama-wide-heads": ("llama", {"head_dim": 32}),
    "llama3-public": ("llama3", {"public_config": True}),
    "llama-f16": ("llama", {"dtype": "f16"}),
    "qwen2-untied": ("qwen2", {"tied": False}),
    "llama-yarn-attention-factor": ("llama", {"rope_parameters": {**YARN, "attention_factor": 1.3}}),
    "qwen2-yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3-public": ("qwen3", {"public_config": True}),
    "gemma3-public": ("gemma3", {"public_config": True}),
    "gemma3-linear": ("gemma3", {"rope_parameters": GEMMA_4B}),
    "gemma3-other-pattern": (
        "gemma3",
        {"layers": 4, "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]},
    ),
    "gemma3-softcap": ("gemma3", {"final_logit_softcapping": 10.0}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_the_source(name: str, tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    family, options = VARIANTS[name]
    directory = tiny_model_dir(family, **options)
    limit = 1e-3 if family == "gemma3" else 1e-5
    assert worst_difference(directory, emit(directory, tmp_path)) <= limit


def test_a_sliding_window_caps_the_context(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    # llama.cpp attends to everything; up to the window both agree
    directory = tiny_model_dir("mistral", sliding_window=128)
    artifact = emit(directory, tmp_path)
    assert artifact.context_length == 128
    assert worst_difference(directory, artifact) <= 1e-5
