"""Gemma 1, 2 and 3, of the last the text model inside multimodal checkpoints too: norms are stored minus one."""

from __future__ import annotations

import dataclasses

from targets.base import Problem
from targets.gguf.architectures import rope
from targets.gguf.architectures.base import Architecture, Config, Rule, head_dim, n_heads, number, positive
from targets.gguf.architectures.common import (
    ATTENTION,
    EMBEDDINGS,
    FEED_FORWARD,
    NORMS,
    QK_NORMS,
    attention_bias,
    base_hyper_parameters,
    base_refusals,
    fixed,
    sliding_layers,
    tied_only,
    window_hyper_parameters,
)
from targets.gguf.keyvalue import KeyValue, array, float32, uint32

_PATTERN = 6
"""llama.cpp takes every sixth layer as one of full attention unless told otherwise."""

_FOUR_NORMS = (
    Rule("model.layers.{i}.input_layernorm.weight", "blk.{i}.attn_norm.weight", ("hidden",)),
    Rule("model.layers.{i}.post_attention_layernorm.weight", "blk.{i}.post_attention_norm.weight", ("hidden",)),
    Rule("model.layers.{i}.pre_feedforward_layernorm.weight", "blk.{i}.ffn_norm.weight", ("hidden",)),
    Rule("model.layers.{i}.post_feedforward_layernorm.weight", "blk.{i}.post_ffw_norm.weight", ("hidden",)),
)


def _shift_norms(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """Gemma multiplies by (1 + weight), llama.cpp by the weight."""
    return tuple(dataclasses.replace(rule, plus=1.0) if rule.source.endswith("norm.weight") else rule for rule in rules)


def _sliding_layers(config: Config) -> list[bool]:
    """Which layers attend to the sliding window only."""
    return sliding_layers(config, config.get("sliding_window_pattern") or _PATTERN)


def _hyper_parameters(config: Config) -> list[KeyValue]:
    entries = base_hyper_parameters(config, "gemma3", default_theta=1_000_000.0)
    local = rope.parameters(config, "sliding_attention", default_theta=10_000.0)
    entries.append(float32("gemma3.rope.freq_base_swa", local["rope_theta"]))
    sliding = _sliding_layers(config)
    if any(sliding):
        entries.append(uint32("gemma3.attention.sliding_window", positive(config, "sliding_window")))
        if sliding != [bool((layer + 1) % _PATTERN) for layer in range(len(sliding))]:
            entries.append(array("gemma3.attention.sliding_window_pattern", sliding, "BOOL"))
    if config.get("final_logit_softcapping"):
        entries.append(float32("gemma3.final_logit_softcapping", config["final_logit_softcapping"]))
    return entries


def _refuse(config: Config) -> list[Problem]:
    found = base_refusals(config, "gelu_pytorch_tanh")
    # llama.cpp knows Gemma 3 27B by its 62 layers and scales its queries by hidden / heads, others by the head width
    wide = positive(config, "num_hidden_layers") == 62
    expected = positive(config, "hidden_size") // n_heads(config) if wide else head_dim(config)
    scalar = config.get("query_pre_attn_scalar", expected)
    if scalar != expected:
        what = f"is {scalar}, llama.cpp computes with {expected}"
        found.append(Problem("config.json: query_pre_attn_scalar", what, "this variant cannot be expressed"))
    if config.get("attn_logit_softcapping"):
        found.append(Problem("config.json: attn_logit_softcapping", "is set", "llama.cpp has none for Gemma 3"))
    if attention_bias(config):
        found.append(Problem("config.json: attention_bias", "is on", "llama.cpp has no attention biases for Gemma 3"))
    if config.get("use_bidirectional_attention"):
        found.append(Problem("config.json: use_bidirectional_attention", "is on", "only the causal model is exported"))
    return found


GEMMA3 = Architecture(
    classes=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    gguf="gemma3",
    rules=_shift_norms(EMBEDDINGS),
    layer_rules=_shift_norms((*_FOUR_NORMS, *ATTENTION, *QK_NORMS, *FEED_FORWARD)),
    hyper_parameters=_hyper_parameters,
    refuse=_refuse,
    # the multimodal checkpoints' text_config names only what differs from these
    defaults={
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "query_pre_attn_scalar": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
    prefixes=("model.language_model. -> model.", "language_model.model. -> model.", "language_model. -> "),
    ignore=(
        r".*rotary_emb\.inv_freq",
        r"(model\.)?vision_tower\..*",
        r"(model\.)?multi_modal_projector\..*",
    ),
)

_COMMON = {
    "vocab_size": 256000,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def _refuse_gemma(config: Config) -> list[Problem]:
    """As transformers reads it, "gelu" of the oldest checkpoints is the approximation by tanh."""
    found = base_refusals(config, ("gelu_pytorch_tanh", "gelu"))
    return [*found, *fixed(config, attention_bias=False, use_bidirectional_attention=False), *tied_only(config)]


GEMMA = Architecture(
    classes=("GemmaForCausalLM",),
    gguf="gemma",
    rules=_shift_norms(EMBEDDINGS),
    layer_rules=_shift_norms((*NORMS, *ATTENTION, *FEED_FORWARD)),
    hyper_parameters=lambda config: base_hyper_parameters(config, "gemma"),
    refuse=_refuse_gemma,
    defaults=_COMMON,
)

_GEMMA2_PATTERN = 2
_GEMMA2_27B_LAYERS = 46


def _gemma2_hyper_parameters(config: Config) -> list[KeyValue]:
    return [
        *base_hyper_parameters(config, "gemma2"),
        *window_hyper_parameters(config, "gemma2", sliding_layers(config, _GEMMA2_PATTERN)),
        float32("gemma2.attn_logit_softcapping", number(config, "attn_logit_softcapping")),
        float32("gemma2.final_logit_softcapping", number(config, "final_logit_softcapping")),
    ]


def _refuse_gemma2(config: Config) -> list[Problem]:
    found = _refuse_gemma(config)
    # llama.cpp knows Gemma 2 27B by its 46 layers and scales its queries by hidden / heads, others by the head width
    wide = positive(config, "num_hidden_layers") == _GEMMA2_27B_LAYERS
    expected = positive(config, "hidden_size") // n_heads(config) if wide else head_dim(config)
    found += fixed(config, query_pre_attn_scalar=expected)
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "sliding_window"):
        if not config.get(key):
            found.append(Problem(f"config.json: {key}", "is off", "llama.cpp has it in every model of this family"))
    return found


GEMMA2 = Architecture(
    classes=("Gemma2ForCausalLM",),
    gguf="gemma2",
    rules=_shift_norms(EMBEDDINGS),
    layer_rules=_shift_norms((*_FOUR_NORMS, *ATTENTION, *FEED_FORWARD)),
    hyper_parameters=_gemma2_hyper_parameters,
    refuse=_refuse_gemma2,
    defaults={
        **_COMMON,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
)
