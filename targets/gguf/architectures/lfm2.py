"""LFM2 and its expert models: layers of a gated short convolution, and a few of attention."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from targets.gguf.architectures.base import Architecture, Config, Rule, n_kv_heads, number, positive, renamed
from targets.gguf.architectures.common import (
    base_hyper_parameters,
    base_refusals,
    expert_dims,
    expert_hyper_parameters,
    experts,
    fixed,
    linear,
    router,
    square_heads,
    untied,
)
from targets.gguf.architectures.recurrent import convolution
from targets.gguf.keyvalue import KeyValue, array, uint32

if TYPE_CHECKING:
    from targets.base import Problem

_LAYER = "model.layers.{i}"


def _is_conv(config: Config, layer: int) -> bool:
    return str(config["layer_types"][layer]) == "conv"


def _is_attention(config: Config, layer: int) -> bool:
    return not _is_conv(config, layer)


def _read(config: Config) -> Config:
    """The layers' kinds and the width of the feed-forward, which the config may leave to a calculation."""
    found = renamed(config, {"rms_norm_eps": "norm_eps"})
    if not found.get("layer_types"):
        n_layers = positive(found, "num_hidden_layers")
        attend = found.get("full_attn_idxs")
        attend = range(n_layers) if attend is None else attend
        found["layer_types"] = ["full_attention" if layer in attend else "conv" for layer in range(n_layers)]
    ffn = positive(found, "block_ff_dim") if found.get("block_ff_dim") else positive(found, "intermediate_size")
    if found["block_auto_adjust_ff_dim"]:
        ffn = int(2 * ffn / 3)
        if found.get("block_ffn_dim_multiplier") is not None:
            multiple = positive(found, "block_multiple_of")
            ffn = -(-int(number(found, "block_ffn_dim_multiplier") * ffn) // multiple) * multiple
    tied = found.get("tie_embedding", found["tie_word_embeddings"])
    return {**found, "intermediate_size": ffn, "tie_word_embeddings": tied}


def _hyper_parameters(config: Config, arch: str) -> list[KeyValue]:
    heads = [0 if kind == "conv" else n_kv_heads(config) for kind in config["layer_types"]]
    key = f"{arch}.attention.head_count_kv"
    entries = base_hyper_parameters(config, arch, default_theta=1_000_000.0)
    return [
        *(array(key, heads, "INT32") if entry.key == key else entry for entry in entries),
        uint32(f"{arch}.shortconv.l_cache", positive(config, "conv_L_cache")),
    ]


_OUTER = (
    Rule("model.embed_tokens.weight", "token_embd.weight", ("vocab", "hidden")),
    # llama.cpp calls the last norm so in this family
    Rule("model.embedding_norm.weight", "token_embd_norm.weight", ("hidden",)),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), when=untied),
)
_MIXERS = (
    Rule(f"{_LAYER}.operator_norm.weight", "blk.{i}.attn_norm.weight", ("hidden",)),
    Rule(f"{_LAYER}.ffn_norm.weight", "blk.{i}.ffn_norm.weight", ("hidden",)),
    *(
        dataclasses.replace(rule, layers=_is_attention)
        for rule in (
            Rule(f"{_LAYER}.self_attn.q_proj.weight", "blk.{i}.attn_q.weight", ("q", "hidden")),
            Rule(f"{_LAYER}.self_attn.k_proj.weight", "blk.{i}.attn_k.weight", ("kv", "hidden")),
            Rule(f"{_LAYER}.self_attn.v_proj.weight", "blk.{i}.attn_v.weight", ("kv", "hidden")),
            Rule(f"{_LAYER}.self_attn.out_proj.weight", "blk.{i}.attn_output.weight", ("hidden", "q")),
            Rule(f"{_LAYER}.self_attn.q_layernorm.weight", "blk.{i}.attn_q_norm.weight", ("head",)),
            Rule(f"{_LAYER}.self_attn.k_layernorm.weight", "blk.{i}.attn_k_norm.weight", ("head",)),
        )
    ),
    *linear(f"{_LAYER}.conv.in_proj", "blk.{i}.shortconv.in_proj", ("three", "hidden"), bias=False, layers=_is_conv),
    convolution(f"{_LAYER}.conv.conv", "blk.{i}.shortconv.conv", "hidden", layers=_is_conv),
    *linear(f"{_LAYER}.conv.out_proj", "blk.{i}.shortconv.out_proj", ("hidden", "hidden"), bias=False, layers=_is_conv),
)
_FEED_FORWARD = (
    *linear(f"{_LAYER}.feed_forward.w1", "blk.{i}.ffn_gate", ("ffn", "hidden"), bias=False),
    *linear(f"{_LAYER}.feed_forward.w3", "blk.{i}.ffn_up", ("ffn", "hidden"), bias=False),
    *linear(f"{_LAYER}.feed_forward.w2", "blk.{i}.ffn_down", ("hidden", "ffn"), bias=False),
)
_DEFAULTS = {
    "norm_eps": 1e-5,
    "max_position_embeddings": 128000,
    "num_key_value_heads": 8,
    "conv_L_cache": 3,
    "tie_word_embeddings": True,
}


