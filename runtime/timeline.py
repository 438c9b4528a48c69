"""Resident memory of another process over time, sampled from outside so that it is not disturbed. Linux only.

A sample is one short file of /proc, some microseconds of this process's time and none of the other's. The peak that
counts is the kernel's (`runtime.memory`): what lies between two samples is not seen here.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from runtime.memory import proportional_bytes
from runtime.series import MemorySample

PROC = Path("/proc")
FIRST_INTERVAL_S = 0.02
MOST_SAMPLES = 400
PSS_INTERVAL_S = 1.0
PAGE = os.sysconf("SC_PAGE_SIZE")


def parse_statm(text: str, page: int = PAGE) -> tuple[int, int] | None:
    """Resident and anonymous bytes in the text of /proc/PID/statm; None where there is none, as of a dead process."""
    numbers = text.split()
    if len(numbers) < 3 or not int(numbers[1]):
        return None
    return int(numbers[1]) * page, (int(numbers[1]) - int(numbers[2])) * page


def thinned(samples: list[MemorySample]) -> list[MemorySample]:
    """Of every two neighbours in the same phase the one with more memory: about half as many, peaks kept.

    Two that lie in different phases both stay, so that no short phase goes; where that leaves too many, they go.
    """
    kept: list[MemorySample] = []
    for at in range(0, len(samples), 2):
        pair = samples[at : at + 2]
        kept += [_larger(pair)] if pair[0].phase == pair[-1].phase else pair
    if len(kept) > MOST_SAMPLES * 3 // 4:
        kept = [_larger(samples[at : at + 2]) for at in range(0, len(samples), 2)]
    return kept


def _larger(samples: list[MemorySample]) -> MemorySample:
    return max(samples, key=lambda sample: sample.rss_bytes)


@dataclass
class Timeline:
    """Samples of the process `pid` in a thread, from `start` to `stop`.

    peak_pss_bytes: highest PSS that was seen. It is dear to read, because the kernel walks all pages and holds the
        process's memory map meanwhile: once a second, and in quiet phases alone, in which nothing is timed.
    """

    pid: int
    proc: Path = PROC
    samples: list[MemorySample] = field(default_factory=list)
    peak_pss_bytes: int | None = None
    _phase: str = "starting"
    _quiet: bool = False
    _begun: float = field(default_factory=time.monotonic)
    _interval: float = FIRST_INTERVAL_S
    _next_pss: float = 0.0
    _over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _thread: threading.Thread | None = None
    _statm: int = -1

    def start(self) -> None:
        """Begin to sample; where there is no /proc, nothing is done."""
        try:
            # Kept open: to open it anew would take most of a sample's time.
            self._statm = os.open(self.proc / str(self.pid) / "statm", os.O_RDONLY)
        except OSError:
            return
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def phase(self, name: str, *, quiet: bool = False) -> None:
        """The process has announced a phase: the end of the last one and the begin of this one are samples."""
        self.sample()
        with self._lock:
            self._phase, self._quiet = name, quiet
        self.sample()

    def stop(self) -> None:
        """End the thread."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            os.close(self._statm)

    def sample(self, *, timed: bool = False) -> None:
        """Read once. timed: the clock asked for it, not a phase; where those are too many, it asks less often."""
        if self._thread is None:
            return
        with self._lock:
            try:
                found = parse_statm(os.pread(self._statm, 256, 0).decode("ascii"))
            except (OSError, ValueError):  # it has ended
                return
            if found is None:
                return
            seconds = round(time.monotonic() - self._begun, 3)
            self.samples.append(MemorySample(seconds, found[0], found[1], self._phase))
            if len(self.samples) > MOST_SAMPLES:
                self.samples[:] = thinned(self.samples)
                self._interval *= 2 if timed else 1

    def _run(self) -> None:
        while not self._over.wait(self._interval):
            self.sample(timed=True)
            if self._quiet and (now := time.monotonic()) >= self._next_pss:
                self._next_pss = now + PSS_INTERVAL_S
                self.sample_pss()

    def sample_pss(self) -> None:
        """Read the PSS once."""
        share = proportional_bytes(self.proc / str(self.pid))
        if share is not None:
            self.peak_pss_bytes = max(self.peak_pss_bytes or 0, share)
