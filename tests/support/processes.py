"""Processes of this machine, by what is in their environment (Linux)."""

from __future__ import annotations

import time
from pathlib import Path


def named_in_environment(text: str) -> list[int]:
    """Ids of all processes that have `text` in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue  # ended meanwhile, or another user's
            if text.encode() in environment:
                found.append(int(entry.name))
    return found


def gone(text: str, seconds: float = 20.0) -> bool:
    """Whether none is left, at last: the kernel takes a moment to end them."""
    end = time.monotonic() + seconds
    while named_in_environment(text):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
