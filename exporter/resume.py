"""An export that goes on after a kill: what its staging directory was begun with, and which one may be gone on with.

The weights' chunks have a journal of their own (`targets.chunk_journal`). Here it is decided whether they are of the
same export: the same files of the model, the same options, the same packlight.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.report.report import version
from runtime.artifact import MANIFEST, read_manifest
from runtime.atomic import write_json
from runtime.errors import ArtifactError, UserError
from targets.chunk_journal import NAME as CHUNKS
from targets.chunk_journal import DirectoryJournal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from targets.base import EmitOptions
    from targets.facts import ModelFacts

RECORD = ".request.json"
"""In a staging directory: what its export was begun with."""
DIGEST = "request_sha256"
"""The manifest's key for the same: who goes on knows a finished export by it."""

_LEFT_OUT = ("threads", "journalled")
"""Options that change no byte of a file."""


def request_of(facts: ModelFacts, options: EmitOptions, format_name: str) -> dict[str, str]:
    """What the bytes of the weights' files depend on, by what the user calls it."""
    said = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if field.name not in (*_LEFT_OUT, "quant")
    }
    return {
        "model": str(facts.path.absolute()),
        "content of the model's files": _digest(_files_of(facts)),
        "format": format_name,
        "quantization": options.quant,
        "set of options": _digest(said),
        "version of packlight": version(),
    }


def digest_of(request: Mapping[str, str]) -> str:
    """The request in one hex number."""
    return _digest(dict(request))


def note_request(room: Path, request: Mapping[str, str]) -> None:
    """Write down in a staging directory what its export was begun with."""
    write_json(room / RECORD, dict(request))


def settle(room: Path) -> None:
    """Remove what was only there to go on with, from a directory whose manifest is written."""
    for name in (CHUNKS, RECORD):
        (room / name).unlink(missing_ok=True)


def is_finished(out: Path, request: Mapping[str, str]) -> bool:
    """Whether OUT is the finished export of this very request."""
    return _digest_in(out) == digest_of(request)


def taken_over(rooms: list[Path], request: Mapping[str, str]) -> tuple[Path, int] | None:
    """The staging directory of a dead process that began the same export, locked, and the lock's descriptor.

    None where there is none to go on with. Raises UserError where one was begun with something else.
    """
    for room in sorted(rooms, key=lambda path: path.stat().st_mtime, reverse=True):
        lock = locked(room)
        if lock is None:
            continue
        try:
            if _goes_on(room, request):
                return room, lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
    return None


def tidy(room: Path) -> None:
    """Leave in a directory that is gone on with the weights and what tells of them; the rest is made again."""
    kept = re.compile(r"\.?.+\.gguf(\.partial)?")
    if not (room / CHUNKS).is_file():
        with contextlib.suppress(ArtifactError):  # killed before anything was written
            _note_whole(room, room)
    for path in room.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name not in (CHUNKS, RECORD) and not kept.fullmatch(path.name):
            path.unlink()


def link_finished(out: Path, room: Path) -> None:
    """Put the weights of a finished export into a new staging directory, where its report is made again.

    A file system without hard links has them written again.
    """
    with contextlib.suppress(OSError, ArtifactError):
        for name in read_manifest(out).files:
            os.link(out / name, room / name)
        _note_whole(out, room)


def locked(room: Path) -> int | None:
    """A descriptor that holds the lock of a directory; None where another process does. It is for the caller to close.

    A file system without locks gives none either.
    """
    try:
        lock = os.open(room, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def _goes_on(room: Path, request: Mapping[str, str]) -> bool:
    """Whether a directory can be gone on with; one of a kill before anything was noted cannot. Raises UserError."""
    try:
        begun = json.loads((room / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # killed before the record, or after all was done and it was removed
        return _digest_in(room) == digest_of(request)
    known = begun if isinstance(begun, dict) else {}
    if other := [what for what, value in request.items() if known.get(what) != value]:
        raise UserError(f"--resume: {room} was begun with another {other[0]}; leave --resume out to begin anew")
    return True


def _note_whole(of: Path, room: Path) -> None:
    """Note in the room's journal that the files of a manifest are whole."""
    journal = DirectoryJournal(room)
    for name, found in read_manifest(of).files.items():
        journal.note_whole(name, found)


def _digest_in(directory: Path) -> str | None:
    """The request that a directory's manifest names; None where it has none."""
    try:
        content = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    found = content.get(DIGEST) if isinstance(content, dict) else None
    return found if isinstance(found, str) else None


def _files_of(facts: ModelFacts) -> list[tuple[str, int, int]]:
    """Name, bytes and time of change of the files that a conversion may read: hashing them would take as long."""
    paths = {fact.file for fact in facts.tensors.values()}
    if facts.path.is_dir():
        paths |= {path for path in facts.path.iterdir() if path.is_file()}
    return sorted(_stamp(path) for path in paths)


def _stamp(path: Path) -> tuple[str, int, int]:
    found = path.stat()
    return str(path.absolute()), found.st_size, found.st_mtime_ns


def _digest(document: Any) -> str:  # noqa: ANN401  whatever JSON takes
    """SHA-256 of a document as JSON; a path that it names stands for the file there."""
    text = json.dumps(document, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Path):
        return _stamp(value) if value.exists() else str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return repr(value)
