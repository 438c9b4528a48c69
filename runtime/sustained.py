"""A load that goes on: speed by windows, with the machine's temperature, frequency and energy beside it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from runtime.sensors import SYS, energy_meter, frequency_hz, temperature_c
from runtime.series import Sustained, Window

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MOST_WINDOWS = 60
SHORTEST_WINDOW_S = 1.0
Step = tuple[int, float]
"""Tokens that one step has evaluated, and the seconds that count for them."""


def window_ends(seconds: float) -> list[float]:
    """Ends of equal windows over so many seconds: 60, fewer where they would be shorter than a second."""
    count = max(1, min(MOST_WINDOWS, int(seconds / SHORTEST_WINDOW_S)))
    return [seconds * (number + 1) / count for number in range(count)]


def sustain(
    seconds: float,
    begin: Callable[[], None],
    step: Callable[[], Step],
    *,
    sys: Path = SYS,
    clock: Callable[[], float] = time.perf_counter,
) -> Sustained:
    """Run `step` for so long. begin: called at the begin of every window, its time counts for no speed.

    Where one step is longer than a window, the windows that it covers are one. sys, clock: for tests.
    """
    meter = energy_meter(sys)
    start = clock()
    windows: list[Window] = []
    total = 0
    for end in window_ends(seconds):
        if clock() - start >= end:
            continue
        begin()
        tokens, timed = 0, 0.0
        while not tokens or clock() - start < end:
            n_tokens, took = step()
            tokens, timed = tokens + n_tokens, timed + took
        total += tokens
        if meter is not None:
            meter.read()
        done = round(clock() - start, 3)
        speed = tokens / timed if timed else 0.0
        windows.append(Window(done, speed, temperature_c(sys), frequency_hz(sys)))
    joules = None if meter is None else meter.joules()
    return Sustained(
        clock() - start, total, tuple(windows), joules, None if meter is None or joules is None else meter.source
    )
