"""The order in which texts of unlike lengths are learned from."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.recipes import run
from support.tiny_encoders import make_tiny_encoder

from exporter.compress.training.lessons import Lessons
from exporter.compress.training.order import OfLikeLength

if TYPE_CHECKING:
    from pathlib import Path

LENGTHS = np.random.default_rng(0).integers(4, 128, 1000).tolist()


def filled_up(batches: np.ndarray) -> float:
    """Tokens that are computed, over those that are asked for."""
    lengths = np.array(LENGTHS)[batches]
    return float((lengths.max(1) * lengths.shape[1]).sum() / lengths.sum())


def test_every_text_comes_as_often() -> None:
    order = OfLikeLength(LENGTHS, 16, 300, 0)
    found = list(order)
    assert len(found) == len(order) == 4800
    counts = Counter(found)
    assert set(counts) == set(range(1000))
    assert set(counts.values()) == {4, 5}
    assert len(set(found[:992])) == 992  # 62 batches; the other 8 come with the next 1000, in 63
    assert Counter(found[992:2000]).total() - len(set(found[992:2000])) == 8
    assert set(found[:992]) | set(found[992:2000]) == set(range(1000))


@pytest.mark.parametrize("count", [60, 240, 1000])
def test_a_batch_is_of_different_texts(count: int) -> None:
    lengths = np.random.default_rng(0).integers(4, 24, count).tolist()
    batches = np.array(list(OfLikeLength(lengths, 8, 200, 0))).reshape(-1, 8)
    different = [len(set(batch)) for batch in batches.tolist()]
    assert np.mean(different) > 7.9
    if count > 60:  # and not of the same ones every time
        assert len({tuple(sorted(batch)) for batch in batches.tolist()}) > 190


def test_a_batch_is_of_like_lengths() -> None:
    found = np.array(list(OfLikeLength(LENGTHS, 16, 320, 0))).reshape(-1, 16)
    many = np.random.default_rng(0).integers(4, 128, 10_000)
    of_many = np.array(list(OfLikeLength(many.tolist(), 16, 320, 0))).reshape(-1, 16)
    by_chance = np.random.default_rng(1).permutation(1000)[:992].reshape(-1, 16)
    assert filled_up(by_chance) > 1.7
    assert filled_up(found) < 1.1
    assert (many[of_many].max(1) * 16).sum() / many[of_many].sum() < 1.05


def test_batches_come_by_chance_and_by_seed() -> None:
    first, again, other = (list(OfLikeLength(LENGTHS, 16, 64, seed)) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    longest = np.array(LENGTHS)[np.array(first).reshape(-1, 16)].max(1)
    grown = np.diff(longest) > 0
    assert 0.3 < grown.mean() < 0.7


def test_fewer_texts_than_a_batch_takes() -> None:
    assert Counter(OfLikeLength([5, 9], 8, 3, 0)) == {0: 12, 1: 12}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_training_takes_it(accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No batch has texts of lengths that lie far apart, and the parts of one belong together."""
    seen: list[list[int]] = []
    collate = Lessons.collate

    def watched(self: Lessons, pieces: Any) -> Any:
        seen.append([len(one["input_ids"]) for one in pieces])
        return collate(self, pieces)

    monkeypatch.setattr(Lessons, "collate", watched)
    text = {"source": "help", "chunks": 512, "tokens": 24}
    step = {"step": "distill", "updates": 20, "batch": 8, "accumulate": accumulate, "learning_rate": 1e-3, "text": text}
    source = make_tiny_encoder(tmp_path / "model", "Bert", "feature-extraction", num_hidden_layers=2)
    run(source, tmp_path / "out", {"step": "remove", "units": "layers", "count": 1, "scores": "spaced"}, step)
    parts = [one for one in seen if len(one) == 8 // accumulate]  # those that judge come one by one
    assert len(parts) == 20 * accumulate
    whole = np.array(parts).reshape(20, 8)
    assert (np.diff(whole) >= 0).all()  # sorted, over both parts
    assert np.ptp(whole, axis=1).mean() < np.ptp(whole) / 3
