"""Llama 2 and 3, SmolLM2, Mistral, Mixtral, SmolLM3, Arcee: rotary halves become pairs: q and k rows are reordered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from targets.base import Problem
from targets.gguf.architectures import rope
from targets.gguf.architectures.base import Architecture, Config, positive, renamed
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
    capped,
    expert_dims,
    expert_hyper_parameters,
    experts,
    fixed,
    interleaved,
    mlp_bias,
    only_if,
    router,
)

if TYPE_CHECKING:
    from targets.gguf.keyvalue import KeyValue

_NOPE_STEP = 4
"""llama.cpp rotates nothing in every fourth layer of SmolLM3."""

_BLOCK = "model.layers.{i}.block_sparse_moe"


def _hyper_parameters(config: Config) -> list[KeyValue]:
    return capped(base_hyper_parameters(config, "llama"), config, "llama")


def _refuse(config: Config) -> list[Problem]:
    return base_refusals(config, "silu", "llama3")


LLAMA = Architecture(
    classes=("LlamaForCausalLM", "MistralForCausalLM"),
    gguf="llama",
    uneven="deci",
    rules=EMBEDDINGS,
    layer_rules=(
        *NORMS,
        *interleaved(*ATTENTION),
        *FEED_FORWARD,
        *interleaved(*only_if(attention_bias, *QKV_BIASES, OUTPUT_BIAS)),
        *only_if(mlp_bias, *FEED_FORWARD_BIASES),
    ),
    hyper_parameters=_hyper_parameters,
    refuse=_refuse,
    extra=rope.llama3_factors,
    defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
)

MIXTRAL = Architecture(
    classes=("MixtralForCausalLM",),
    gguf="llama",
    rules=EMBEDDINGS,
    layer_rules=(
        *NORMS,
        *interleaved(*ATTENTION),
        router(f"{_BLOCK}.gate.weight", "model.layers.{i}.mlp.gate.weight"),
        *experts(f"{_BLOCK}.experts", "w1", "w3", "w2", "model.layers.{i}.mlp.experts"),
    ),
    hyper_parameters=lambda config: _hyper_parameters(config) + expert_hyper_parameters(config, "llama"),
    refuse=_refuse,
    extra=rope.llama3_factors,
    read=lambda config: renamed(config, {"num_experts": "num_local_experts"}),
    dims=lambda config: expert_dims(config, "intermediate_size"),
    defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "num_experts_per_tok": 2,
        "rope_theta": 1e6,
    },
)


def _refuse_smollm3(config: Config) -> list[Problem]:
    found = base_refusals(config, "silu")
    found += fixed(config, attention_bias=False, mlp_bias=False, use_sliding_window=False)
    step = config.get("no_rope_layer_interval") or _NOPE_STEP
    n_layers = positive(config, "num_hidden_layers")
    rotated = config.get("no_rope_layers") or [int((layer + 1) % step != 0) for layer in range(n_layers)]
    if list(map(bool, rotated)) != [(layer + 1) % _NOPE_STEP != 0 for layer in range(n_layers)]:
        what = f"is not every layer but each {_NOPE_STEP}th"
        found.append(Problem("config.json: no_rope_layers", what, "llama.cpp computes only that"))
    return found


SMOLLM3 = Architecture(
    classes=("SmolLM3ForCausalLM",),
    gguf="smollm3",
    rules=EMBEDDINGS,
    layer_rules=(*NORMS, *interleaved(*ATTENTION), *FEED_FORWARD),
    hyper_parameters=lambda config: base_hyper_parameters(config, "smollm3", default_theta=2_000_000.0),
    refuse=_refuse_smollm3,
    defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
)

ARCEE = Architecture(
    classes=("ArceeForCausalLM",),
    gguf="arcee",
    rules=EMBEDDINGS,
    layer_rules=(*NORMS, *interleaved(*ATTENTION), *FEED_FORWARD[1:]),
    hyper_parameters=lambda config: base_hyper_parameters(config, "arcee"),
    refuse=lambda config: [
        *base_refusals(config, "relu2"),
        *fixed(config, attention_bias=False, mlp_bias=False),
    ],
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
)

ERNIE4_5 = Architecture(
    classes=("Ernie4_5ForCausalLM",),
    gguf="ernie4_5",
    rules=EMBEDDINGS,
    # rotary pairs lie beside each other as stored
    layer_rules=(*NORMS, *ATTENTION, *FEED_FORWARD),
    hyper_parameters=lambda config: base_hyper_parameters(config, "ernie4_5", default_theta=500_000.0),
    refuse=lambda config: [*base_refusals(config, "silu"), *fixed(config, use_bias=False)],
    defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
)
