"""OLMo (norms without weights), OLMo 2 and 3 (norms behind attention and feed-forward), OLMoE (experts)."""

from __future__ import annotations

from targets.base import Problem
from targets.gguf.architectures import rope
from targets.gguf.architectures.base import Architecture, Config, Rule, n_heads, n_kv_heads, number
from targets.gguf.architectures.common import (
    ATTENTION,
    EMBEDDINGS,
    FEED_FORWARD,
    NORMS,
    TWICE,
    base_hyper_parameters,
    base_refusals,
    expert_dims,
    expert_hyper_parameters,
    experts,
    fixed,
    interleaved,
    router,
    sliding_layers,
    square_heads,
    window_hyper_parameters,
)
from targets.gguf.keyvalue import KeyValue, float32

_LAYER = "model.layers.{i}"
_QK_NORMS = (
    Rule(f"{_LAYER}.self_attn.q_norm.weight", "blk.{i}.attn_q_norm.weight", ("q",)),
    Rule(f"{_LAYER}.self_attn.k_norm.weight", "blk.{i}.attn_k_norm.weight", ("kv",)),
)


def _hyper_parameters(config: Config) -> list[KeyValue]:
    entries = base_hyper_parameters(config, "olmo", layer_norm=True)
    if config.get("clip_qkv"):
        entries.append(float32("olmo.attention.clamp_kqv", number(config, "clip_qkv")))
    return entries


def _refuse(config: Config) -> list[Problem]:
    return [*base_refusals(config, "silu"), *fixed(config, attention_bias=False), *square_heads(config)]


OLMO = Architecture(
    classes=("OlmoForCausalLM",),
    gguf="olmo",
    rules=(EMBEDDINGS[0], EMBEDDINGS[2]),
    layer_rules=(*interleaved(*ATTENTION), *FEED_FORWARD),
    hyper_parameters=_hyper_parameters,
    refuse=_refuse,
    # its norms have neither weights nor an epsilon in config.json
    defaults={"layer_norm_eps": 1e-5, "max_position_embeddings": 2048},
)

_BEHIND = (
    Rule(f"{_LAYER}.post_attention_layernorm.weight", "blk.{i}.post_attention_norm.weight", ("hidden",)),
    Rule(f"{_LAYER}.post_feedforward_layernorm.weight", "blk.{i}.post_ffw_norm.weight", ("hidden",)),
)
_OLMO2_LAYER = (*ATTENTION, *_QK_NORMS, *_BEHIND, *FEED_FORWARD)

OLMO2 = Architecture(
    classes=("Olmo2ForCausalLM",),
    gguf="olmo2",
    rules=(*EMBEDDINGS, TWICE),
    layer_rules=_OLMO2_LAYER,
    hyper_parameters=lambda config: base_hyper_parameters(config, "olmo2"),
    refuse=_refuse,
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 2048},
)

_OLMO3_PATTERN = 4


def _refuse_olmo3(config: Config) -> list[Problem]:
    local, whole = (rope.parameters(config, kind) for kind in ("sliding_attention", "full_attention"))
    found = _refuse(config)
    if "sliding_attention" in (config.get("rope_parameters") or {}) and local["rope_theta"] != whole["rope_theta"]:
        what = "is another for the sliding layers"
        found.append(Problem("config.json: rope_theta", what, "llama.cpp has one for all layers of this family"))
    return found


OLMO3 = Architecture(
    classes=("Olmo3ForCausalLM",),
    gguf="olmo2",
    rules=(*EMBEDDINGS, TWICE),
    layer_rules=_OLMO2_LAYER,
    hyper_parameters=lambda config: [
        *base_hyper_parameters(config, "olmo2", default_theta=500_000.0),
        *window_hyper_parameters(config, "olmo2", sliding_layers(config, _OLMO3_PATTERN)),
    ],
    refuse=_refuse_olmo3,
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "sliding_window": 4096},
)


def _refuse_olmoe(config: Config) -> list[Problem]:
    found = _refuse(config) + fixed(config, norm_topk_prob=False, clip_qkv=False)
    if n_kv_heads(config) != n_heads(config):
        what = "is not num_attention_heads"
        found.append(Problem("config.json: num_key_value_heads", what, "llama.cpp computes only that for OLMoE"))
    return found


OLMOE = Architecture(
    classes=("OlmoeForCausalLM",),
    gguf="olmoe",
    rules=(*EMBEDDINGS, TWICE),
    layer_rules=(
        *NORMS,
        *ATTENTION,
        *_QK_NORMS,
        router(f"{_LAYER}.mlp.gate.weight"),
        *experts(f"{_LAYER}.mlp.experts", "gate_proj", "up_proj", "down_proj", f"{_LAYER}.mlp.experts"),
    ),
    hyper_parameters=lambda config: [
        *base_hyper_parameters(config, "olmoe"),
        *expert_hyper_parameters(config, "olmoe"),
    ],
    refuse=_refuse_olmoe,
    dims=lambda config: expert_dims(config, "intermediate_size"),
    defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
    },
)
