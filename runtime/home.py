"""Where packlight keeps what it may need again."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """$PACKLIGHT_HOME, or packlight/ in the user's cache directory."""
    if named := os.environ.get("PACKLIGHT_HOME"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "packlight"
