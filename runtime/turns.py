"""Memory over the turns of a conversation, or over an encoder's passes: what grows, and whether it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from runtime.memory import anonymous_bytes, resident
from runtime.series import slope

LEAK_TURNS = 4
"""Fewest turns after which growth that goes on can be told from what a first use touches."""
LEAK_BYTES = 64 << 10
"""Growth of every one of the last turns, beyond what their part of the cache explains, that is named."""


def turn_names(count: int, what: str) -> list[str]:
    """The phases of so many turns (or passes)."""
    return [f"first {what}", f"second {what}", *(f"{what} {number}" for number in range(3, count + 1))]


@dataclass(frozen=True)
class Turn:
    """After a turn: the high-water mark, resident bytes, and those of them that no file backs.

    Pages of a mapped table come and go with the tokens that are looked up: they are no leak. Where the kernel does not
    tell them apart, all count.
    """

    peak_bytes: int
    now_bytes: int
    held_bytes: int

    @classmethod
    def now(cls) -> Turn:
        """Of this process."""
        memory, held = resident(), anonymous_bytes()
        return cls(memory.peak_bytes, memory.now_bytes, memory.now_bytes if held is None else held)


def turn_figures(turns: list[Turn]) -> dict[str, Any]:
    """For the result."""
    return {
        "second_turn_growth_bytes": turns[1].peak_bytes - turns[0].peak_bytes,
        "turn_rss_bytes": [turn.now_bytes for turn in turns],
    }


def leak_note(resident_bytes: list[int], expected: int, what: str) -> str | None:
    """That memory still grows over the last half of the turns, by how much; None where it does not.

    expected: bytes that a turn may add for the best of reasons, its part of the cache
    """
    last = resident_bytes[len(resident_bytes) // 2 - 1 :]
    steps = [after - before for before, after in pairwise(last)]
    if len(resident_bytes) < LEAK_TURNS or min(steps) <= expected + LEAK_BYTES:
        return None
    why = f", of which the cache explains {expected:,}" if expected else ""
    return (
        f"memory still grew in every one of the last {len(steps)} {what}{'es' if what == 'pass' else 's'}, "
        f"by {slope(tuple(last)):,.0f} bytes each{why}: perhaps a leak"
    )
