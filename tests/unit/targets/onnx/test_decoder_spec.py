"""What is read from a decoder's config.json, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from targets.gguf.architectures import architecture_of
from targets.onnx.decoder_spec import LONGEST_TABLE, DecoderSpec, decoder_spec, kernel_refusals, refusals

if TYPE_CHECKING:
    from targets.base import Problem

SLIDING, FULL = "sliding_attention", "full_attention"


def config(name: str = "LlamaForCausalLM", **changes: Any) -> dict[str, Any]:
    base = {
        "architectures": [name], "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_hidden_layers": 4, "intermediate_size": 128, "vocab_size": 600, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "rope_theta": 1e4,
    }  # fmt: skip
    return {**architecture_of(name).defaults, **base, **changes}


def every_refusal(of: dict[str, Any]) -> list[Problem]:
    return refusals(of) + kernel_refusals(of)


def spec(name: str, **changes: Any) -> DecoderSpec:
    return decoder_spec(architecture_of(name), config(name, **changes))


@pytest.mark.parametrize(
    ("name", "changes", "windows"),
    [
        ("LlamaForCausalLM", {"sliding_window": 8}, (0, 0, 0, 0)),  # Llama has none, whatever its config says
        ("MistralForCausalLM", {"sliding_window": 8}, (8, 8, 8, 8)),
        ("MistralForCausalLM", {"sliding_window": None}, (0, 0, 0, 0)),
        ("Qwen2ForCausalLM", {"sliding_window": 8}, (0, 0, 0, 0)),
        ("Qwen2ForCausalLM", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3}, (0, 0, 0, 8)),
        ("Qwen3ForCausalLM", {"sliding_window": 8, "use_sliding_window": True,
                              "layer_types": [SLIDING, FULL, FULL, SLIDING]}, (8, 0, 0, 8)),
        ("Gemma3ForCausalLM", {"sliding_window": 8, "sliding_window_pattern": 3}, (8, 8, 0, 8)),
        ("Gemma3ForCausalLM", {"sliding_window": 8}, (8, 8, 8, 8)),
        ("Gemma3ForCausalLM", {"sliding_window": 8, "layer_types": [FULL, SLIDING, FULL, SLIDING]}, (0, 8, 0, 8)),
    ],
)  # fmt: skip
def test_windows(name: str, changes: dict[str, Any], windows: tuple[int, ...]) -> None:
    found = spec(name, **changes)
    assert found.windows == windows
    # only Gemma turns its sliding layers by a table of their own
    assert found.local == tuple("Gemma" in name and window > 0 for window in windows)


def test_llama_by_hand() -> None:
    found = spec("LlamaForCausalLM", tie_word_embeddings=True)
    assert (found.head_dim, found.scale, found.embedding_scale) == (16, 0.25, 1.0)
    assert (found.activation, found.tied, found.head_norms, found.post_norms) == ("silu", True, False, False)
    assert (found.context, found.default_theta) == (2048, 10000.0)


def test_gemma_by_hand() -> None:
    found = spec("Gemma3ForCausalLM", query_pre_attn_scalar=400, final_logit_softcapping=30.0, head_dim=32)
    assert (found.scale, found.embedding_scale, found.softcap) == (0.05, 8.0, 30.0)
    assert (found.activation, found.head_norms, found.post_norms) == ("gelu_tanh", True, True)
    assert (found.head_dim, found.default_theta) == (32, 1_000_000.0)


def test_a_long_context_is_cut() -> None:
    found = spec("LlamaForCausalLM", max_position_embeddings=131072)
    assert (found.trained_context, found.context) == (131072, LONGEST_TABLE)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM",
                                  "Gemma3ForCausalLM"])  # fmt: skip
def test_ordinary_configs_are_no_problem(name: str) -> None:
    assert every_refusal(config(name)) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_act": "relu"}, "config.json: hidden_act: 'relu' is not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, "config.json: quantization_config: the weights are"),
        ({"num_key_value_heads": 3}, "config.json: num_key_value_heads: does not divide"),
        ({"head_dim": 24}, "config.json: head_dim: a head is 24 wide, GroupQueryAttention takes multiples of 16"),
        ({"hidden_size": 160}, "config.json: head_dim: a head is 40 wide"),
        ({"attn_logit_softcapping": 50.0}, "config.json: attn_logit_softcapping: is set"),
        ({"use_bidirectional_attention": True}, "config.json: use_bidirectional_attention: is on"),
        ({"layer_types": [FULL]}, "config.json: layer_types: has not one entry a layer"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "config.json: rope_type: 'longrope'"),
    ],
)
def test_what_no_graph_computes_is_named(changes: dict[str, Any], says: str) -> None:
    (problem,) = every_refusal(config(**changes))
    assert says in str(problem)


def test_all_problems_at_once() -> None:
    changes = {"hidden_act": "relu", "head_dim": 20, "num_key_value_heads": 3, "attn_logit_softcapping": 50.0}
    assert len(every_refusal(config(**changes))) == 4
