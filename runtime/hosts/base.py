"""What the harness asks of a machine that measures."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from runtime.artifact import Artifact
    from runtime.check import CapVerdict
    from runtime.measurement import Measurement, RunOptions, Trials


def _said_to_nobody(_text: str) -> None:
    """What nobody asked for."""


def _counted_for_nobody(_what: str, _done: int, _total: int) -> None:
    """What nobody asked for."""


@dataclass(frozen=True)
class Watcher:
    """Who is told how it goes on.

    note: a phase that begins, or something else worth a line; advance: bytes done of all bytes of what is sent
    pause: a block in which another program may ask the user something
    """

    note: Callable[[str], None] = _said_to_nobody
    advance: Callable[[str, int, int], None] = _counted_for_nobody
    pause: Callable[[], AbstractContextManager[None]] = nullcontext


@dataclass(frozen=True)
class Job:
    """What is to be measured, and how. command: as typed, for the record"""

    artifact: Artifact
    options: RunOptions
    trials: Trials
    command: str = ""


class Host(Protocol):
    """A machine that measures artifacts. Every call stands alone; nothing is left open between two."""

    @property
    def name(self) -> str:
        """As the user wrote it, "local" or "ssh:pi@board"."""

    @property
    def caps(self) -> bool:
        """Whether `check` runs the artifact under a cap; else it compares the peak with it."""

    def refuse(self, artifact_format: str, options: RunOptions, trials: Trials, watcher: Watcher) -> None:
        """Raise HostError where that format could not be measured so there: before hours of other work."""

    def measure(self, job: Job, watcher: Watcher) -> Measurement:
        """`runtime.measure.measure` on that machine. HostError: it is not reached; EngineError too where it is lost."""

    def check(self, job: Job, cap_bytes: int, watcher: Watcher) -> CapVerdict:
        """`runtime.check.check` on that machine; errors as those of `measure`."""
