"""Granite 3 and its expert models: Llama's layout, with multipliers of embeddings, scores, residuals and logits."""

from __future__ import annotations

from targets.base import Problem
from targets.gguf.architectures.base import Architecture, Config, Rule, number, positive, renamed
from targets.gguf.architectures.common import (
    ATTENTION,
    EMBEDDINGS,
    FEED_FORWARD,
    FEED_FORWARD_BIASES,
    NORMS,
    OUTPUT_BIAS,
    QKV_BIASES,
    attention_bias,
    base_hyper_parameters,
    base_refusals,
    expert_dims,
    expert_hyper_parameters,
    interleaved,
    mlp_bias,
    only_if,
    router,
)
from targets.gguf.architectures.views import part
from targets.gguf.keyvalue import KeyValue, float32, uint32

_MOE = "model.layers.{i}.block_sparse_moe"
_SHARED = "model.layers.{i}.shared_mlp"
_MULTIPLIERS = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
DEFAULTS = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, **dict.fromkeys(_MULTIPLIERS, 1.0)}
BIASED_ATTENTION = interleaved(*ATTENTION, *only_if(attention_bias, *QKV_BIASES, OUTPUT_BIAS))


def granite_hyper_parameters(config: Config, arch: str) -> list[KeyValue]:
    """Sizes and multipliers."""
    scales = [float32(f"{arch}.{name}", number(config, key)) for key, name in _MULTIPLIERS.items()]
    return [*base_hyper_parameters(config, arch), *scales]


def refuse(config: Config) -> list[Problem]:
    """What no Granite can have."""
    # llama.cpp takes a zero for "not given" and computes something else
    zeros = [
        Problem(f"config.json: {key}", "is 0", "check the config.json") for key in _MULTIPLIERS if not config.get(key)
    ]
    return base_refusals(config, "silu") + zeros


GRANITE = Architecture(
    classes=("GraniteForCausalLM",),
    gguf="granite",
    rules=EMBEDDINGS,
    layer_rules=(*NORMS, *BIASED_ATTENTION, *FEED_FORWARD, *only_if(mlp_bias, *FEED_FORWARD_BIASES)),
    hyper_parameters=lambda config: granite_hyper_parameters(config, "granite"),
    refuse=refuse,
    defaults=DEFAULTS,
)


def _has_shared(config: Config) -> bool:
    """Whether a feed-forward beside the experts is for all tokens."""
    return bool(config.get("shared_intermediate_size"))


def halves(
    source: str, targets: tuple[str, str], shape: tuple[str, ...], stored: tuple[str, ...], new_name: str | None = None
) -> tuple[Rule, ...]:
    """Gate and up of one stored tensor. new_name: that of transformers 5 where it is another."""

    def half(source: str, at: int, otherwise: Rule | None = None) -> Rule:
        return Rule(source, targets[at], shape, stored=stored, view=part(at, 2), otherwise=otherwise)

    return tuple(half(source, at, half(new_name, at) if new_name else None) for at in range(2))


_GATES, _UPS, _DOWNS = (f"blk.{{i}}.ffn_{name}_exps.weight" for name in ("gate", "up", "down"))
_DOWN_SHAPE = ("experts", "hidden", "expert_ffn")
EXPERTS = (
    router(f"{_MOE}.router.layer.weight", f"{_MOE}.router.weight"),
    *halves(
        f"{_MOE}.input_linear.weight",
        (_GATES, _UPS),
        ("experts", "expert_ffn", "hidden"),
        ("experts", "expert_gate_up", "hidden"),
        f"{_MOE}.experts.gate_up_proj",
    ),
    Rule(
        f"{_MOE}.output_linear.weight",
        _DOWNS,
        _DOWN_SHAPE,
        otherwise=Rule(f"{_MOE}.experts.down_proj", _DOWNS, _DOWN_SHAPE),
    ),
)


SHARED_EXPERT = (
    *halves(
        f"{_SHARED}.input_linear.weight",
        ("blk.{i}.ffn_gate_shexp.weight", "blk.{i}.ffn_up_shexp.weight"),
        ("shared_ffn", "hidden"),
        ("shared_gate_up", "hidden"),
    ),
    Rule(f"{_SHARED}.output_linear.weight", "blk.{i}.ffn_down_shexp.weight", ("hidden", "shared_ffn")),
)


def _moe_hyper_parameters(config: Config) -> list[KeyValue]:
    entries = [*granite_hyper_parameters(config, "granitemoe"), *expert_hyper_parameters(config, "granitemoe")]
    if _has_shared(config):
        shared = positive(config, "shared_intermediate_size")
        entries.append(uint32("granitemoe.expert_shared_feed_forward_length", shared))
    return entries


def _moe_dims(config: Config) -> dict[str, int]:
    shared = positive(config, "shared_intermediate_size") if _has_shared(config) else 0
    return {**expert_dims(config, "intermediate_size"), "shared_ffn": shared, "shared_gate_up": 2 * shared}


GRANITE_MOE = Architecture(
    classes=("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"),
    gguf="granitemoe",
    rules=EMBEDDINGS,
    layer_rules=(
        *NORMS,
        *BIASED_ATTENTION,
        *EXPERTS,
        *only_if(_has_shared, *SHARED_EXPERT),
    ),
    hyper_parameters=_moe_hyper_parameters,
    refuse=refuse,
    read=lambda config: renamed(config, {"num_experts": "num_local_experts"}),
    dims=_moe_dims,
    defaults={**DEFAULTS, "num_local_experts": 8, "num_experts_per_tok": 2},
)
