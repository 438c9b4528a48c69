"""How much is pruned when, where training goes on: the cubic schedule (https://arxiv.org/abs/1710.01878)."""

from __future__ import annotations


def sparsity_at(step: int, begin: int, end: int, initial: float, final: float) -> float:
    """The sparsity at a training step: much is pruned early, when much is redundant, and ever less towards `end`.

    initial: up to `begin`; final: from `end` on. Raises ValueError unless begin < end.
    """
    if begin >= end:
        raise ValueError(f"the schedule begins at {begin} and ends at {end}")
    left = 1 - min(max((step - begin) / (end - begin), 0.0), 1.0)
    return final + (initial - final) * left**3
