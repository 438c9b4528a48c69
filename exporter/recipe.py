"""What to do with a model, in order, and never how the result is packed: `Recipe`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Recipe:
    """The steps of a compression. For now one: quantize by a preset of the target, lower case, such as "q4_k_m"."""

    quant: str

    @classmethod
    def from_quant(cls, quant: str, presets: Iterable[str]) -> Recipe:
        """The recipe of `--quant`, in either case. Raises UserError that names the nearest presets."""
        known = list(presets)
        if quant.lower() in known:
            return cls(quant.lower())
        near = difflib.get_close_matches(quant.lower(), known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)};"
        raise UserError(f"unknown quantization '{quant}': {hint} 'packlight formats' lists them all")
