"""Which type each tensor gets: by what the user says of it, else by the preset, else what fits its rows.

The order of `llama_tensor_get_type` (src/llama-quant.cpp of llama.cpp): a type for the table or the output matrix that
was named, rules, the preset; a type of the preset that does not divide a row falls back to another. A type that was
named never does: that is a `Problem`.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from targets.base import Problem, TypeChoice
from targets.facts import several
from targets.gguf.mixtures import ModelShape, Slot
from targets.gguf.types import TYPES, GgmlType

if TYPE_CHECKING:
    from targets.gguf.presets import Preset

    Tensors = list[tuple[str, tuple[int, ...]]]

_FALLBACK = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0", "Q2_0": "Q4_0",
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
    **dict.fromkeys(
        ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"
    ),
}  # fmt: skip
_SMALLEST_BLOCK = 32
"""Types of blocks so small have no other to fall back to than F16."""

_OUTPUT, _TABLE, _PER_LAYER = "output", "token_embd", "per_layer_token_embd.weight"
_WHOLE_NAMES = {"output.weight": _OUTPUT, "token_embd.weight": _TABLE, _PER_LAYER: _TABLE}
# A fused q/k/v tensor, and a fused k/v one, is treated as the attn_v that it holds.
_PARTS = {
    "attn_qkv.weight": "attn_v", "attn_kv_b.weight": "attn_v", "attn_v.weight": "attn_v", "attn_k.weight": "attn_k",
    "attn_q.weight": "attn_q", "attn_output.weight": "attn_output", "ffn_up": "ffn_up", "ffn_gate": "ffn_gate",
    "ffn_down": "ffn_down",
}  # fmt: skip

_NEVER = (
    "_norm.weight",
    "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight",  # routers
    "altup", "laurel", "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight",
    "indexer.k_proj.weight", "indexer.q_proj.weight",
    "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight", "time_mix_v0.weight",
    "time_mix_v1.weight", "time_mix_v2.weight", "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight",
    "time_mix_g1.weight", "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger",
    "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip
"""Parts of names of matrices that llama-quantize leaves alone (`tensor_allows_quantization`)."""
_NEVER_WHOLE = {"position_embd.weight", "token_types.weight"}
_NEVER_OF = {
    "glm5-next": (
        "hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate",
        "indexer_compressor_ape", "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight", "ssm_g_b.weight",
        "ssm_beta.weight", "attn_kv_a_mqa.weight", "attn_k_b.weight", "attn_v_b.weight",
    ),
}  # fmt: skip
"""The same of one architecture alone."""
_EIGHT_BITS_OF = {"glm5-next": ("attn_q_a", "attn_q_b", "nextn.eh_proj")}
"""Parts of names of matrices that get Q8_0 from every preset that quantizes, by architecture."""
_EXPERTS_BY_ROLE = {"bailingmoe3"}
"""Architectures that have other matrices of three dimensions than those of experts."""


@dataclass(frozen=True)
class Chosen:
    """The type of every tensor that is quantized, by name, and what is wrong with what was asked for."""

    types: dict[str, GgmlType] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


@functools.cache
def role_of(name: str) -> str:
    """The role that rules of presets are looked up by, such as attn_v; "" for none."""
    if name in _WHOLE_NAMES:
        return _WHOLE_NAMES[name]
    return next((role for part, role in _PARTS.items() if part in name), "")


@functools.cache
def quantizable(name: str, shape: tuple[int, ...], arch: str = "") -> bool:
    """Whether llama-quantize would quantize this tensor at all: a matrix of weights that is no norm and no router.

    shape: in torch order; leading dimensions of 1 do not count, as in ggml; arch: general.architecture
    """
    if all(dim == 1 for dim in shape[:-1]) or not name.endswith("weight"):
        return False
    return name not in _NEVER_WHOLE and not any(part in name for part in (*_NEVER, *_NEVER_OF.get(arch, ())))


def fallback(kind: GgmlType, row: int) -> GgmlType | None:
    """`kind`, or the type that llama-quantize takes instead for a row that does not divide into its blocks.

    None where it has none: for Q1_0 and NVFP4.
    """
    if kind.fits(row):
        return kind
    if kind.name not in _FALLBACK:
        return TYPES["F16"] if kind.block_size <= _SMALLEST_BLOCK else None
    replacement = TYPES[_FALLBACK[kind.name]]
    return replacement if replacement.fits(row) else TYPES["F16"]


def choose(
    preset: Preset, tensors: Tensors, shape: ModelShape, wanted: TypeChoice | None = None, *, weighted: bool = False
) -> Chosen:
    """The type of every quantizable tensor, by name, with what is wrong. tensors: (name, shape in torch order).

    Tensors that are not quantizable are left out: they stay at the precision of the source (1-D ones at F32).
    weighted: there is an importance matrix
    """
    wanted = wanted or TypeChoice()
    named = _Named(wanted)
    chosen = Chosen(problems=named.problems)
    if chosen.problems:
        return chosen
    roles = Counter(role_of(name) for name, _ in tensors)
    counted: Counter[str] = Counter()
    # llama-quantize counts tensors layer by layer, and by name within one
    for name, dims in sorted(tensors, key=lambda entry: (_layer(entry[0]), entry[0])):
        if not quantizable(name, dims, shape.arch):
            named.pass_by(name)
            continue
        found = named.of(name, dims, shape)
        if found is not None:
            chosen.types[name] = found
            continue
        asked = TYPES[preset.base]
        if not preset.floats and not wanted.pure:
            slot = _slot(preset, name, counted, roles, shape, weighted=weighted)
            asked = TYPES[_by_preset(preset, name, dims, slot)]
        kind = fallback(asked, dims[-1])
        if kind is None:
            chosen.problems.append(_no_other(name, asked, dims[-1]))
        else:
            chosen.types[name] = kind
    chosen.problems.extend(named.left())
    return chosen


def choose_types(preset: Preset, tensors: Tensors, shape: ModelShape, *, weighted: bool = False) -> dict[str, GgmlType]:
    """The types that a preset alone gives; see `choose`. What nothing fits is left out."""
    return choose(preset, tensors, shape, weighted=weighted).types


def _layer(name: str) -> int:
    """The layer that a tensor belongs to; -1 for those that stand once."""
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else -1


def _slot(
    preset: Preset, name: str, counted: Counter[str], roles: Counter[str], shape: ModelShape, *, weighted: bool
) -> Slot:
    """What the rules see of a tensor, which counts among those of its role from now on."""
    role = role_of(name)
    number = counted[role]
    counted[role] += 1
    if not role.startswith("ffn_"):
        return Slot(number, roles[role], shape, weighted)
    # A layer may hold several of experts: then the name says which layer it is.
    by_name = shape.n_experts > 1 and not preset.lowest
    return Slot(_layer(name) if by_name else number, shape.n_layers, shape, weighted)


def _by_preset(preset: Preset, name: str, dims: tuple[int, ...], slot: Slot) -> str:
    """The type's name that the preset asks for, before any fallback."""
    role, base, arch = role_of(name), TYPES[preset.base], slot.shape.arch
    if any(part in name for part in _EIGHT_BITS_OF.get(arch, ())):
        return "Q8_0"
    if role == _OUTPUT or (role == _TABLE and slot.shape.tied):
        if preset.experts or slot.falcon or base.name == "Q8_0" or not base.fits(dims[-1]):
            return "Q8_0"
        return preset.output
    if preset.experts:
        stacked = len(dims) > 2 and dims[-3] > 1 and (arch not in _EXPERTS_BY_ROLE or role.startswith("ffn_"))
        return preset.experts if stacked else "Q8_0"
    rule = preset.rules.get(role)
    found = (rule(slot) if rule else None) or base.name
    if preset.lowest:
        return found
    if role in {"attn_v", "attn_k"} and slot.eight_experts:
        return "Q8_0"
    if role == "attn_v" and slot.shape.is_70b and found in {"Q3_K", "Q4_K"}:
        # eight query heads share one attn_v in the 70B models: it is small enough to be worth the bits
        return "Q5_K"
    return found


