"""Layers of different widths in GGUF: llama.cpp computes them for the Llama graph alone, under the name of DeciLM.

Its loader takes head_count, head_count_kv and feed_forward_length as arrays of one number a layer
(src/models/deci.cpp of llama.cpp); the graph is Llama's own.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from targets.base import Problem
from targets.gguf.architectures.base import layer_configs, n_heads, n_kv_heads
from targets.gguf.keyvalue import array
from targets.widths import NEURONS, WIDTHS, is_uneven

if TYPE_CHECKING:
    from targets.gguf.architectures.base import Architecture, Config
    from targets.gguf.keyvalue import KeyValue


def fitting(architecture: Architecture, config: Config) -> Architecture:
    """The architecture that this configuration has in GGUF: another one where its layers have widths of their own."""
    if not is_uneven(config) or not architecture.uneven:
        return architecture

    def hyper_parameters(config: Config) -> list[KeyValue]:
        layers = layer_configs(config)
        by_layer = {
            "feed_forward_length": [layer[NEURONS] for layer in layers],
            "attention.head_count": [n_heads(layer) for layer in layers],
            "attention.head_count_kv": [n_kv_heads(layer) for layer in layers],
        }
        found = []
        for entry in architecture.hyper_parameters(config):
            key = entry.key.removeprefix(f"{architecture.gguf}.")
            name = f"{architecture.uneven}.{key}"
            found.append(
                array(name, by_layer[key], "INT32") if key in by_layer else dataclasses.replace(entry, key=name)
            )
        return found

    return dataclasses.replace(architecture, gguf=architecture.uneven, hyper_parameters=hyper_parameters)


def refusal(architecture: Architecture) -> str:
    """Why layers cannot have widths of their own; empty where they can."""
    return "" if architecture.uneven else f"llama.cpp has one width for all layers of '{architecture.gguf}'"


def refusals(architecture: Architecture, config: Config) -> list[Problem]:
    """Widths a layer of a model for which llama.cpp has one width."""
    what = refusal(architecture)
    if not what or not is_uneven(config):
        return []
    return [Problem(f"config.json: {WIDTHS}", what, "compress the original model with 'widths: even', or use onnx")]
