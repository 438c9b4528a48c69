"""What a TorchScript file will be before it is written; see `targets.pytorch.outline`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from targets.pytorch.outline import outlines
from targets.torchscript.presets import PRESETS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from targets.facts import ModelFacts
    from targets.outline import Outlined


def torchscript(facts: ModelFacts, quants: Sequence[str] | None = None, engine: str | None = None) -> Outlined:
    """See `targets.outline.Outlined`; engine: means nothing here."""
    del engine
    return outlines(facts, quants, "torchscript", PRESETS)


def ptl(facts: ModelFacts, quants: Sequence[str] | None = None, engine: str | None = None) -> Outlined:
    """As `torchscript`, for the lite interpreter."""
    del engine
    return outlines(facts, quants, "ptl", PRESETS)
