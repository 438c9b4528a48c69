"""Granite 4: layers of Mamba 2 and a few of attention, mostly without rope, with or without experts."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from targets.base import Problem
from targets.gguf.architectures.base import Architecture, Config, Rule, n_kv_heads, positive, renamed
from targets.gguf.architectures.common import EMBEDDINGS, NORMS, expert_dims, expert_hyper_parameters, fixed, only_if
from targets.gguf.architectures.granite import (
    BIASED_ATTENTION,
    EXPERTS,
    GRANITE,
    SHARED_EXPERT,
    granite_hyper_parameters,
    halves,
)
from targets.gguf.architectures.granite import DEFAULTS as GRANITE_DEFAULTS
from targets.gguf.architectures.granite import refuse as refuse_granite
from targets.gguf.architectures.recurrent import Mamba2, mamba2_rules
from targets.gguf.keyvalue import KeyValue, array, boolean, uint32

if TYPE_CHECKING:
    from collections.abc import Callable

_LAYER = "model.layers.{i}"
_SHARED = f"{_LAYER}.shared_mlp"
_RECURRENT = ("mamba", "linear_attention")
"""What the hub and transformers 5 call the layers with a state."""


def _is_recurrent(config: Config, layer: int) -> bool:
    return config["layer_types"][layer] in _RECURRENT


def _is_attention(config: Config, layer: int) -> bool:
    return not _is_recurrent(config, layer)


def _has_experts(config: Config) -> bool:
    return bool(config.get("num_local_experts"))


def _is_dense(config: Config) -> bool:
    return not _has_experts(config)


def _read(config: Config) -> Config:
    """A model without experts has the shared feed-forward alone, which is then its only one."""
    found = renamed(config, {"num_experts": "num_local_experts"})
    if not found.get("layer_types"):
        found["layer_types"] = ["mamba"] * positive(found, "num_hidden_layers")
    if _is_dense(found):
        found = {**found, "intermediate_size": positive(found, "shared_intermediate_size")}
    return found


def _mixer(config: Config) -> Mamba2:
    return Mamba2(
        inner=positive(config, "mamba_expand") * positive(config, "hidden_size"),
        heads=positive(config, "mamba_n_heads"),
        state=positive(config, "mamba_d_state"),
        groups=positive(config, "mamba_n_groups"),
        conv=positive(config, "mamba_d_conv"),
    )


def _dims(config: Config) -> dict[str, int]:
    shared = positive(config, "shared_intermediate_size")
    moe = expert_dims(config, "intermediate_size") if _has_experts(config) else {"experts": 0}
    return {**_mixer(config).dims, **moe, "shared_ffn": shared, "shared_gate_up": 2 * shared}


def _hyper_parameters(config: Config) -> list[KeyValue]:
    arch = "granitehybrid"
    heads = [0 if kind in _RECURRENT else n_kv_heads(config) for kind in config["layer_types"]]
    key = f"{arch}.attention.head_count_kv"
    entries = [
        *(array(key, heads, "INT32") if one.key == key else one for one in granite_hyper_parameters(config, arch)),
        *_mixer(config).hyper_parameters(arch),
        _rope_switch(config, arch),
    ]
    if _has_experts(config):
        shared = positive(config, "shared_intermediate_size")
        entries += expert_hyper_parameters(config, arch)
        entries.append(uint32(f"{arch}.expert_shared_feed_forward_length", shared))
    return entries


def _refuse(config: Config) -> list[Problem]:
    found = refuse_granite(config)
    found += fixed(config, mamba_expand=2, mamba_conv_bias=True, mamba_proj_bias=False)
    if config.get("position_embedding_type") not in (None, "nope", "rope"):
        what = f"is {config['position_embedding_type']!r}"
        found.append(Problem("config.json: position_embedding_type", what, "known here: rope, nope"))
    if _has_experts(config) and not any(kind in _RECURRENT for kind in config["layer_types"]):
        what = "has no layer with a state"
        found.append(Problem("config.json: layer_types", what, "llama.cpp needs one beside experts in this family"))
    return found


def _in(which: Callable[[Config, int], bool], *rules: Rule) -> tuple[Rule, ...]:
    """The rules for the layers that have their tensors."""
    return tuple(dataclasses.replace(rule, layers=which) for rule in rules)


_ONLY_FEED_FORWARD = (
    *halves(
        f"{_SHARED}.input_linear.weight",
        ("blk.{i}.ffn_gate.weight", "blk.{i}.ffn_up.weight"),
        ("shared_ffn", "hidden"),
        ("shared_gate_up", "hidden"),
    ),
    Rule(f"{_SHARED}.output_linear.weight", "blk.{i}.ffn_down.weight", ("hidden", "shared_ffn")),
)


def _rope_switch(config: Config, arch: str) -> KeyValue:
    """What llama.cpp reads as a switch for rope in these families."""
    return boolean(f"{arch}.rope.scaling.finetuned", config.get("position_embedding_type") == "rope")


def _without_state(config: Config) -> Architecture | None:
    """A model whose layers all attend becomes the older Granite: llama.cpp's hybrid needs a layer with a state."""
    if any(kind in _RECURRENT for kind in config["layer_types"]) or _has_experts(config):
        return None
    return dataclasses.replace(
        GRANITE,
        layer_rules=(*NORMS, *BIASED_ATTENTION, *_ONLY_FEED_FORWARD),
        hyper_parameters=lambda config: [
            *granite_hyper_parameters(config, "granite"),
            _rope_switch(config, "granite"),
        ],
        refuse=_refuse,
        dims=_dims,
    )


GRANITE_HYBRID = Architecture(
    classes=("GraniteMoeHybridForCausalLM",),
    gguf="granitehybrid",
    rules=EMBEDDINGS,
    layer_rules=(
        *NORMS,
        *_in(_is_attention, *BIASED_ATTENTION),
        *mamba2_rules(f"{_LAYER}.mamba", layers=_is_recurrent),
        *only_if(_has_experts, *EXPERTS, *SHARED_EXPERT),
        *only_if(_is_dense, *_ONLY_FEED_FORWARD),
    ),
    hyper_parameters=_hyper_parameters,
    refuse=_refuse,
    read=_read,
    instead=_without_state,
    dims=_dims,
    defaults={
        **GRANITE_DEFAULTS,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 1024,
        "mamba_n_heads": 128,
        "mamba_n_groups": 1,
        "mamba_d_state": 256,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
    },
)
