"""Widths that layers have of their own: read from the model's modules, and padded away where transformers loads it."""

from __future__ import annotations

from typing import Any

from exporter.compress.stack import find_forward, find_layers
from targets.widths import KV_HEADS, NEURONS, WIDTHS


def head_width(config: Any) -> int:  # noqa: ANN401 - a configuration of transformers
    """Features of a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def kv_heads(layer: Any, config: Any) -> int:  # noqa: ANN401 - a decoder layer
    """Key and value heads of a layer."""
    return int(layer.self_attn.v_proj.out_features) // head_width(config)


def query_groups(config: Any) -> int:  # noqa: ANN401
    """Query heads that read one key and value head: the same number in every layer."""
    heads = config.num_attention_heads
    return int(heads // (getattr(config, KV_HEADS, None) or heads))


def _neurons_key(config: Any) -> str:  # noqa: ANN401 - a configuration of transformers
    """What config.json calls the width of the feed-forward."""
    return NEURONS if hasattr(config, NEURONS) else "hidden_dim"  # DistilBERT's


def found_widths(model: Any) -> dict[str, list[int]]:  # noqa: ANN401 - a model of transformers
    """The layers' widths by the configuration's key; nothing of what is built otherwise."""
    layers, config = find_layers(model) or (), model.config
    forwards = [find_forward(layer) for layer in layers]
    if not forwards or None in forwards:
        return {}
    readers = [layer.get_submodule(found[1]) for layer, found in zip(layers, forwards, strict=True) if found]
    widths = {_neurons_key(config): [int(reader.in_features) for reader in readers]}
    attentions = [getattr(layer, "self_attn", None) for layer in layers]
    if hasattr(config, KV_HEADS) and all(hasattr(attention, "v_proj") for attention in attentions):
        widths[KV_HEADS] = [kv_heads(layer, config) for layer in layers]
    return widths


def said_widths(model: Any) -> dict[str, Any]:  # noqa: ANN401
    """The keys of config.json about the layers' widths that have changed: the widest, and each where they differ."""
    found, config = found_widths(model), model.config
    if not found:
        return {}
    said: dict[str, Any] = {key: max(widths) for key, widths in found.items() if max(widths) != getattr(config, key)}
    if KV_HEADS in said:
        said["num_attention_heads"] = said[KV_HEADS] * query_groups(config)
        said["head_dim"] = head_width(config)
    uneven = {key: widths for key, widths in found.items() if len(set(widths)) > 1}
    return {**said, WIDTHS: uneven or None} if uneven or getattr(config, WIDTHS, None) else said
