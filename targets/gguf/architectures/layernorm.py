"""Decoders of Llama's names with layer norms: StableLM, StarCoder 2, Nemotron."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from targets.gguf.architectures.base import Architecture, Config, Rule, renamed
from targets.gguf.architectures.common import (
    ATTENTION,
    EMBEDDINGS,
    FEED_FORWARD,
    FEED_FORWARD_BIASES,
    OUTPUT_BIAS,
    QKV_BIASES,
    TWICE,
    attention_bias,
    base_hyper_parameters,
    base_refusals,
    capped,
    fixed,
    layer_norm,
    linear,
    mlp_bias,
    only_if,
    square_heads,
)

if TYPE_CHECKING:
    from targets.base import Problem

_LAYER = "model.layers.{i}"
_OUTER = (EMBEDDINGS[0], *layer_norm("model.norm", "output_norm"), EMBEDDINGS[2])
_ATTENTION_NORM = layer_norm(f"{_LAYER}.input_layernorm", "blk.{i}.attn_norm")
_FEED_FORWARD_NORM = layer_norm(f"{_LAYER}.post_attention_layernorm", "blk.{i}.ffn_norm")


def _head_norm(stored: str, target: str, heads: str) -> Rule:
    """A norm for every head of its own."""
    source = f"{_LAYER}.self_attn.{stored}.norms.{{e}}.weight"
    return Rule(source, f"blk.{{i}}.{target}.weight", (heads, "head"), each=heads, precise=True)


STABLELM = Architecture(
    classes=("StableLmForCausalLM",),
    gguf="stablelm",
    rules=(*_OUTER, TWICE),
    layer_rules=(
        *_ATTENTION_NORM,
        *ATTENTION,
        *only_if(lambda config: bool(config.get("use_qkv_bias")), *QKV_BIASES),
        *only_if(
            lambda config: bool(config.get("qk_layernorm")),
            _head_norm("q_layernorm", "attn_q_norm", "heads"),
            _head_norm("k_layernorm", "attn_k_norm", "kv_heads"),
        ),
        # with attention and feed-forward side by side both read the first norm
        *only_if(lambda config: not config.get("use_parallel_residual"), *_FEED_FORWARD_NORM),
        *FEED_FORWARD,
    ),
    hyper_parameters=lambda config: base_hyper_parameters(config, "stablelm", layer_norm=True),
    refuse=lambda config: [*base_refusals(config, "silu", partial=True), *square_heads(config)],
    defaults={"layer_norm_eps": 1e-5, "max_position_embeddings": 4096, "partial_rotary_factor": 0.25},
)

STARCODER2 = Architecture(
    classes=("Starcoder2ForCausalLM",),
    gguf="starcoder2",
    rules=_OUTER,
    layer_rules=(
        *_ATTENTION_NORM,
        *ATTENTION,
        *QKV_BIASES,
        OUTPUT_BIAS,
        *_FEED_FORWARD_NORM,
        *linear(f"{_LAYER}.mlp.c_fc", "blk.{i}.ffn_up", ("ffn", "hidden")),
        *linear(f"{_LAYER}.mlp.c_proj", "blk.{i}.ffn_down", ("hidden", "ffn")),
    ),
    hyper_parameters=lambda config: capped(
        base_hyper_parameters(config, "starcoder2", layer_norm=True), config, "starcoder2"
    ),
    refuse=lambda config: [
        *base_refusals(config, ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")),
        *fixed(config, use_bias=True),
        *square_heads(config),
    ],
    read=lambda config: renamed(config, {"layer_norm_eps": "norm_epsilon"}),
    defaults={
        "norm_epsilon": 1e-5,
        "max_position_embeddings": 4096,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
)


def _one_more(*rules: Rule) -> tuple[Rule, ...]:
    """Nemotron multiplies by (1 + weight), llama.cpp by the weight; biases are as stored."""
    return tuple(dataclasses.replace(rule, plus=1.0) if rule.target.endswith("norm.weight") else rule for rule in rules)


def _refuse_nemotron(config: Config) -> list[Problem]:
    return [*base_refusals(config, "relu2", partial=True), *square_heads(config)]


NEMOTRON = Architecture(
    classes=("NemotronForCausalLM",),
    gguf="nemotron",
    rules=_one_more(*_OUTER, TWICE),
    layer_rules=_one_more(
        *_ATTENTION_NORM,
        *ATTENTION,
        *only_if(attention_bias, *QKV_BIASES, OUTPUT_BIAS),
        *_FEED_FORWARD_NORM,
        *FEED_FORWARD[1:],
        *only_if(mlp_bias, *FEED_FORWARD_BIASES[1:]),
    ),
    hyper_parameters=lambda config: base_hyper_parameters(config, "nemotron", layer_norm=True),
    refuse=_refuse_nemotron,
    read=lambda config: renamed(config, {"layer_norm_eps": "norm_eps"}),
    defaults={"norm_eps": 1e-5, "max_position_embeddings": 4096, "partial_rotary_factor": 0.5},
)
