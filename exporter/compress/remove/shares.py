"""How many units each layer keeps where their number is given for all together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]


def shares(scores: Sequence[Floats], kept: int, multiple: int) -> list[int]:
    """Units to keep of every layer, in whole blocks, so that those that go have the least sum of scores.

    scores: of the units of each layer, comparable between layers; kept: of all, at least a block a layer
    multiple: units of a block; it divides `kept` and every layer's units
    """
    blocks = []
    for layer, own in enumerate(scores):
        # A layer's best units come first, so its blocks' sums fall: the largest of all blocks never leave a hole.
        sums = np.sort(own)[::-1].astype(np.float64).reshape(-1, multiple).sum(1)
        blocks += [(float(value), layer) for value in sums[1:]]
    chosen = sorted(blocks, key=lambda block: (-block[0], block[1]))[: kept // multiple - len(scores)]
    found = [multiple] * len(scores)
    for _, layer in chosen:
        found[layer] += multiple
    return found
