"""What the rules of a preset are made of: `Slot`, a tensor as they see it, and rules as functions of it.

A rule gives the type's name, or None where the preset's base type is meant. They are the cases of llama.cpp's
`llama_tensor_get_type_impl` (src/llama-quant.cpp), one function each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """What the rules ask of a model.

    n_layers: of them; n_gqa: query heads per KV head, 0 without KV heads; n_experts: 0 without experts
    tied: output is the embedding table; is_70b: of the size that llama.cpp calls 70B; arch: general.architecture
    """

    n_layers: int
    n_gqa: int
    tied: bool
    is_70b: bool = False
    n_experts: int = 0
    arch: str = ""


@dataclass(frozen=True)
class Slot:
    """A tensor as rules see it.

    i, n: its number among those of its role, and how many there are; for the feed-forward of a mixture of experts the
        layers are counted
    weighted: whether there is an importance matrix
    """

    i: int
    n: int
    shape: ModelShape
    weighted: bool = False

    @property
    def falcon(self) -> bool:
        """Falcon has rules of its own."""
        return self.shape.arch == "falcon"

    @property
    def eight_experts(self) -> bool:
        """Mixtral's number of experts: the attention beside them is small, and worth more bits."""
        return self.shape.n_experts == 8


Rule = Callable[[Slot], str | None]


def _has_more_bits(slot: Slot) -> bool:
    """The first and last eighth of the layers and every third between get more bits."""
    i, n = slot.i, slot.n
    # C divides towards zero, and takes the remainder's sign from the left: below n / 8 the first test has decided.
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def always(name: str | None) -> Rule:
    """That type."""
    return lambda _slot: name


def more_bits(name: str) -> Rule:
    """Where `_has_more_bits`."""
    return lambda slot: name if _has_more_bits(slot) else None


def first(count: int, name: str, otherwise: str | None = None) -> Rule:
    """The first `count`."""
    return lambda slot: name if slot.i < count else otherwise


def first_part(part: int, name: str, otherwise: str | None = None) -> Rule:
    """The first 1/part."""
    return lambda slot: name if slot.i < slot.n // part else otherwise


def middle(name: str) -> Rule:
    """All but the first and the last eighth."""
    return lambda slot: name if slot.n // 8 <= slot.i < 7 * slot.n // 8 else None


def grouped(name: str, otherwise: str | None = None) -> Rule:
    """Models in which at least four query heads share a KV head: their attn_v is small and worth more bits."""
    return lambda slot: name if slot.shape.n_gqa >= 4 else otherwise


def small_attention(name: str, otherwise: str) -> Rule:
    """As `grouped`, and models of at least four experts."""
    return lambda slot: name if slot.shape.n_gqa >= 4 or slot.shape.n_experts >= 4 else otherwise


def eight_experts(own: Rule, others: Rule | None = None) -> Rule:
    """Models of eight experts by `own`, all others by `others`."""
    return lambda slot: own(slot) if slot.eight_experts else others(slot) if others else None


def either(one: Rule, other: Rule) -> Rule:
    """What `one` says, or where it says nothing, `other`."""
    return lambda slot: one(slot) or other(slot)


def falcon(own: Rule, others: Rule) -> Rule:
    """Falcon by `own`, all others by `others`."""
    return lambda slot: own(slot) if slot.falcon else others(slot)


def weighted(rule: Rule) -> Rule:
    """With an importance matrix only."""
    return lambda slot: rule(slot) if slot.weighted else None


def unweighted(rule: Rule) -> Rule:
    """Without an importance matrix only."""
    return lambda slot: None if slot.weighted else rule(slot)


def attn_output(usual: str | None, eight: str | None = "Q5_K", of_falcon: str | None = None) -> Rule:
    """attn_output as most presets have it: `usual`, another type beside eight experts, and another of Falcon."""
    return falcon(always(of_falcon), eight_experts(always(eight), always(usual)))
