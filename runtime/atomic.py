"""Nothing half-written: files and directories appear under their final name complete, or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def fsync_directory(path: Path) -> None:
    """Make renames inside `path` durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success fsync it and rename it to `path`.

    On an exception the sibling is deleted and `path` keeps what it held before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def in_utf8(text: str) -> str:
    """The text with what UTF-8 cannot hold, bytes of a file name that is not UTF-8, as `\\udcNN`: in JSON an escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def json_text(document: Any, *, indent: int | None = 2) -> str:  # noqa: ANN401  whatever json.dumps takes
    """`document` as JSON that is UTF-8, whatever names are in it."""
    return in_utf8(json.dumps(document, indent=indent, ensure_ascii=False))


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as `in_utf8`."""
    with replacing(path) as temporary:
        temporary.write_text(in_utf8(text), encoding="utf-8")


def write_json(path: Path, document: Any) -> None:  # noqa: ANN401  whatever json.dumps takes
    """Write `document` to `path` atomically, as indented JSON."""
    write_text(path, json_text(document) + "\n")
