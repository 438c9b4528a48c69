"""Qwen2 and 2.5 (biases on q, k, v) and Qwen3 (norms on the heads of q and k). Rotary layout as stored."""

from __future__ import annotations

from targets.base import Problem
from targets.gguf.architectures.base import Architecture, Config, Rule
from targets.gguf.architectures.common import (
    ATTENTION,
    EMBEDDINGS,
    FEED_FORWARD,
    NORMS,
    QK_NORMS,
    attention_bias,
    base_hyper_parameters,
    base_refusals,
)

_BIASES = (
    Rule("model.layers.{i}.self_attn.q_proj.bias", "blk.{i}.attn_q.bias", ("q",)),
    Rule("model.layers.{i}.self_attn.k_proj.bias", "blk.{i}.attn_k.bias", ("kv",)),
    Rule("model.layers.{i}.self_attn.v_proj.bias", "blk.{i}.attn_v.bias", ("kv",)),
)


def _refuse(config: Config) -> list[Problem]:
    found = base_refusals(config, "silu")
    if config.get("use_sliding_window"):
        found.append(
            Problem("config.json: use_sliding_window", "is on", "llama.cpp has no sliding window for this family")
        )
    return found


def _refuse_qwen3(config: Config) -> list[Problem]:
    found = _refuse(config)
    if attention_bias(config):
        found.append(Problem("config.json: attention_bias", "is on", "llama.cpp has no attention biases for Qwen3"))
    return found


QWEN2 = Architecture(
    classes=("Qwen2ForCausalLM",),
    gguf="qwen2",
    rules=EMBEDDINGS,
    layer_rules=(*NORMS, *ATTENTION, *_BIASES, *FEED_FORWARD),
    hyper_parameters=lambda config: base_hyper_parameters(config, "qwen2"),
    refuse=_refuse,
    defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 32768},
)

QWEN3 = Architecture(
    classes=("Qwen3ForCausalLM",),
    gguf="qwen3",
    rules=EMBEDDINGS,
    layer_rules=(*NORMS, *ATTENTION, *QK_NORMS, *FEED_FORWARD),
    hyper_parameters=lambda config: base_hyper_parameters(config, "qwen3"),
    refuse=_refuse_qwen3,
    defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "head_dim": 128},
)
