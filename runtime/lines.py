"""A journal's file: lines of JSON, each on the disk before what comes after it begins, unless that is not asked for.

A line is an object with the text `what`. The first that is not whole, which a kill has cut off, has not happened.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def append_line(path: Path, line: dict[str, Any], *, sync: bool = True) -> None:
    """Put a line behind the others; it is on the disk when this returns. Without `sync` only a kill leaves it there."""
    with path.open("ab") as file:
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        if sync:
            os.fsync(file.fileno())


def read_lines(path: Path, *, mend: bool) -> list[dict[str, Any]]:
    """The whole lines. mend: one that a kill cut off is cut out of the file, so that the next begins where it did."""
    lines: list[dict[str, Any]] = []
    with contextlib.suppress(FileNotFoundError), path.open("r+b" if mend else "rb") as file:
        whole = 0
        for raw in file:
            try:
                line = json.loads(raw)
                complete = raw.endswith(b"\n") and isinstance(line["what"], str)
            except (ValueError, TypeError, KeyError):
                complete = False
            if not complete:
                break
            lines.append(line)
            whole += len(raw)
        if mend:
            file.truncate(whole)
    return lines
