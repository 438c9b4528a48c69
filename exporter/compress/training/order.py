"""In which order a training takes texts of unlike lengths.

A batch is filled up to its longest text, and what fills it is computed for nothing; so those of about the same length
are learned together. transformers' `group_by_length` does the same, but its batches come with the longest first, over
and over; here they come in an order by chance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Sampler

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TOGETHER = 32
"""Batches, at most, whose texts are sorted by length among themselves: more would leave less to chance."""
APART = 4
"""A pass over all texts has as many groups of such batches, at least: fewer would make the same batches every time."""


class OfLikeLength(Sampler[int]):
    """Numbers of the texts of a whole training: every text once before any comes again, each batch of like lengths.

    lengths: of the texts, in tokens; batch: texts of one update; updates: how many; seed: of the order
    It is one epoch to who asks: what goes on in the middle leaves out as many as were had, and gets the same ones.
    """

    def __init__(self, lengths: Sequence[int], batch: int, updates: int, seed: int) -> None:
        self._lengths, self._batch, self._updates, self._seed = np.array(lengths), batch, updates, seed

    def __len__(self) -> int:
        return self._batch * self._updates

    def __iter__(self) -> Iterator[int]:
        chance = np.random.default_rng(self._seed)
        together = max(1, min(TOGETHER, len(self._lengths) // (APART * self._batch))) * self._batch
        rest, left = np.array([], np.int64), self._updates
        while left:
            order = np.concatenate([rest, chance.permutation(len(self._lengths))])
            count = min(left, len(order) // self._batch)  # none, where a batch takes more texts than there are
            whole, rest = order[: count * self._batch], order[count * self._batch :]
            for start in range(0, len(whole), together):
                some = whole[start : start + together]
                batches = some[np.argsort(self._lengths[some], kind="stable")].reshape(-1, self._batch)
                yield from chance.permutation(batches).flatten().tolist()
            left -= count
