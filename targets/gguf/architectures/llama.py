"""Llama 2 and 3, SmolLM2, Mistral: one graph in llama.cpp. Rotary halves become pairs: q and k rows are reordered."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from targets.gguf.architectures import rope
from targets.gguf.architectures.base import Architecture, Config, Rule
from targets.gguf.architectures.common import (
    ATTENTION,
    EMBEDDINGS,
    FEED_FORWARD,
    NORMS,
    attention_bias,
    base_hyper_parameters,
    base_refusals,
    mlp_bias,
)
from targets.gguf.keyvalue import KeyValue, uint32

if TYPE_CHECKING:
    from targets.base import Problem

_INTERLEAVED = {"blk.{i}.attn_q.weight": "q", "blk.{i}.attn_k.weight": "kv"}

_BIASES = (
    Rule("model.layers.{i}.self_attn.q_proj.bias", "blk.{i}.attn_q.bias", ("q",), interleave="q", when=attention_bias),
    Rule(
        "model.layers.{i}.self_attn.k_proj.bias", "blk.{i}.attn_k.bias", ("kv",), interleave="kv", when=attention_bias
    ),
    Rule("model.layers.{i}.self_attn.v_proj.bias", "blk.{i}.attn_v.bias", ("kv",), when=attention_bias),
    Rule("model.layers.{i}.self_attn.o_proj.bias", "blk.{i}.attn_output.bias", ("hidden",), when=attention_bias),
    Rule("model.layers.{i}.mlp.gate_proj.bias", "blk.{i}.ffn_gate.bias", ("ffn",), when=mlp_bias),
    Rule("model.layers.{i}.mlp.up_proj.bias", "blk.{i}.ffn_up.bias", ("ffn",), when=mlp_bias),
    Rule("model.layers.{i}.mlp.down_proj.bias", "blk.{i}.ffn_down.bias", ("hidden",), when=mlp_bias),
)


def _hyper_parameters(config: Config) -> list[KeyValue]:
    entries = base_hyper_parameters(config, "llama")
    window = config.get("sliding_window")
    if isinstance(window, int) and 0 < window < config["max_position_embeddings"]:
        # llama.cpp's graph attends to the whole context. Up to the window both are the same, so the window is
        # the longest context for which the file is the model.
        entries = [uint32(entry.key, window) if entry.key == "llama.context_length" else entry for entry in entries]
    return entries


def _refuse(config: Config) -> list[Problem]:
    return base_refusals(config, "silu", "llama3")


LLAMA = Architecture(
    classes=("LlamaForCausalLM", "MistralForCausalLM"),
    gguf="llama",
    uneven="deci",
    rules=EMBEDDINGS,
    layer_rules=(
        *NORMS,
        *(dataclasses.replace(rule, interleave=_INTERLEAVED.get(rule.target, "")) for rule in ATTENTION),
        *FEED_FORWARD,
        *_BIASES,
    ),
    hyper_parameters=_hyper_parameters,
    refuse=_refuse,
    extra=rope.llama3_factors,
    defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
)
