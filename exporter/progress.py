"""How a long job says what it is doing: the `Reporter` protocol, a silent one, and one that writes plain lines."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

LINE_SECONDS = 5.0
"""A plain log gets at most one line of progress in this time."""


class Reporter(Protocol):
    """What a job calls. Every method is cheap and never raises."""

    def step(self, text: str) -> None:
        """A new step begins, for example "measuring"."""

    def note(self, text: str) -> None:
        """Something within the step that is worth a line."""

    def advance(self, what: str, done: int, total: int) -> None:
        """`done` of `total` of `what`, in whatever unit; called often."""

    def pause(self) -> contextlib.AbstractContextManager[None]:
        """Nothing is drawn in this block: another program, such as ssh, may ask the user something."""


class SilentReporter:
    """Says nothing."""

    def step(self, text: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def advance(self, what: str, done: int, total: int) -> None:
        """Nothing."""

    def pause(self) -> contextlib.AbstractContextManager[None]:
        """Nothing is drawn anyway."""
        return contextlib.nullcontext()


class LineReporter:
    """Plain lines on a stream, for logs and pipes: steps, notes, and percentages now and then."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._last = clock()

    def step(self, text: str) -> None:
        """One line, at the margin."""
        self._last = self._clock()
        self._write(text)

    def note(self, text: str) -> None:
        """One line, indented."""
        self._write(f"  {text}")

    def advance(self, what: str, done: int, total: int) -> None:
        """A line every LINE_SECONDS at most; what is done sooner than that gets none."""
        now = self._clock()
        if now - self._last < LINE_SECONDS or not total:
            return
        self._last = now
        self._write(f"  {what}: {100 * done // total} %")

    def pause(self) -> contextlib.AbstractContextManager[None]:
        """Lines that are written stay."""
        return contextlib.nullcontext()

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()
