"""TOML files that people write."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

from runtime.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path


def load_toml(path: Path, otherwise: str) -> dict[str, Any]:
    """What a file says. otherwise: what to do where it cannot be read. Raises UserError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {otherwise}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not TOML ({error}); mend it") from error
