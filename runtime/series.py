"""What is measured over time: resident memory through the phases of a run, and speed under a load that goes on."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

TENTH, FIFTH = 10, 5


@dataclass(frozen=True)
class MemorySample:
    """Resident memory of the measured process at one moment, read from outside.

    seconds: since that process was started; phase: the last one that it had announced
    anonymous_bytes: what no file backs; None where the kernel does not tell it apart
    """

    seconds: float
    rss_bytes: int
    anonymous_bytes: int | None
    phase: str


@dataclass(frozen=True)
class Window:
    """A part of a sustained load. Every window begins with an empty context, so that windows compare.

    seconds: its end, since the load began; tokens_per_s: generated, an encoder's read, while tokens were evaluated
    temperature_c: of the processor, at the end; frequency_hz: of the fastest core then; None where the host tells none
    """

    seconds: float
    tokens_per_s: float
    temperature_c: float | None = None
    frequency_hz: int | None = None


@dataclass(frozen=True)
class Sustained:
    """A load that goes on for minutes.

    seconds: all of it; tokens: generated, an encoder's read
    energy_j: of what `energy_source` covers, which is more than the measured process; None where the host tells none
    """

    seconds: float
    tokens: int
    windows: tuple[Window, ...]
    energy_j: float | None = None
    energy_source: str | None = None

    @property
    def first_tokens_per_s(self) -> float:
        """Mean over the windows of the first tenth."""
        return statistics.fmean(window.tokens_per_s for window in self.windows[: self._part(TENTH)])

    @property
    def last_tokens_per_s(self) -> float:
        """Mean over the windows of the last tenth."""
        return statistics.fmean(window.tokens_per_s for window in self.windows[-self._part(TENTH) :])

    @property
    def drop(self) -> float:
        """Share of its first speed that it has lost at the end; below 0 where it became faster."""
        return 1 - self.last_tokens_per_s / self.first_tokens_per_s if self.first_tokens_per_s else 0.0

    @property
    def settled_tokens_per_s(self) -> float:
        """Median over the windows of the last fifth."""
        return statistics.median(window.tokens_per_s for window in self.windows[-self._part(FIFTH) :])

    @property
    def tokens_per_j(self) -> float | None:
        """None where the energy is not known."""
        return self.tokens / self.energy_j if self.energy_j else None

    @property
    def text(self) -> str:
        """For people, in one line."""
        change = f"{-self.drop:+.0%}" if round(self.drop * 100) else "no drop"
        parts = [
            f"{self.settled_tokens_per_s:,.1f} tokens/s",
            f"first tenth {self.first_tokens_per_s:,.1f}, last tenth {self.last_tokens_per_s:,.1f} ({change})",
        ]
        if self.tokens_per_j is not None:
            parts.append(f"{self.tokens_per_j:,.2f} tokens/J ({self.energy_source})")
        return "; ".join(parts)

    def _part(self, of: int) -> int:
        """Windows in a tenth or a fifth, at least one."""
        return max(1, round(len(self.windows) / of))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Sustained:
        """The inverse of `dataclasses.asdict`."""
        return cls(**{**data, "windows": tuple(Window(**window) for window in data["windows"])})


def slope(values: tuple[int, ...]) -> float:
    """Of the least-squares line through values at equal distances, per step; 0 for fewer than two."""
    n = len(values)
    middle, mean = (n - 1) / 2, statistics.fmean(values) if values else 0.0
    spread = sum((at - middle) ** 2 for at in range(n))
    return sum((at - middle) * (value - mean) for at, value in enumerate(values)) / spread if spread else 0.0
