"""Rotary position settings of a config.json, in the two ways transformers has written them, as GGUF key/values.

transformers 5 writes `rope_parameters` (one dictionary, or one for each attention type); before that there were
`rope_theta`, `rope_scaling` and Gemma's `rope_local_base_freq`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from targets.base import Problem
from targets.gguf.architectures.base import Config, OutTensor, head_dim
from targets.gguf.keyvalue import KeyValue, float32, string, uint32

if TYPE_CHECKING:
    from collections.abc import Mapping


def parameters(config: Config, attention: str = "full_attention", default_theta: float = 10000.0) -> dict[str, Any]:
    """rope_type, rope_theta and the scaling's own numbers, for one attention type."""
    nested: Mapping[str, Any] = config.get("rope_parameters") or {}
    flat = nested if attention == "full_attention" else {}
    chosen = nested.get(attention) or flat
    found = {key: value for key, value in chosen.items() if not isinstance(value, dict)}
    if not found and attention == "full_attention":
        found = dict(config.get("rope_scaling") or {})
    if "type" in found:
        found.setdefault("rope_type", found.pop("type"))
    old_theta = config.get("rope_theta" if attention == "full_attention" else "rope_local_base_freq")
    found.setdefault("rope_theta", old_theta if old_theta is not None else default_theta)
    found.setdefault("rope_type", "default")
    return found


def key_values(config: Config, arch: str, default_theta: float = 10000.0) -> list[KeyValue]:
    """rope.freq_base and rope.scaling.* of the full attention."""
    rope = parameters(config, default_theta=default_theta)
    entries = [float32(f"{arch}.rope.freq_base", rope["rope_theta"])]
    if rope["rope_type"] in {"linear", "yarn"}:
        entries += [
            string(f"{arch}.rope.scaling.type", rope["rope_type"]),
            float32(f"{arch}.rope.scaling.factor", rope["factor"]),
        ]
    if rope["rope_type"] == "yarn":
        trained = rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
        entries.append(uint32(f"{arch}.rope.scaling.original_context_length", trained))
        optional = {"beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
        entries += [
            float32(f"{arch}.rope.scaling.{name}", rope[key])
            for key, name in optional.items()
            if rope.get(key) is not None
        ]
        if rope.get("attention_factor") is not None:
            # transformers takes it instead of YaRN's own factor, llama.cpp multiplies that by it
            own = 1.0 + 0.1 * math.log(rope["factor"])
            entries.append(float32(f"{arch}.rope.scaling.attn_factor", rope["attention_factor"] / own))
    return entries


def rotary_dim(config: Config) -> int:
    """How many values of a head are rotated; the others stay as they are."""
    share = parameters(config).get("partial_rotary_factor", config.get("partial_rotary_factor"))
    return head_dim(config) if share is None else int(head_dim(config) * float(share))


def problems(config: Config, *more: str, partial: bool = False) -> list[Problem]:
    """Scaling methods that a graph in llama.cpp cannot express, or that miss their numbers.

    more: types that this family has beside those of all. partial: its graph can rotate a part of a head.
    """
    known = ("default", "linear", "yarn", *more)
    rope, local = parameters(config), parameters(config, "sliding_attention")
    kind = rope["rope_type"]
    if kind not in known:
        return [Problem("config.json: rope_type", f"'{kind}' is not supported", f"known here: {', '.join(known)}")]
    if local["rope_type"] != "default":
        what = f"'{local['rope_type']}' is not supported for the sliding layers"
        return [Problem("config.json: rope_parameters", what, "llama.cpp scales only those of full attention")]
    if kind == "yarn" and (rope.get("mscale") or rope.get("mscale_all_dim")):
        return [Problem("config.json: mscale", "is set", "llama.cpp has it for DeepSeek only")]
    if kind not in ("default", "longrope") and rope.get("factor") is None:
        return [Problem("config.json: rope_parameters", f"'{kind}' has no factor", "complete the config.json")]
    if not partial and rotary_dim(config) != head_dim(config):
        return [Problem("config.json: partial_rotary_factor", "is not 1", "this family cannot rotate a part of a head")]
    return []


def llama3_factors(config: Config) -> list[OutTensor]:
    """The `rope_freqs.weight` tensor of Llama 3.1's frequency scaling; empty for any other rope type.

    Low frequencies (wavelength beyond the original context / low_freq_factor) are divided by `factor`, high ones are
    kept, those between are blended. Source: Llama 3.1's reference code, as described in transformers' rope utilities.
    """
    rope = parameters(config)
    if rope["rope_type"] != "llama3":
        return []
    width = head_dim(config)
    frequencies = 1.0 / rope["rope_theta"] ** (np.arange(0, width, 2, dtype=np.float64) / width)
    wavelengths = 2 * math.pi / frequencies
    low, high = rope.get("low_freq_factor", 1.0), rope.get("high_freq_factor", 4.0)
    turns = rope.get("original_max_position_embeddings", 8192) / wavelengths
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    factors = 1.0 / ((1.0 - smooth) / rope["factor"] + smooth)
    values = factors.astype(np.float32)
    return [OutTensor("rope_freqs.weight", values.shape, None, values=values)]
