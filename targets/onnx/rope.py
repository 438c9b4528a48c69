"""Rotary position tables, cosines and sines, as transformers computes them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from targets.base import Problem
from targets.gguf.architectures import rope as settings
from targets.gguf.architectures.base import head_dim

if TYPE_CHECKING:
    import numpy.typing as npt

    Config = dict[str, Any]

KNOWN = ("default", "linear", "llama3", "yarn")
SLIDING, FULL = "sliding_attention", "full_attention"


def problems(config: Config) -> list[Problem]:
    """Rope settings that no fixed table can hold, or that miss their numbers."""
    found = []
    for attention in (FULL, SLIDING):
        rope = settings.parameters(config, attention)
        kind = rope["rope_type"]
        if kind not in KNOWN:
            found.append(
                Problem("config.json: rope_type", f"'{kind}' is not supported", f"known here: {', '.join(KNOWN)}")
            )
        elif kind != "default" and rope.get("factor") is None:
            found.append(Problem("config.json: rope_parameters", f"'{kind}' has no factor", "complete the config.json"))
        elif kind == "yarn" and (rope.get("mscale") or rope.get("mscale_all_dim")):
            found.append(Problem("config.json: mscale", "is set", "this variant of YaRN is not supported"))
        partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
        if float(partial or 1.0) != 1.0:
            found.append(
                Problem("config.json: partial_rotary_factor", "is not 1", "this family cannot rotate a part of a head")
            )
    return found


def tables(config: Config, positions: int, attention: str = FULL, default_theta: float = 10000.0) -> tuple[
    npt.NDArray[np.float32], npt.NDArray[np.float32]
]:  # fmt: skip
    """Cosines and sines, each of shape (positions, head width / 2), in the single precision of transformers."""
    rope = settings.parameters(config, attention, default_theta)
    frequencies, factor = _frequencies(config, rope)
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies.astype(np.float32)[None, :]
    return np.cos(angles) * np.float32(factor), np.sin(angles) * np.float32(factor)


def _frequencies(config: Config, rope: dict[str, Any]) -> tuple[npt.NDArray[np.float64], float]:
    """Radians a position for each pair of a head, and what cosines and sines are multiplied by."""
    width = head_dim(config)
    plain = 1.0 / float(rope["rope_theta"]) ** (np.arange(0, width, 2, dtype=np.float64) / width)
    if rope["rope_type"] == "linear":
        return plain / float(rope["factor"]), 1.0
    if rope["rope_type"] == "llama3":
        divisors = settings.llama3_factors(config)[0].values
        return plain / np.asarray(divisors, np.float64), 1.0
    if rope["rope_type"] == "yarn":
        return _yarn(config, rope, plain)
    return plain, 1.0


def _yarn(
    config: Config, rope: dict[str, Any], plain: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], float]:
    """YaRN (https://arxiv.org/abs/2309.00071): low frequencies are stretched, high ones kept, those between blended."""
    width, factor, theta = 2 * len(plain), float(rope["factor"]), float(rope["rope_theta"])
    trained = rope.get("original_max_position_embeddings") or config["max_position_embeddings"]

    def pair_with(turns: float) -> float:
        """The pair, as a real number, that turns so often over the trained context."""
        return width * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_with(float(rope.get("beta_fast") or 32)), pair_with(float(rope.get("beta_slow") or 1))
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = np.clip((np.arange(len(plain)) - low) / max(high - low, 0.001), 0.0, 1.0)
    own = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    given = rope.get("attention_factor")
    return plain / factor * ramp + plain * (1.0 - ramp), float(own if given is None else given)
