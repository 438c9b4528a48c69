"""Is there room to run the source in torch? Asked before hours of conversion, not found out by the kernel's killer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporter.verify.run import DTYPE_BYTES
from runtime.errors import UserError
from runtime.memory import available_bytes
from runtime.units import format_bytes

if TYPE_CHECKING:
    from exporter.verify.run import VerifyOptions
    from targets.facts import ModelFacts


def refuse_too_large(facts: ModelFacts, options: VerifyOptions) -> None:
    """Raise UserError where the weights of the source alone are more than the memory at hand.

    A .gguf source runs mapped in llama.cpp and is not refused.
    """
    room = available_bytes()
    if facts.source == "gguf" or room is None:
        return
    needed = facts.n_stored_params * DTYPE_BYTES[options.dtype]
    if needed > room:
        smaller = "" if DTYPE_BYTES[options.dtype] == 2 else "--source-dtype bfloat16, or "
        raise UserError(
            f"{facts.requested}: comparing with it in {options.dtype} needs {format_bytes(needed)} of memory, "
            f"{format_bytes(room)} are available; use {smaller}--no-verify here and verify on a larger machine"
        )
