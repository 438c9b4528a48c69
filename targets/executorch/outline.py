"""What an ExecuTorch program will be before it is written; see `targets.pytorch.outline`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from targets.executorch.presets import PRESETS
from targets.pytorch import outline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from targets.facts import ModelFacts
    from targets.outline import Outlined


def executorch(facts: ModelFacts, quants: Sequence[str] | None = None, engine: str | None = None) -> Outlined:
    """See `targets.outline.Outlined`; engine: means nothing here."""
    del engine
    return outline.outlines(facts, quants, "executorch", PRESETS)
