"""`--quant` of a user as a preset's name."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from runtime.errors import UserError
from targets.gguf.presets import ALIASES

if TYPE_CHECKING:
    from collections.abc import Iterable


def known_quant(quant: str, presets: Iterable[str]) -> str:
    """The preset that `quant` names in either case, or by llama-quantize's short name of it.

    Raises UserError that names the nearest ones.
    """
    known = list(presets)
    name = ALIASES.get(quant.lower(), quant.lower())
    if name in known:
        return name
    near = difflib.get_close_matches(quant.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)};"
    raise UserError(f"unknown quantization '{quant}': {hint} 'packlight formats' lists them all")
