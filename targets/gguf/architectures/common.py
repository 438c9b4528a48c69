"""The pieces that decoder families share: rules of the Llama layout, common hyper-parameters, common refusals."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from targets.base import Problem
from targets.gguf.architectures import rope
from targets.gguf.architectures.base import Config, Rule, head_dim, is_tied, n_heads, n_kv_heads, number, positive
from targets.gguf.architectures.views import part
from targets.gguf.keyvalue import KeyValue, array, float32, uint32

if TYPE_CHECKING:
    from collections.abc import Callable


def untied(config: Config) -> bool:
    """Whether the model has an output layer of its own."""
    return not is_tied(config)


def attention_bias(config: Config) -> bool:
    """Whether the attention projections have biases."""
    return bool(config.get("attention_bias", False))


def mlp_bias(config: Config) -> bool:
    """Whether the feed-forward projections have biases."""
    return bool(config.get("mlp_bias", False))


def linear(
    source: str,
    target: str,
    shape: tuple[str, str],
    *,
    bias: bool | Callable[[Config], bool] = True,
    **transforms: Any,
) -> tuple[Rule, ...]:
    """The weight of a projection and its bias. bias: whether there is one. transforms: fields of both rules."""
    weight = Rule(f"{source}.weight", f"{target}.weight", shape, **transforms)
    if bias is False:
        return (weight,)
    when = None if bias is True else bias
    return weight, Rule(f"{source}.bias", f"{target}.bias", shape[:1], when=when, **transforms)


def layer_norm(source: str, target: str, dimension: str = "hidden", **transforms: Any) -> tuple[Rule, ...]:
    """Weight and bias of a layer norm."""
    return tuple(
        Rule(f"{source}.{part}", f"{target}.{part}", (dimension,), **transforms) for part in ("weight", "bias")
    )


EMBEDDINGS = (
    Rule("model.embed_tokens.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule("model.norm.weight", "output_norm.weight", ("hidden",)),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), when=untied),
)

TWICE = Rule("model.embed_tokens.weight", "output.weight", ("vocab", "hidden"), when=is_tied)
"""The table once more, for families whose output layer llama.cpp wants in the file even where it is the table."""

NORMS = (
    Rule("model.layers.{i}.input_layernorm.weight", "blk.{i}.attn_norm.weight", ("hidden",)),
    Rule("model.layers.{i}.post_attention_layernorm.weight", "blk.{i}.ffn_norm.weight", ("hidden",)),
)

ATTENTION = (
    Rule("model.layers.{i}.self_attn.q_proj.weight", "blk.{i}.attn_q.weight", ("q", "hidden")),
    Rule("model.layers.{i}.self_attn.k_proj.weight", "blk.{i}.attn_k.weight", ("kv", "hidden")),
    Rule("model.layers.{i}.self_attn.v_proj.weight", "blk.{i}.attn_v.weight", ("kv", "hidden")),
    Rule("model.layers.{i}.self_attn.o_proj.weight", "blk.{i}.attn_output.weight", ("hidden", "q")),
)

QKV_BIASES = (
    Rule("model.layers.{i}.self_attn.q_proj.bias", "blk.{i}.attn_q.bias", ("q",)),
    Rule("model.layers.{i}.self_attn.k_proj.bias", "blk.{i}.attn_k.bias", ("kv",)),
    Rule("model.layers.{i}.self_attn.v_proj.bias", "blk.{i}.attn_v.bias", ("kv",)),
)

OUTPUT_BIAS = Rule("model.layers.{i}.self_attn.o_proj.bias", "blk.{i}.attn_output.bias", ("hidden",))

QK_NORMS = (
    Rule("model.layers.{i}.self_attn.q_norm.weight", "blk.{i}.attn_q_norm.weight", ("head",)),
    Rule("model.layers.{i}.self_attn.k_norm.weight", "blk.{i}.attn_k_norm.weight", ("head",)),
)

FEED_FORWARD = (
    Rule("model.layers.{i}.mlp.gate_proj.weight", "blk.{i}.ffn_gate.weight", ("ffn", "hidden")),
    Rule("model.layers.{i}.mlp.up_proj.weight", "blk.{i}.ffn_up.weight", ("ffn", "hidden")),
    Rule("model.layers.{i}.mlp.down_proj.weight", "blk.{i}.ffn_down.weight", ("hidden", "ffn")),
)

FEED_FORWARD_BIASES = (
    Rule("model.layers.{i}.mlp.gate_proj.bias", "blk.{i}.ffn_gate.bias", ("ffn",)),
    Rule("model.layers.{i}.mlp.up_proj.bias", "blk.{i}.ffn_up.bias", ("ffn",)),
    Rule("model.layers.{i}.mlp.down_proj.bias", "blk.{i}.ffn_down.bias", ("hidden",)),
)


def only_if(when: Callable[[Config], bool], *rules: Rule) -> tuple[Rule, ...]:
    """The rules for the configs that have their tensors."""
    return tuple(dataclasses.replace(rule, when=when) for rule in rules)


def interleaved(*rules: Rule) -> tuple[Rule, ...]:
    """The rules with the rows of q and k in rotary pairs."""
    heads = {f"blk.{{i}}.attn_{name}.{kind}": dim for name, dim in (("q", "q"), ("k", "kv")) for kind in _KINDS}
    return tuple(dataclasses.replace(rule, interleave=heads.get(rule.target, "")) for rule in rules)


_KINDS = ("weight", "bias")


def experts(stored: str, gate: str, up: str, down: str, fused: str) -> tuple[Rule, ...]:
    """The feed-forwards of all experts, three tensors of three dimensions.

    stored: before the number of an expert, where each has matrices of its own, called gate, up and down; fused: before
    `gate_up_proj` and `down_proj`, where all lie in two tensors (transformers 5, unless it keeps a checkpoint's names).
    The family's `dims` are `expert_dims`.
    """

    def half(index: int, target: str) -> Rule:
        stacked = ("experts", "expert_gate_up", "hidden")
        return Rule(f"{fused}.gate_up_proj", target, _WIDE, stored=stacked, view=part(index, 2))

    gates, ups, downs = (f"blk.{{i}}.ffn_{name}_exps.weight" for name in ("gate", "up", "down"))
    every = f"{stored}.{{e}}."
    return (
        Rule(f"{every}{gate}.weight", gates, _WIDE, each="experts", otherwise=half(0, gates)),
        Rule(f"{every}{up}.weight", ups, _WIDE, each="experts", otherwise=half(1, ups)),
        Rule(
            f"{every}{down}.weight",
            downs,
            _NARROW,
            each="experts",
            otherwise=Rule(f"{fused}.down_proj", downs, _NARROW),
        ),
    )


_WIDE, _NARROW = ("experts", "expert_ffn", "hidden"), ("experts", "hidden", "expert_ffn")


def router(stored: str, new_name: str | None = None) -> Rule:
    """What chooses the experts; llama-quantize leaves it alone. new_name: that of transformers 5 where it differs."""
    target, shape = "blk.{i}.ffn_gate_inp.weight", ("experts", "hidden")
    otherwise = Rule(new_name, target, shape) if new_name else None
    return Rule(stored, target, shape, precise=True, otherwise=otherwise)


def expert_dims(config: Config, width: str = "moe_intermediate_size") -> dict[str, int]:
    """Dimensions of experts. width: the entry that has their feed-forward's."""
    ffn = positive(config, width)
    return {"experts": positive(config, "num_experts"), "expert_ffn": ffn, "expert_gate_up": 2 * ffn}


def expert_hyper_parameters(config: Config, arch: str) -> list[KeyValue]:
    """How many experts there are, and how many a token uses."""
    return [
        uint32(f"{arch}.expert_count", positive(config, "num_experts")),
        uint32(f"{arch}.expert_used_count", positive(config, "num_experts_per_tok")),
    ]


def base_hyper_parameters(
    config: Config, arch: str, default_theta: float = 10000.0, *, layer_norm: bool = False, rotary: bool = True
) -> list[KeyValue]:
    """Sizes, norm epsilon and rope of a decoder. layer_norm: its norms are those, not RMS; rotary: it has rope."""
    eps = (
        float32(f"{arch}.attention.layer_norm_epsilon", number(config, "layer_norm_eps"))
        if layer_norm
        else float32(f"{arch}.attention.layer_norm_rms_epsilon", number(config, "rms_norm_eps"))
    )
    entries = [
        uint32(f"{arch}.block_count", positive(config, "num_hidden_layers")),
        uint32(f"{arch}.context_length", positive(config, "max_position_embeddings")),
        uint32(f"{arch}.embedding_length", positive(config, "hidden_size")),
        uint32(f"{arch}.feed_forward_length", positive(config, "intermediate_size")),
        uint32(f"{arch}.attention.head_count", n_heads(config)),
        uint32(f"{arch}.attention.head_count_kv", n_kv_heads(config)),
        uint32(f"{arch}.attention.key_length", head_dim(config)),
        uint32(f"{arch}.attention.value_length", head_dim(config)),
        eps,
        uint32(f"{arch}.vocab_size", positive(config, "vocab_size")),
    ]
    if rotary:
        entries.append(uint32(f"{arch}.rope.dimension_count", rope.rotary_dim(config)))
        entries += rope.key_values(config, arch, default_theta)
    return entries


def capped(entries: list[KeyValue], config: Config, arch: str) -> list[KeyValue]:
    """The entries with the sliding window as the context, where llama.cpp's graph attends to the whole of it.

    Up to the window both are the same, so the window is the longest context for which the file is the model.
    """
    window = config.get("sliding_window")
    if not isinstance(window, int) or not 0 < window < positive(config, "max_position_embeddings"):
        return entries
    key = f"{arch}.context_length"
    return [uint32(key, window) if entry.key == key else entry for entry in entries]


def sliding_layers(config: Config, pattern: int, *, first_full: bool = False) -> list[bool]:
    """Which layers attend to the sliding window only; of every `pattern` layers the last attends to all."""
    if config.get("layer_types"):
        return [kind == "sliding_attention" for kind in config["layer_types"]]
    n_layers = positive(config, "num_hidden_layers")
    return [bool((layer + (0 if first_full else 1)) % pattern) for layer in range(n_layers)]


def window_hyper_parameters(config: Config, arch: str, sliding: list[bool]) -> list[KeyValue]:
    """The sliding window and the layers that have it."""
    return [
        uint32(f"{arch}.attention.sliding_window", positive(config, "sliding_window")),
        array(f"{arch}.attention.sliding_window_pattern", sliding, "BOOL"),
    ]


def base_refusals(
    config: Config, activation: str | tuple[str, ...], *more_ropes: str, partial: bool = False
) -> list[Problem]:
    """What no decoder of these families can have in llama.cpp.

    activation: what llama.cpp's graph has, the first is the family's default. more_ropes, partial: as in rope.problems
    """
    activations = (activation,) if isinstance(activation, str) else activation
    found = rope.problems(config, *more_ropes, partial=partial)
    actual = config.get("hidden_activation") or config.get("hidden_act") or activations[0]
    if actual not in activations:
        found.append(
            Problem("config.json: hidden_act", f"'{actual}' is not '{activations[0]}'", "llama.cpp computes only that")
        )
    if config.get("quantization_config"):
        quantization = config["quantization_config"]
        method = quantization.get("quant_method", "quantized") if isinstance(quantization, dict) else quantization
        found.append(
            Problem(
                "config.json: quantization_config",
                f"the weights are already {method}",
                "export the original checkpoint",
            )
        )
    if n_heads(config) % n_kv_heads(config):
        found.append(
            Problem("config.json: num_key_value_heads", "does not divide num_attention_heads", "check the config.json")
        )
    types = config.get("layer_types")
    if types and len(types) != config.get("num_hidden_layers"):
        found.append(Problem("config.json: layer_types", "has not one entry a layer", "check the config.json"))
    return found


def fixed(config: Config, **settings: object) -> list[Problem]:
    """Settings for which llama.cpp's graph of a family has one value. A null in config.json counts as False."""
    found = []
    for key, only in settings.items():
        actual = config.get(key, only)
        if actual != only and (only or actual):
            found.append(Problem(f"config.json: {key}", f"is {actual!r}", f"llama.cpp computes only {only!r}"))
    return found


def square_heads(config: Config) -> list[Problem]:
    """That the heads together are not as wide as the model, where llama.cpp's loader knows no other width."""
    if n_heads(config) * head_dim(config) == positive(config, "hidden_size"):
        return []
    what = "times num_attention_heads is not hidden_size"
    return [Problem("config.json: head_dim", what, "llama.cpp has no other width for this family")]


def tied_only(config: Config) -> list[Problem]:
    """That there is an output layer of its own, where llama.cpp takes the table for it."""
    if is_tied(config):
        return []
    fix = "llama.cpp has no output layer for this family"
    return [Problem("config.json: tie_word_embeddings", "is off", fix)]
