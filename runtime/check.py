"""Does an artifact run within a memory budget? Proved by running it under a hard cap of exactly that size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.cap import COUNTS, METHODS, Cap, capped
from runtime.errors import OutOfMemory, TimedOut
from runtime.measure import measure_under
from runtime.measurement import Measurement
from runtime.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.artifact import Artifact
    from runtime.measurement import RunOptions, Trials


@dataclass(frozen=True)
class CapVerdict:
    """Whether it fits, and how that is known.

    needed_bytes: peak resident bytes without a cap where it does not fit, with it where it does; None when unknown
    measurement: the run under the cap where it fits, else the run without one; None where neither completed
    method: how memory was capped, one of runtime.cap.METHODS
    text: the verdict in one sentence
    phase: the last one that a run reached which the cap ended; None where it came to its end
    """

    fits: bool
    needed_bytes: int | None
    measurement: Measurement | None
    method: str
    text: str
    phase: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        measurement = None if self.measurement is None else self.measurement.to_json()
        return {"fits": self.fits, "needed_bytes": self.needed_bytes, "method": self.method, "text": self.text,
                "phase": self.phase, "measurement": measurement}  # fmt: skip


Runner = Callable[[Cap | None], Measurement]
"""Measures under a cap, or without one. A parameter so that tests can stand in for an engine."""


def check(
    artifact: Artifact,
    options: RunOptions,
    trials: Trials,
    cap_bytes: int,
    *,
    progress: Callable[[str], None] | None = None,
    command: str = "",
) -> CapVerdict:
    """Run `artifact` under a cap of exactly `cap_bytes`. Raises EngineError where it fails for another reason."""

    def runner(cap: Cap | None) -> Measurement:
        return measure_under(cap, artifact, options, trials, progress=progress, command=command)

    return check_with(METHODS, cap_bytes, runner)


def check_with(methods: Sequence[str], cap_bytes: int, runner: Runner) -> CapVerdict:
    """`check` with the first of `methods` that this host has."""
    with capped(cap_bytes, methods) as cap:
        try:
            measurement = runner(cap)
        except OutOfMemory as error:
            return _died(cap, error.phase, _uncapped(runner))
        except TimedOut as error:
            return _too_slow(cap, error, _uncapped(runner))
        return _completed(cap, measurement, runner)


def _uncapped(runner: Runner) -> Measurement | None:
    """The run without a cap, to say what was needed; None where even that does not complete."""
    try:
        return runner(None)
    except (OutOfMemory, TimedOut):
        return None


def _died(cap: Cap, phase: str, free: Measurement | None) -> CapVerdict:
    """Over the cap. A resource limit counts more than what is resident, so there the resident peak decides."""
    if free is None:
        text = f"does not fit: died while {phase} under a cap of {_size(cap)}, and does not complete without one either"
        return CapVerdict(False, None, None, cap.method, text, phase)
    needed = free.peak_rss_bytes
    if needed > cap.n_bytes:
        text = f"does not fit: needed {format_bytes(needed)}, the cap is {_size(cap)}, died while {phase}"
        return CapVerdict(False, needed, free, cap.method, text, phase)
    if cap.kills:
        text = (
            f"does not fit: needed {format_bytes(needed)} resident and the kernel's own memory for it, "
            f"the cap is {_size(cap)}, died while {phase}"
        )
        return CapVerdict(False, needed, free, cap.method, text, phase)
    text = (
        f"fits: peak {format_bytes(needed)} without a cap, by the kernel's high-water mark; under the cap of "
        f"{_size(cap)} it died while {phase}, because that counts {COUNTS[cap.method]}"
    )
    return CapVerdict(True, needed, free, cap.method, text, phase)


def _too_slow(cap: Cap, error: TimedOut, free: Measurement | None) -> CapVerdict:
    """Under the cap it did not finish in time: weights that are dropped and read again make a run crawl."""
    if free is None:
        raise error  # it is slow without a cap too: that says nothing about memory
    needed = free.peak_rss_bytes
    if needed <= cap.n_bytes:
        raise error
    text = (
        f"does not fit: needed {format_bytes(needed)}, the cap is {_size(cap)}; it had not finished {error.phase} "
        "when the time was up, because the kernel dropped mapped weights and read them again"
    )
    return CapVerdict(False, needed, free, cap.method, text, error.phase)


def _completed(cap: Cap, capped_run: Measurement, runner: Runner) -> CapVerdict:
    """It ran to its end. It fits where nothing had to be dropped for that but file cache that nobody had mapped."""
    hits, peak = cap.limit_hits() or 0, capped_run.peak_rss_bytes
    if not hits and peak <= cap.n_bytes:
        text = f"fits: peak {format_bytes(peak)} under a cap of {_size(cap)}"
        return CapVerdict(True, peak, capped_run, cap.method, text)
    free = _uncapped(runner)
    needed = max(peak, free.peak_rss_bytes if free is not None else 0)
    if needed <= cap.n_bytes:
        text = (
            f"fits: peak {format_bytes(needed)} under a cap of {_size(cap)}; only unused file cache was dropped for it"
        )
        return CapVerdict(True, needed, capped_run, cap.method, text)
    faults = capped_run.major_page_faults
    if hits:
        how = f"it ran only because mapped weights were dropped and read again: {faults} major page faults"
    elif cap.kills:
        how = "it ran only because pages that another process reads too, such as libraries, are not charged to it"
    else:
        how = f"the cap did not stop it because it counts {COUNTS[cap.method]}"
    text = f"does not fit: needed {format_bytes(needed)}, the cap is {_size(cap)}; {how}"
    return CapVerdict(False, needed, free or capped_run, cap.method, text)


def _size(cap: Cap) -> str:
    return f"{format_bytes(cap.n_bytes)} ({cap.method})"
