"""An output directory that appears whole or not at all.

Everything is written into a hidden sibling of OUT, which is renamed at the end. Its maker holds a lock on it, so a
later run can tell the leftovers of a killed process from the work of a living one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from typing import TYPE_CHECKING

from runtime.artifact import MANIFEST, read_manifest
from runtime.atomic import fsync_directory
from runtime.errors import ArtifactError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SUFFIX = ".partial"
DOCUMENTS = ("README.md", "report.json", "report.html", "Modelfile")
"""What the report adds beside an artifact's own files."""


def refuse_occupied(out: Path, *, overwrite: bool) -> None:
    """Raise UserError unless OUT is free, or `overwrite` is set and OUT holds an export and nothing else."""
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise UserError(f"{out}: is a file; name a directory for -o")
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{out}: is not empty; name another directory, or add --overwrite to replace an earlier export")
    try:
        ours = {MANIFEST, *read_manifest(out).files, *DOCUMENTS}
    except ArtifactError as error:
        raise UserError(f"{out}: holds no packlight export, so --overwrite leaves it alone; name another") from error
    present = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_symlink() or not path.is_dir()}
    if foreign := sorted(present - ours):
        raise UserError(f"{out}: holds '{foreign[0]}', which packlight did not write; move it away or name another")


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """Yield an empty directory beside OUT; remove it at the end unless `publish` has renamed it.

    Parents of OUT are made. Leftovers of dead processes for the same OUT are removed first.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(out)
    room = out.parent / f".{out.name}.{os.getpid()}{SUFFIX}"
    room.mkdir()
    lock = os.open(room, os.O_RDONLY)
    try:
        # A file system without locks loses only the cleaning up after a kill.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)
        os.close(lock)


def publish(room: Path, out: Path) -> None:
    """Give a finished staging directory its final name, durably. What OUT held before is deleted after that."""
    for path in [*room.rglob("*"), room]:
        if path.is_dir():
            fsync_directory(path)
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
    previous = out.parent / f".{out.name}.{os.getpid()}.previous{SUFFIX}"
    if out.exists():
        out.rename(previous)
    try:
        room.rename(out)
    except OSError:
        if previous.exists():
            previous.rename(out)
        raise
    fsync_directory(out.parent)
    shutil.rmtree(previous, ignore_errors=True)


def remove_stale(out: Path) -> None:
    """Delete staging directories of OUT whose makers are dead: nobody holds their lock.

    A process that was killed between the two renames of `publish` left OUT's earlier content under another name:
    that is put back.
    """
    ours = re.compile(rf"\.{re.escape(out.name)}\.\d+(\.previous)?{re.escape(SUFFIX)}")
    for path in out.parent.iterdir():
        if not ours.fullmatch(path.name) or not path.is_dir() or path.is_symlink():
            continue
        if ".previous." in path.name and not os.path.lexists(out):
            path.rename(out)
        else:
            _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    try:
        lock = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return
    else:
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)
