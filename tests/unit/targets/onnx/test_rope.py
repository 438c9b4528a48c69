"""Rotary tables beside those of transformers' own rotary embedding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from targets.onnx import rope

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
KINDS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "default of another base": {"rope_type": "default", "rope_theta": 1e6},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": YARN,
    "yarn with a factor": {**YARN, "attention_factor": 1.3},
    "yarn with its own turns": {**YARN, "beta_fast": 16, "beta_slow": 2},
    "yarn that does not truncate": {**YARN, "truncate": False},
    "yarn that shrinks": {**YARN, "factor": 1.0},
}  # fmt: skip


def config(**parameters: Any) -> dict[str, Any]:
    return {
        "hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 8,
        "max_position_embeddings": 256, "rope_parameters": parameters,
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_tables_are_transformers(kind: str) -> None:
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    ours = rope.tables(config(**KINDS[kind]), 256)
    embedding = LlamaRotaryEmbedding(LlamaConfig(**config(**dict(KINDS[kind]))))
    theirs = embedding(torch.zeros(1), torch.arange(256)[None])
    for found, expected in zip(ours, theirs, strict=True):
        # transformers repeats the table for the second half of a head; angles of 256 radians have 1e-5 of precision
        assert found.shape == (256, 16)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[0, :, :16].numpy(), atol=5e-5)
    assert np.array_equal(ours[0][0], np.full(16, ours[0][0, 0]))


def test_a_head_by_hand() -> None:
    # frequencies of a head of 4 with base 100: 1 and 1/10
    two = {"head_dim": 4, "hidden_size": 4, "num_attention_heads": 1, "rope_theta": 100.0}
    cos, sin = rope.tables(two, 3)
    np.testing.assert_allclose(cos, np.cos([[0, 0], [1, 0.1], [2, 0.2]]), atol=1e-6)
    np.testing.assert_allclose(sin, np.sin([[0, 0], [1, 0.1], [2, 0.2]]), atol=1e-6)


def test_sliding_layers_have_their_own_base() -> None:
    gemma = {**config(), "rope_parameters": None, "rope_local_base_freq": 50.0, "rope_theta": 1e6}
    local = rope.tables(gemma, 8, rope.SLIDING)[0]
    assert local[1, 1] == pytest.approx(np.cos(50.0 ** (-2 / 32)), abs=1e-6)
    assert rope.tables(gemma, 8)[0][1, 1] == pytest.approx(np.cos(1e6 ** (-2 / 32)), abs=1e-6)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"rope_type": "longrope", "factor": 2.0}, "'longrope' is not supported"),
        ({"rope_type": "dynamic", "factor": 2.0}, "'dynamic' is not supported"),
        ({"rope_type": "linear"}, "'linear' has no factor"),
        ({**YARN, "mscale": 0.7}, "mscale: is set"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor: is not 1"),
    ],
)
def test_what_no_table_holds_is_named(parameters: dict[str, Any], says: str) -> None:
    assert any(says in str(problem) for problem in rope.problems(config(**parameters)))


@pytest.mark.parametrize("kind", KINDS)
def test_what_tables_hold_is_no_problem(kind: str) -> None:
    assert rope.problems(config(**KINDS[kind])) == []