def _no_other(name: str, kind: GgmlType, row: int) -> Problem:
    what = f"rows of {row} weights are no whole blocks of {kind.name.lower()}, which has {kind.block_size}"
    return Problem(name, f"{what}, and llama.cpp has no type to fall back to", "choose another preset, or add a --rule")


class _Named:
    """Types that the user names, and what came of it: which rules were found in a name, which rows do not divide."""

    def __init__(self, wanted: TypeChoice) -> None:
        self.problems: list[Problem] = []
        self._output = self._kind("--output-type", wanted.output)
        self._table = self._kind("--embedding-type", wanted.embedding)
        self._pure = wanted.pure
        self._rules: list[tuple[str, re.Pattern[str], GgmlType]] = []
        for pattern, kind_name in wanted.rules:
            said = f"--rule {pattern}={kind_name}"
            kind, compiled = self._kind(said, kind_name), self._pattern(said, pattern)
            if kind is not None and compiled is not None:
                self._rules.append((said, compiled, kind))
        self._found: set[str] = set()
        self._passed: dict[str, str] = {}
        self._uneven: dict[tuple[str, GgmlType, int], list[str]] = {}
        self._example = ""

    def _kind(self, said: str, name: str | None) -> GgmlType | None:
        if name is None or name.upper() in TYPES:
            return None if name is None else TYPES[name.upper()]
        known = ", ".join(TYPES).lower()
        self.problems.append(Problem(said, f"'{name}' is no type of ggml", f"known: {known}"))
        return None

    def _pattern(self, said: str, pattern: str) -> re.Pattern[str] | None:
        try:
            return re.compile(pattern)
        except re.error as error:
            self.problems.append(Problem(said, f"is no regular expression ({error})", "mend the pattern"))
            return None

    def _match(self, name: str) -> tuple[str, GgmlType] | None:
        hits = [(said, kind) for said, pattern, kind in self._rules if pattern.search(name)]
        self._found |= {said for said, _ in hits}
        return hits[0] if hits else None

    def pass_by(self, name: str) -> None:
        """A tensor that stays as it is, whatever is said of it."""
        for said, pattern, _ in self._rules:
            if pattern.search(name):
                self._passed.setdefault(said, name)

    def of(self, name: str, dims: tuple[int, ...], shape: ModelShape) -> GgmlType | None:
        """What was said of this tensor; None where nothing was."""
        self._example = name
        said, kind = self._said(name, role_of(name), shape) or ("", None)
        if kind is not None and not kind.fits(dims[-1]):
            self._uneven.setdefault((said, kind, dims[-1]), []).append(name)
        return kind

    def _said(self, name: str, role: str, shape: ModelShape) -> tuple[str, GgmlType] | None:
        ruled = self._match(name)
        if role == _TABLE and self._table is not None and not (name == _PER_LAYER and ruled):
            return "--embedding-type", self._table
        if role == _OUTPUT and self._output is not None:
            return "--output-type", self._output
        if ruled is None and role == _TABLE and shape.tied and self._output is not None and not self._pure:
            return "--output-type", self._output
        return ruled

    def left(self) -> list[Problem]:
        """Rules that were found in no name, and types that do not divide the rows they were meant for."""
        problems = []
        for said, _, _ in self._rules:
            if said in self._found:
                continue
            if said in self._passed:
                what = f"is found in names of tensors that stay as they are alone, such as {self._passed[said]}"
            else:
                what = f"is found in no tensor's name; they are such as {self._example}"
            problems.append(Problem(said, what, "mend the pattern, or take it out"))
        for (said, kind, row), tensors in self._uneven.items():
            what = f"blocks of {kind.block_size} do not divide rows of {row}, those of {several(tensors)}"
            other = fallback(kind, row)
            named = f"{other.name.lower()}, as llama-quantize does" if other is not None else "another type"
            problems.append(Problem(said, what, f"name {named}, or narrow the pattern"))
        return problems
