"""Command-R (Cohere) and Command-R7B (Cohere 2): attention and feed-forward side by side behind one norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from targets.gguf.architectures.base import Architecture, Config, Rule, number, positive
from targets.gguf.architectures.common import (
    ATTENTION,
    EMBEDDINGS,
    FEED_FORWARD,
    NORMS,
    base_hyper_parameters,
    base_refusals,
    fixed,
    only_if,
    sliding_layers,
    square_heads,
    tied_only,
    window_hyper_parameters,
)
from targets.gguf.keyvalue import KeyValue, float32

if TYPE_CHECKING:
    from targets.base import Problem

_LAYER = "model.layers.{i}"
_NORMED_HEADS_FROM = 64
"""llama.cpp expects norms on the heads of q and k in models of so many layers, and in no other."""
_PATTERN = 4


def _hyper_parameters(config: Config, arch: str, theta: float) -> list[KeyValue]:
    return [
        *base_hyper_parameters(config, arch, default_theta=theta, layer_norm=True),
        float32(f"{arch}.logit_scale", number(config, "logit_scale")),
    ]


def _refuse(config: Config) -> list[Problem]:
    found = base_refusals(config, "silu") + fixed(config, attention_bias=False)
    return [*found, *square_heads(config), *tied_only(config)]


def _refuse_cohere(config: Config) -> list[Problem]:
    deep = positive(config, "num_hidden_layers") >= _NORMED_HEADS_FROM
    return [*_refuse(config), *fixed(config, use_qk_norm=deep)]


COHERE = Architecture(
    classes=("CohereForCausalLM",),
    gguf="command-r",
    rules=EMBEDDINGS,
    layer_rules=(
        NORMS[0],
        *ATTENTION,
        *only_if(
            lambda config: bool(config.get("use_qk_norm")),
            Rule(f"{_LAYER}.self_attn.q_norm.weight", "blk.{i}.attn_q_norm.weight", ("heads", "head"), precise=True),
            Rule(f"{_LAYER}.self_attn.k_norm.weight", "blk.{i}.attn_k_norm.weight", ("kv_heads", "head"), precise=True),
        ),
        *FEED_FORWARD,
    ),
    hyper_parameters=lambda config: _hyper_parameters(config, "command-r", 500_000.0),
    refuse=_refuse_cohere,
    defaults={
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "logit_scale": 0.0625,
        "tie_word_embeddings": True,
        "use_qk_norm": False,
    },
)


def _sliding(config: Config) -> list[bool]:
    return sliding_layers(config, config.get("sliding_window_pattern") or _PATTERN)


COHERE2 = Architecture(
    classes=("Cohere2ForCausalLM",),
    gguf="cohere2",
    rules=EMBEDDINGS,
    layer_rules=(NORMS[0], *ATTENTION, *FEED_FORWARD),
    hyper_parameters=lambda config: [
        *_hyper_parameters(config, "cohere2", 10_000.0),
        *window_hyper_parameters(config, "cohere2", _sliding(config)),
    ],
    refuse=_refuse,
    defaults={
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "logit_scale": 0.0625,
        "tie_word_embeddings": True,
        "sliding_window": 4096,
    },
)
