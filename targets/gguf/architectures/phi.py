"""Phi-2 (attention and feed-forward side by side, biases everywhere) and Phi-3, 3.5 and 4 (fused, long rope)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from targets.base import Problem
from targets.gguf.architectures import rope
from targets.gguf.architectures.base import (
    Architecture,
    Config,
    OutTensor,
    Rule,
    head_dim,
    n_heads,
    n_kv_heads,
    positive,
)
from targets.gguf.architectures.common import (
    EMBEDDINGS,
    NORMS,
    base_hyper_parameters,
    base_refusals,
    capped,
    fixed,
    layer_norm,
    linear,
    square_heads,
)
from targets.gguf.architectures.rope import rotary_dim
from targets.gguf.keyvalue import KeyValue, float32, uint32

_LAYER = "model.layers.{i}"
_LONG = ("longrope", "su", "yarn")
"""Phi-3's first checkpoints call long rope "su" and "yarn"."""

PHI2 = Architecture(
    classes=("PhiForCausalLM",),
    gguf="phi2",
    rules=(
        EMBEDDINGS[0],
        *layer_norm("model.final_layernorm", "output_norm"),
        *linear("lm_head", "output", ("vocab", "hidden")),
    ),
    layer_rules=(
        *layer_norm(f"{_LAYER}.input_layernorm", "blk.{i}.attn_norm"),
        *linear(f"{_LAYER}.self_attn.q_proj", "blk.{i}.attn_q", ("q", "hidden")),
        *linear(f"{_LAYER}.self_attn.k_proj", "blk.{i}.attn_k", ("kv", "hidden")),
        *linear(f"{_LAYER}.self_attn.v_proj", "blk.{i}.attn_v", ("kv", "hidden")),
        *linear(f"{_LAYER}.self_attn.dense", "blk.{i}.attn_output", ("hidden", "q")),
        *linear(f"{_LAYER}.mlp.fc1", "blk.{i}.ffn_up", ("ffn", "hidden")),
        *linear(f"{_LAYER}.mlp.fc2", "blk.{i}.ffn_down", ("hidden", "ffn")),
    ),
    hyper_parameters=lambda config: base_hyper_parameters(config, "phi2", layer_norm=True),
    refuse=lambda config: [
        *base_refusals(config, ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"), partial=True),
        *fixed(config, qk_layernorm=False, tie_word_embeddings=False),
        *square_heads(config),
    ],
    defaults={"layer_norm_eps": 1e-5, "max_position_embeddings": 2048, "partial_rotary_factor": 0.5},
)


def _scaling(config: Config) -> dict[str, Any]:
    """The long rope's own numbers; empty for plain rope."""
    found = rope.parameters(config)
    return found if found["rope_type"] in _LONG else {}


def _trained(config: Config) -> int:
    """Tokens of the context before it was made longer; from there on the long factors hold."""
    given = _scaling(config).get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    return int(given) if given else positive(config, "max_position_embeddings")


def long_rope(config: Config, arch: str) -> list[KeyValue]:
    """The key/values of long rope. Source: LongRoPE, https://arxiv.org/abs/2402.13753, as transformers computes it."""
    scaling = _scaling(config)
    if not scaling:
        return []
    trained = _trained(config)
    factor = scaling.get("factor") or positive(config, "max_position_embeddings") / trained
    attention = scaling.get("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1.0 else 1.0
    return [
        uint32(f"{arch}.rope.scaling.original_context_length", trained),
        float32(f"{arch}.rope.scaling.attn_factor", attention),
    ]


def long_factors(config: Config) -> list[OutTensor]:
    """`rope_factors_long.weight` and `rope_factors_short.weight`, what frequencies are divided by."""
    scaling = _scaling(config)
    made = []
    for name in ("long", "short") if scaling else ():
        values = np.asarray(scaling[f"{name}_factor"], np.float32)
        made.append(OutTensor(f"rope_factors_{name}.weight", values.shape, None, values=values))
    return made


def _plain(config: Config) -> Config:
    """The config without scaling, for what all families write of rope."""
    bare = {
        key: value for key, value in rope.parameters(config).items() if key in ("rope_theta", "partial_rotary_factor")
    }
    return {**config, "rope_parameters": {**bare, "rope_type": "default"}}


def _phi3_hyper_parameters(config: Config) -> list[KeyValue]:
    entries = base_hyper_parameters(_plain(config), "phi3")
    return capped([*entries, *long_rope(config, "phi3")], config, "phi3")


def _refuse_phi3(config: Config) -> list[Problem]:
    kind = rope.parameters(config)["rope_type"]
    scaling = _scaling(config)
    found = base_refusals(_plain(config) if scaling else config, "silu", partial=True) + square_heads(config)
    if not scaling and kind != "default":
        found.append(Problem("config.json: rope_type", f"'{kind}' is not supported", "known here: default, longrope"))
    for name in ("long_factor", "short_factor") if scaling else ():
        factors, expected = scaling.get(name), rotary_dim(config) // 2
        numbers = isinstance(factors, list) and all(isinstance(one, int | float) for one in factors)
        if not numbers or len(factors or ()) != expected:
            found.append(Problem(f"config.json: {name}", f"is not {expected} numbers", "complete the config.json"))
    return found


def _phi3_notes(config: Config) -> list[str]:
    if not _scaling(config):
        return []
    return [
        f"long rope: llama.cpp takes the factors for long texts when opened with more than {_trained(config)} tokens "
        "of context, transformers when a text is longer than that"
    ]


PHI3 = Architecture(
    classes=("Phi3ForCausalLM",),
    gguf="phi3",
    rules=EMBEDDINGS,
    layer_rules=(
        *NORMS,
        Rule(f"{_LAYER}.self_attn.qkv_proj.weight", "blk.{i}.attn_qkv.weight", ("qkv", "hidden")),
        Rule(f"{_LAYER}.self_attn.o_proj.weight", "blk.{i}.attn_output.weight", ("hidden", "q")),
        Rule(f"{_LAYER}.mlp.gate_up_proj.weight", "blk.{i}.ffn_up.weight", ("gate_up", "hidden")),
        Rule(f"{_LAYER}.mlp.down_proj.weight", "blk.{i}.ffn_down.weight", ("hidden", "ffn")),
    ),
    hyper_parameters=_phi3_hyper_parameters,
    refuse=_refuse_phi3,
    extra=long_factors,
    notes=_phi3_notes,
    dims=lambda config: {
        "qkv": (n_heads(config) + 2 * n_kv_heads(config)) * head_dim(config),
        "gate_up": 2 * positive(config, "intermediate_size"),
    },
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
)
