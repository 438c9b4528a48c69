"""GLM-4 and GLM-4-0414, EXAONE 4, Seed-OSS: Llama's names, with norms, biases or fused tensors of their own."""

from __future__ import annotations

from targets.base import Problem
from targets.gguf.architectures import rope
from targets.gguf.architectures.base import Architecture, Config, Rule, positive
from targets.gguf.architectures.common import (
    ATTENTION,
    EMBEDDINGS,
    FEED_FORWARD,
    NORMS,
    QK_NORMS,
    QKV_BIASES,
    attention_bias,
    base_hyper_parameters,
    base_refusals,
    fixed,
    only_if,
    square_heads,
)

_LAYER = "model.layers.{i}"
_GATE_UP = (
    Rule(f"{_LAYER}.mlp.gate_up_proj.weight", "blk.{i}.ffn_up.weight", ("gate_up", "hidden")),
    Rule(f"{_LAYER}.mlp.down_proj.weight", "blk.{i}.ffn_down.weight", ("hidden", "ffn")),
)
_GLM_DEFAULTS = {
    "head_dim": 128,
    "rms_norm_eps": 1.5625e-7,
    "max_position_embeddings": 131072,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
}


def _dims(config: Config) -> dict[str, int]:
    return {"gate_up": 2 * positive(config, "intermediate_size")}


def _refuse(config: Config) -> list[Problem]:
    return base_refusals(config, "silu", partial=True)


GLM = Architecture(
    classes=("GlmForCausalLM",),
    gguf="chatglm",
    rules=EMBEDDINGS,
    layer_rules=(*NORMS, *ATTENTION, *only_if(attention_bias, *QKV_BIASES), *_GATE_UP),
    hyper_parameters=lambda config: base_hyper_parameters(config, "chatglm"),
    refuse=lambda config: [*_refuse(config), *square_heads(config)],
    dims=_dims,
    defaults=_GLM_DEFAULTS,
)

GLM4 = Architecture(
    classes=("Glm4ForCausalLM",),
    gguf="glm4",
    rules=EMBEDDINGS,
    layer_rules=(
        *NORMS,
        Rule(f"{_LAYER}.post_self_attn_layernorm.weight", "blk.{i}.post_attention_norm.weight", ("hidden",)),
        Rule(f"{_LAYER}.post_mlp_layernorm.weight", "blk.{i}.post_ffw_norm.weight", ("hidden",)),
        *ATTENTION,
        *only_if(attention_bias, *QKV_BIASES),
        *_GATE_UP,
    ),
    hyper_parameters=lambda config: base_hyper_parameters(config, "glm4"),
    refuse=_refuse,
    dims=_dims,
    defaults=_GLM_DEFAULTS,
)


def _refuse_exaone4(config: Config) -> list[Problem]:
    found = base_refusals(config, "silu", "llama3") + square_heads(config)
    if config.get("sliding_window"):
        fix = "llama.cpp has it for 64 layers only, which packlight does not write yet"
        found.append(Problem("config.json: sliding_window", "is set", fix))
    elif config.get("num_hidden_layers") == _EXAONE4_32B_LAYERS:
        fix = "llama.cpp takes a model of so many layers for the one with a sliding window"
        found.append(Problem("config.json: num_hidden_layers", f"is {_EXAONE4_32B_LAYERS}", fix))
    return found


_EXAONE4_32B_LAYERS = 64

EXAONE4 = Architecture(
    classes=("Exaone4ForCausalLM",),
    gguf="exaone4",
    rules=EMBEDDINGS,
    layer_rules=(
        *ATTENTION,
        *QK_NORMS,
        Rule(f"{_LAYER}.post_attention_layernorm.weight", "blk.{i}.post_attention_norm.weight", ("hidden",)),
        Rule(f"{_LAYER}.post_feedforward_layernorm.weight", "blk.{i}.post_ffw_norm.weight", ("hidden",)),
        *FEED_FORWARD,
    ),
    hyper_parameters=lambda config: base_hyper_parameters(config, "exaone4"),
    refuse=_refuse_exaone4,
    extra=rope.llama3_factors,
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "sliding_window": 4096},
)

SEED_OSS = Architecture(
    classes=("SeedOssForCausalLM",),
    gguf="seed_oss",
    rules=EMBEDDINGS,
    layer_rules=(
        NORMS[0],
        Rule(NORMS[1].source, "blk.{i}.post_attention_norm.weight", ("hidden",)),
        *ATTENTION,
        *only_if(attention_bias, *QKV_BIASES),
        *FEED_FORWARD,
    ),
    hyper_parameters=lambda config: base_hyper_parameters(config, "seed_oss"),
    refuse=lambda config: [*base_refusals(config, "silu"), *fixed(config, attention_out_bias=False, mlp_bias=False)],
    defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 524288,
        "head_dim": 128,
        "num_key_value_heads": 8,
        "attention_bias": True,
    },
)
