"""Layers of different widths: `packlight_widths` in config.json, of weights that are padded with zeros to one width.

transformers has one width for all layers, so every layer's matrices lie in the file as large as the widest one's, and
`packlight_widths` says how much of each is real:

    "packlight_widths": {"intermediate_size": [1536, 1280, …], "num_key_value_heads": [3, 2, …]}

one number a layer, either key or both; every key and value head has as many query heads as in the whole model. What is
padded adds nothing to what a layer gives, and stays zero where the model is trained further: its gradients are zero.
Every target sees the matrices without their padding.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import TYPE_CHECKING, Any

from runtime.errors import ModelError
from targets.base import Problem
from targets.weights import FLOAT_BYTES, WeightReader, row_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from targets.facts import TensorFact

    Config = dict[str, Any]
    Widths = Mapping[str, list[int]]
    """Of every layer, by the configuration's key."""

WIDTHS = "packlight_widths"
NEURONS, KV_HEADS = "intermediate_size", "num_key_value_heads"
_AGAIN = "take the config.json that belongs to these weights"
_LAYER = re.compile(r".*\blayers\.(\d+)\.(mlp|self_attn)\.(\w+)_proj\.(weight|bias)")
_MAKERS = {"gate": NEURONS, "up": NEURONS, "q": KV_HEADS, "k": KV_HEADS, "v": KV_HEADS}
"""Matrices whose rows belong to units; `_READERS` are those whose columns do."""
_READERS = {"down": NEURONS, "o": KV_HEADS}
_SILENT = ("gate", "v")
"""Matrices whose zero rows alone make a unit that adds nothing, whatever stands in the others."""
_CHECKED = 1 << 22
"""Weights that are looked at together."""


def is_uneven(config: Config, key: str | None = None) -> bool:
    """Whether the layers have widths of their own; key: in that respect."""
    said = config.get(WIDTHS) or {}
    return bool(said) if key is None else key in said


def layer_widths(config: Config, key: str) -> list[int]:
    """The width of every layer: the model's own where nothing else is said. Raises ModelError for nonsense."""
    widest = config.get(key) or config.get("num_attention_heads" if key == KV_HEADS else key)
    n_layers = config.get("num_hidden_layers")
    if not isinstance(widest, int) or not isinstance(n_layers, int):
        raise ModelError(f"config.json: '{key}' or 'num_hidden_layers' is no number; {_AGAIN}")
    said = config.get(WIDTHS)
    if said is None:
        return [widest] * n_layers
    if not isinstance(said, dict) or not set(said) <= {NEURONS, KV_HEADS}:
        raise ModelError(f"config.json: '{WIDTHS}' is not an object of {NEURONS} and {KV_HEADS}; {_AGAIN}")
    found = said.get(key, [widest] * n_layers)
    if (
        not isinstance(found, list)
        or len(found) != n_layers
        or not all(type(one) is int and one > 0 for one in found)
        or max(found) != widest
    ):
        what = f"is not {n_layers} whole numbers up to {widest}, the model's own, one a layer"
        raise ModelError(f"config.json: '{WIDTHS}.{key}' {what}; {_AGAIN}")
    return found


def narrowed(config: Config, tensors: dict[str, TensorFact]) -> dict[str, TensorFact]:
    """The tensors without what they are padded with. Raises ModelError where the configuration makes no sense."""
    if not is_uneven(config):
        return tensors
    widths = {key: layer_widths(config, key) for key in (NEURONS, KV_HEADS)}
    return {name: _narrow(fact, widths) for name, fact in tensors.items()}


def padded_shape(name: str, shape: tuple[int, ...], widths: Widths) -> tuple[int, ...]:
    """The shape that a tensor of a layer with its own width lies in the file with."""
    return _resized(name, shape, widths, lambda own, widest: (own, widest))


def _narrow(fact: TensorFact, widths: Widths) -> TensorFact:
    shape = _resized(fact.name, fact.shape, widths, lambda own, widest: (widest, own))
    if shape == fact.shape:
        return fact
    n_bytes = fact.n_bytes // fact.n_elements * math.prod(shape)
    return dataclasses.replace(fact, shape=shape, n_bytes=n_bytes, stored=fact)


def _resized(
    name: str, shape: tuple[int, ...], widths: Widths, change: Callable[[int, int], tuple[int, int]]
) -> tuple[int, ...]:
    """The shape with one dimension in another proportion. change: (own width, widest) -> (from, to)."""
    match = _LAYER.fullmatch(name)
    key = (_MAKERS | _READERS).get(match[3]) if match else None
    if match is None or key is None or key not in widths or (match[3] in _READERS and match[4] == "bias"):
        return shape
    layer, axis = int(match[1]), 1 if match[3] in _READERS else 0
    if layer >= len(widths[key]) or axis >= len(shape):
        return shape
    before, after = change(widths[key][layer], max(widths[key]))
    if shape[axis] % before:
        return shape  # it is refused later
    return (*shape[:axis], shape[axis] // before * after, *shape[axis + 1 :])


def problems(tensors: Mapping[str, TensorFact]) -> list[Problem]:
    """Padding that is not zero: without it the model would be another."""
    with WeightReader() as reader:
        return [
            Problem(name, f"is not zero where config.json's {WIDTHS} says that nothing is", _AGAIN)
            for name, fact in tensors.items()
            if fact.stored is not None and _is_silent(name) and any(_beyond(fact, fact.stored, reader))
        ]


def _is_silent(name: str) -> bool:
    match = _LAYER.fullmatch(name)
    return match is not None and match[3] in _SILENT


def _beyond(fact: TensorFact, stored: TensorFact, reader: WeightReader) -> Iterator[bool]:
    """Of pieces of the rows that are cut off whether one holds something else than zeros."""
    if stored.dtype not in FLOAT_BYTES:
        return
    first, columns = fact.shape[0], stored.shape[-1] if len(stored.shape) > 1 else 1
    if len(stored.shape) == 1:  # read as one row
        yield bool(reader.read_rows(stored, 0, 1)[0, first:].any())
        return
    for start, stop in row_chunks(stored.shape[0] - first, columns, _CHECKED):
        yield bool(reader.read_rows(stored, first + start, first + stop).any())
