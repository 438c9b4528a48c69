"""The model between two steps, on the disk: what a step has made goes into a file, and every step begins with one.

So a run that was killed and goes on begins its next step with the very bits that an uninterrupted one has there, and
what a step has put into memory, factors or smaller matrices, is not in memory any more.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from exporter.compress.directory import write_directory
from exporter.compress.factored import split
from exporter.staging import publish
from targets.safetensors import read_facts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from exporter.compress.journal import Journal
    from exporter.compress.subject import Subject

STEP = "step"


def settle(subject: Subject, journal: Journal, done: Sequence[dict[str, Any]]) -> None:
    """Write the model as the steps `done`, their reports, have left it, and open what was written."""
    before = journal.find(STEP)
    room = journal.room / f"step-{len(done)}"
    partial = room.with_suffix(".partial")
    for path in (room, partial):
        shutil.rmtree(path, ignore_errors=True)
    partial.mkdir()
    write_directory(partial, subject)
    publish(partial, room)
    journal.note(STEP, done=list(done), config=subject.config, layers=subject.layers, directory=room.name)
    _open(subject, room)
    if before is not None:
        shutil.rmtree(journal.room / before["directory"], ignore_errors=True)
    shutil.rmtree(subject.work, ignore_errors=True)


def restore(subject: Subject, journal: Journal) -> list[dict[str, Any]]:
    """Open the model as the last finished step that another follows has left it; the reports of all up to it."""
    known = journal.find(STEP)
    if known is None:
        return []
    subject.config, subject.layers = dict(known["config"]), known["layers"]
    _open(subject, journal.room / known["directory"])
    done: list[dict[str, Any]] = known["done"]
    return done


def _open(subject: Subject, directory: Path) -> None:
    subject.source.reopen(read_facts(directory, subject.facts.requested, subject.facts.name))
    split(subject.model, directory)
