"""Axes of the page's figures: where a number lies, in percent of the axis, and round ticks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

TICKS = 4
"""Steps between ticks, about; a phone has room for so many labels."""


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`; ticks: values on it. log: equal ratios are equally far apart."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """Percent of the way from low to high; what lies outside is put onto the edge."""
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        if self.log and value <= 0:
            return 0.0
        here = math.log10(value) if self.log else value
        return min(max(100 * (here - low) / (high - low), 0.0), 100.0)


def number(value: Any) -> float | None:  # noqa: ANN401  whatever a report holds
    """A finite number; None for anything else, NaN and infinity among them."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond every float
        return None


def linear(values: Sequence[float], *, zero: bool = False) -> Scale:
    """An axis whose ends are ticks around at least one value. zero: begins (or ends) at 0."""
    low, high = min(values), max(values)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        around = abs(low) * 0.05 or 1.0
        low, high = (low, low + around) if zero and low == 0 else (low - around, high + around)
    step = _round_step((high - low) / TICKS)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(index * step for index in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], ticks)


def exact(values: Sequence[float]) -> Scale:
    """An axis from the lowest to the highest of at least one value; ticks lie between them."""
    around, low, high = linear(values), min(values), max(values)
    if low == high:
        return around
    return Scale(low, high, tuple(tick for tick in around.ticks if low <= tick <= high))


def logarithmic(values: Sequence[float]) -> Scale:
    """An axis of at least one positive value; its ticks are 1, 2 and 5 times powers of ten where those are few."""
    low, high = min(values), max(values)
    first, last = math.floor(math.log10(low) - 0.05), math.ceil(math.log10(high) + 0.05)
    ticks = [10.0**power for power in range(first, last + 1)]
    if len(ticks) <= TICKS:
        ticks = [factor * power for power in ticks for factor in (1, 2, 5)]
    below = max((tick for tick in ticks if tick < low * 0.999), default=ticks[0])
    above = min((tick for tick in ticks if tick > high * 1.001), default=ticks[-1])
    kept = tuple(tick for tick in ticks if below <= tick <= above)
    return Scale(kept[0], kept[-1], kept, log=True)


def shown(value: float) -> str:
    """A tick's number: no more digits than it needs."""
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.0e}"
    text = f"{value:,.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _round_step(step: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9))
