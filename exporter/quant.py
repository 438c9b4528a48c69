"""`--quant` of a user as a preset's name."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from runtime.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable


def known_quant(quant: str, presets: Iterable[str]) -> str:
    """The preset that `quant` names in either case. Raises UserError that names the nearest ones."""
    known = list(presets)
    if quant.lower() in known:
        return quant.lower()
    near = difflib.get_close_matches(quant.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)};"
    raise UserError(f"unknown quantization '{quant}': {hint} 'packlight formats' lists them all")
