"""GGUF exports that a kill ends where it is told to, and what a later run wrote.

    python -m support.export_kill MODEL OUT QUANT POINT [--resume] [--split N]   (in tests/, PYTHONPATH the repository)

POINT is "never", or a name and a number, "chunk:3": SIGKILL when the journal has that line for the third time, with
"chunk:-3" just before it is written. Other names are functions of the end of an export, see `AT_THE_END`.
Every progress is printed as "WHAT DONE TOTAL", in bytes.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter import pipeline
from exporter.progress import SilentReporter
from targets import chunk_journal
from targets.gguf import stream

if TYPE_CHECKING:
    from collections.abc import Callable

AT_THE_END = ("write_documents", "settle", "publish")
"""Of `exporter.pipeline`, in the order in which an export comes to them."""


class Printed(SilentReporter):
    """Prints progress, a line each, so that it is there when the process is killed."""

    def advance(self, what: str, done: int, total: int) -> None:
        """One line."""
        print(what, done, total, flush=True)  # noqa: T201


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(point: str) -> None:
    """Arrange for the kill."""
    name, _, when = point.partition(":")
    if name in AT_THE_END:
        _around(pipeline, name, before=when.startswith("-"))
        return
    seen: Counter[str] = Counter()
    note = chunk_journal.DirectoryJournal.note

    def killing(self: chunk_journal.DirectoryJournal, what: str, **content: Any) -> None:
        seen[what] += 1
        last = what == name and seen[what] == int(when.lstrip("-"))
        if last and when.startswith("-"):
            _die()
        note(self, what, **content)
        if last:
            _die()

    chunk_journal.DirectoryJournal.note = killing  # type: ignore[method-assign]


def _around(module: Any, name: str, *, before: bool) -> None:
    real: Callable[..., Any] = getattr(module, name)

    def killing(*arguments: Any) -> None:
        if not before:
            real(*arguments)
        _die()

    setattr(module, name, killing)


def main() -> None:
    """Export, and be killed on the way."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "out", "quant", "point"):
        parser.add_argument(name)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--split", type=int)
    parser.add_argument("--small", action="store_true", help="chunks and intervals of a few rows, for a tiny model")
    given = parser.parse_args()
    if given.small:
        stream.CHUNK_ELEMENTS = 4096
        chunk_journal.LEAST_SECONDS = 0.0
    if given.point != "never":
        kill_at(given.point)
    request = pipeline.ExportRequest(
        given.model, Path(given.out), "gguf", given.quant, measure=False, overwrite=given.overwrite,
        split_max_bytes=given.split, resume=given.resume,
    )  # fmt: skip
    pipeline.export(request, Printed())


if __name__ == "__main__":
    main()
