"""Gemma 3, the text model (also inside the multimodal checkpoints): four norms a layer, stored minus one."""

from __future__ import annotations

import dataclasses

from targets.base import Problem
from targets.gguf.architectures import rope
from targets.gguf.architectures.base import Architecture, Config, Rule, head_dim, n_heads, positive
from targets.gguf.architectures.common import (
    ATTENTION,
    EMBEDDINGS,
    FEED_FORWARD,
    QK_NORMS,
    attention_bias,
    base_hyper_parameters,
    base_refusals,
)
from targets.gguf.keyvalue import KeyValue, array, float32, uint32

_PATTERN = 6
"""llama.cpp takes every sixth layer as one of full attention unless told otherwise."""

_NORMS = (
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
    n_layers = positive(config, "num_hidden_layers")
    if config.get("layer_types"):
        return [kind == "sliding_attention" for kind in config["layer_types"]]
    pattern = config.get("sliding_window_pattern") or _PATTERN
    return [bool((layer + 1) % pattern) for layer in range(n_layers)]


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
    if len(_sliding_layers(config)) != config["num_hidden_layers"]:
        found.append(Problem("config.json: layer_types", "has not one entry a layer", "check the config.json"))
    return found


GEMMA3 = Architecture(
    classes=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    gguf="gemma3",
    rules=_shift_norms(EMBEDDINGS),
    layer_rules=_shift_norms((*_NORMS, *ATTENTION, *QK_NORMS, *FEED_FORWARD)),
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
