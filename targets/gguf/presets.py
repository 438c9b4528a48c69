"""Which type each tensor gets: the presets of llama-quantize, as tables.

Same preset, same types, as llama.cpp's `llama_tensor_get_type` (src/llama-quant.cpp) chooses without an importance
matrix. A rule is looked up by the tensor's role; what no rule names gets the preset's base type; a row that does not
divide into the type's blocks falls back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from targets.gguf.types import TYPES, GgmlType

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class ModelShape:
    """What the rules ask of a model: layers, query heads per KV head, and whether output is the embedding table."""

    n_layers: int
    n_gqa: int
    tied: bool
    is_70b: bool = False


def _more_bits(i: int, n: int) -> bool:
    """The first and last eighth of the layers and every third between get more bits."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _always(name: str) -> Callable[[int, ModelShape], str | None]:
    return lambda _i, _shape: name


def _where_more_bits(name: str) -> Callable[[int, ModelShape], str | None]:
    return lambda i, shape: name if _more_bits(i, shape.n_layers) else None


def _first(count: int, name: str, otherwise: str | None = None) -> Callable[[int, ModelShape], str | None]:
    return lambda i, _shape: name if i < count else otherwise


def _first_part(part: int, name: str, otherwise: str | None = None) -> Callable[[int, ModelShape], str | None]:
    """The first 1/part of the layers."""
    return lambda i, shape: name if i < shape.n_layers // part else otherwise


def _if_grouped(name: str, otherwise: str | None = None) -> Callable[[int, ModelShape], str | None]:
    """Models in which at least four query heads share a KV head: their attn_v is small and worth more bits."""
    return lambda _i, shape: name if shape.n_gqa >= 4 else otherwise


@dataclass(frozen=True)
class Preset:
    """A named mixture: llama.cpp's file type id, the base type, and rules by role."""

    name: str
    file_type: int
    base: str
    help: str
    rules: dict[str, Callable[[int, ModelShape], str | None]] = field(default_factory=dict)


_ALL = (
    Preset("f32", 0, "F32", "no quantization"),
    Preset("f16", 1, "F16", "half precision"),
    Preset("bf16", 32, "BF16", "bfloat16: as most models are trained"),
    Preset("q8_0", 7, "Q8_0", "8 bits, blocks of 32: close to lossless"),
    Preset("q6_k", 18, "Q6_K", "6 bits"),
    Preset("q5_k_m", 17, "Q5_K", "5 bits, sensitive tensors at 6",
           {"attn_v": _where_more_bits("Q6_K"), "ffn_down": _where_more_bits("Q6_K")}),
    Preset("q5_k_s", 16, "Q5_K", "5 bits"),
    Preset("q5_1", 9, "Q5_1", "5 bits, blocks of 32 with a minimum"),
    Preset("q5_0", 8, "Q5_0", "5 bits, blocks of 32"),
    Preset("q4_k_m", 15, "Q4_K", "4 bits, sensitive tensors at 6: the usual choice",
           {"attn_v": _where_more_bits("Q6_K"), "ffn_down": _where_more_bits("Q6_K")}),
    Preset("q4_k_s", 14, "Q4_K", "4 bits, the first layers at 5",
           {"attn_v": _first(4, "Q5_K"), "ffn_down": _first_part(8, "Q5_K")}),
    Preset("q4_1", 3, "Q4_1", "4 bits, blocks of 32 with a minimum"),
    Preset("q4_0", 2, "Q4_0", "4 bits, blocks of 32: fastest on Arm"),
    Preset("iq4_nl", 25, "IQ4_NL", "4 bits, non-linear levels, blocks of 32",
           {"attn_v": _if_grouped("Q5_K"), "ffn_down": _first_part(8, "Q5_K")}),
    Preset("iq4_xs", 30, "IQ4_XS", "4.25 bits, non-linear levels",
           {"attn_v": _if_grouped("Q5_K"), "ffn_down": _first_part(8, "Q5_K")}),
    Preset("q3_k_l", 13, "Q3_K", "3 bits, attention output and ffn_down at 5",
           {"attn_v": _always("Q5_K"), "ffn_down": _always("Q5_K"), "attn_output": _always("Q5_K")}),
    Preset("q3_k_m", 12, "Q3_K", "3 bits, sensitive tensors at 4 and 5",
           {"attn_v": _first(2, "Q5_K", "Q4_K"), "ffn_down": _first_part(16, "Q5_K", "Q4_K"),
            "attn_output": _always("Q4_K")}),
    Preset("q3_k_s", 11, "Q3_K", "3 bits"),
    Preset("q2_k", 10, "Q2_K", "2 bits, sensitive tensors at 3 and 4: a large loss",
           {"attn_v": _if_grouped("Q4_K", "Q3_K"), "ffn_down": _always("Q3_K"), "attn_output": _always("Q3_K")}),
    Preset("tq2_0", 37, "TQ2_0", "ternary, 2.06 bits: for models trained to it", {"token_embd": _always("Q4_K")}),
    Preset("tq1_0", 36, "TQ1_0", "ternary, 1.69 bits: smaller than tq2_0, and slower", {"token_embd": _always("Q4_K")}),
)  # fmt: skip

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}

ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}
"""Short names that llama-quantize takes too."""