def _dims(config: Config) -> dict[str, int]:
    return {"three": 3 * positive(config, "hidden_size"), "conv": positive(config, "conv_L_cache")}


def _refuse(config: Config) -> list[Problem]:
    return [*base_refusals(config, "silu"), *fixed(config, conv_bias=False), *square_heads(config)]


LFM2 = Architecture(
    classes=("Lfm2ForCausalLM",),
    gguf="lfm2",
    rules=_OUTER,
    layer_rules=(*_MIXERS, *_FEED_FORWARD),
    hyper_parameters=lambda config: _hyper_parameters(config, "lfm2"),
    refuse=_refuse,
    read=_read,
    dims=_dims,
    defaults={
        **_DEFAULTS,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": True,
    },
)


def _is_dense(config: Config, layer: int) -> bool:
    return layer < int(number(config, "num_dense_layers"))


def _has_experts(config: Config, layer: int) -> bool:
    return not _is_dense(config, layer)


_MOE = f"{_LAYER}.feed_forward"
_SIGMOID = 2
"""llama.cpp's number for experts that are weighted by a sigmoid."""

LFM2_MOE = Architecture(
    classes=("Lfm2MoeForCausalLM",),
    gguf="lfm2moe",
    rules=_OUTER,
    layer_rules=(
        *_MIXERS,
        *(dataclasses.replace(rule, layers=_is_dense) for rule in _FEED_FORWARD),
        *(
            dataclasses.replace(rule, layers=_has_experts)
            for rule in (
                router(f"{_MOE}.gate.weight"),
                Rule(f"{_MOE}.expert_bias", "blk.{i}.exp_probs_b.bias", ("experts",)),
                *experts(f"{_MOE}.experts", "w1", "w3", "w2", f"{_MOE}.experts"),
            )
        ),
    ),
    hyper_parameters=lambda config: [
        *_hyper_parameters(config, "lfm2moe"),
        *expert_hyper_parameters(config, "lfm2moe"),
        uint32("lfm2moe.expert_feed_forward_length", positive(config, "moe_intermediate_size")),
        uint32("lfm2moe.leading_dense_block_count", int(number(config, "num_dense_layers"))),
        uint32("lfm2moe.expert_gating_func", _SIGMOID),
    ],
    refuse=lambda config: [
        *_refuse(config),
        *fixed(config, use_expert_bias=True, norm_topk_prob=True, routed_scaling_factor=1.0),
    ],
    read=_read,
    dims=lambda config: {**_dims(config), **expert_dims(config)},
    defaults={
        **_DEFAULTS,
        "block_auto_adjust_ff_dim": False,
        "intermediate_size": 7168,
        "moe_intermediate_size": 1792,
        "num_dense_layers": 2,
        "num_experts": 32,
        "num_experts_per_tok": 4,
    },
)