_FALLBACK = {
    "IQ4_XS": "IQ4_NL", "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
    "TQ1_0": "Q4_0", "TQ2_0": "Q4_0",
}  # fmt: skip

_ROLES = ("attn_qkv.weight", "attn_v.weight", "attn_output.weight", "ffn_down")


def role_of(name: str) -> str:
    """The role that rules are looked up by: output, token_embd, attn_v, attn_output, ffn_down, or ""."""
    if name in {"output.weight", "token_embd.weight"}:
        return name.removesuffix(".weight")
    for role in _ROLES:
        if role in name:
            # a fused q/k/v tensor is treated as the attn_v that it holds
            return "attn_v" if role.startswith("attn_qkv") else role.removesuffix(".weight")
    return ""


def quantizable(name: str, shape: tuple[int, ...]) -> bool:
    """Whether llama-quantize would quantize this tensor at all: a matrix of weights that is not a norm or a router."""
    return (
        len(shape) >= 2
        and name.endswith("weight")
        and not name.endswith("_norm.weight")
        and not name.endswith("ffn_gate_inp.weight")
    )


def fallback(kind: GgmlType, row: int) -> GgmlType:
    """`kind`, or the type that llama-quantize takes instead for a row that does not divide into its blocks."""
    if kind.fits(row):
        return kind
    replacement = TYPES[_FALLBACK.get(kind.name, "F16")]
    return replacement if replacement.fits(row) else TYPES["F16"]


def choose_types(preset: Preset, tensors: list[tuple[str, tuple[int, ...]]], shape: ModelShape) -> dict[str, GgmlType]:
    """The type of every quantizable tensor, by name. Tensors are given as (name, torch-order shape).

    Tensors that are not quantizable are left out: they stay at the precision of the source (1-D ones at F32).
    """
    base = TYPES[preset.base]
    seen: dict[str, int] = {}
    chosen: dict[str, GgmlType] = {}
    for name, dims in sorted(tensors, key=lambda entry: _layer(entry[0])):
        if not quantizable(name, dims):
            continue
        if base.name in {"F32", "F16", "BF16"}:
            chosen[name] = base
            continue
        role = role_of(name)
        index = seen.get(role, 0)
        seen[role] = index + 1
        chosen[name] = fallback(_wanted(preset, base, role, index, shape, dims[-1]), dims[-1])
    return chosen


def _layer(name: str) -> int:
    """The layer that a tensor belongs to; -1 for those that stand once. llama-quantize counts tensors in this order."""
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else -1


def _wanted(preset: Preset, base: GgmlType, role: str, index: int, shape: ModelShape, row: int) -> GgmlType:
    """The type that the preset asks for, before any fallback."""
    if role == "output" or (role == "token_embd" and shape.tied):
        if not base.fits(row):
            return TYPES["Q8_0"]
        return base if base.name == "Q8_0" else TYPES["Q6_K"]
    rule = preset.rules.get(role)
    wanted = TYPES[(rule(index, shape) if rule else None) or base.name]
    if role == "attn_v" and shape.is_70b and wanted.name in {"Q3_K", "Q4_K"}:
        # eight query heads share one attn_v in the 70B models: it is small enough to be worth the bits
        return TYPES["Q5_K"]
    return wanted
