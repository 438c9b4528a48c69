from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest

from targets.drift import Drift, Parity, TokenMismatch
from targets.encoder_drift import (
    ENCODER_THRESHOLDS,
    EncoderDrift,
    EncoderDriftAccumulator,
    EncoderThresholds,
    cosine,
    drift_from_json,
    encoder_thresholds_for,
    judge_encoder,
    pair_similarities,
    ranks,
    spearman,
)

PARITY = Parity(n_strings=3, mismatches=(), bos=True, bos_difference=None, chat_template=None, chat_difference=None)
DRIFT = EncoderDrift(
    mean_cosine=0.996, min_cosine=0.97, token_cosine=0.99, length_ratio=1.05, rank_correlation=0.985,
    label_agreement=None, max_abs_difference=0.02, n_texts=8, n_tokens=100, task="feature-extraction", max_tokens=64,
    text_name="t", text_sha256="0" * 64, parity=PARITY, engine="e", reference="r", notes=("n",),
)  # fmt: skip


def failing(drift: EncoderDrift, limits: EncoderThresholds = EncoderThresholds()) -> list[str]:  # noqa: B008 (frozen)
    return [line.name for line in judge_encoder(drift, limits) if line.ok is False]


def test_cosine_by_hand() -> None:
    a = np.array([[3.0, 4.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]], np.float32)
    b = np.array([[4.0, 3.0], [0.0, 2.0], [-5.0, 0.0], [0.0, 0.0], [1.0, 0.0]], np.float32)
    np.testing.assert_allclose(cosine(a, b), [24 / 25, 0.0, -1.0, 1.0, 0.0], atol=1e-12)


def test_every_pair_once() -> None:
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    np.testing.assert_allclose(pair_similarities(rows), [0.0, math.sqrt(0.5), math.sqrt(0.5)])


def test_ranks_share_ties() -> None:
    np.testing.assert_array_equal(ranks(np.array([30.0, 10.0, 20.0, 10.0])), [3.0, 0.5, 2.0, 0.5])


def test_spearman_by_hand() -> None:
    one = np.array([1.0, 2.0, 3.0, 4.0])
    assert spearman(one, np.exp(one)) == pytest.approx(1.0)
    assert spearman(one, -one) == pytest.approx(-1.0)
    # 1 - 6 * sum(d^2) / (n * (n^2 - 1)) with d = 0, 0, 1, 1
    assert spearman(one, np.array([1.0, 2.0, 4.0, 3.0])) == pytest.approx(1 - 6 * 2 / 60)
    assert spearman(one, np.ones(4)) == 0.0
    assert spearman(np.ones(4), one) is None
    assert spearman(one[:1], one[:1]) is None


def test_statistics_of_embeddings() -> None:
    accumulator = EncoderDriftAccumulator()
    source = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], np.float32)
    artifact = np.array([[2.0, 0.0], [0.0, 4.0], [2.0, 0.0]], np.float32)
    for ours, theirs in zip(source, artifact, strict=True):
        accumulator.add_embeddings(ours, theirs)
        accumulator.add_states(np.stack([ours, ours]), np.stack([ours, theirs]))
        accumulator.count(2)
    found = accumulator.statistics()
    low = math.sqrt(0.5)
    assert found.mean_cosine == pytest.approx((2 + low) / 3)
    assert found.min_cosine == pytest.approx(low)
    assert found.token_cosine == pytest.approx((5 + low) / 6)
    assert found.length_ratio == pytest.approx(8 / (3 + math.sqrt(2)))
    # similarities of the pairs: source 0, .71, .71; artifact 0, 1, 0; ranks 0, 1.5, 1.5 and 0.5, 2, 0.5
    assert found.rank_correlation == pytest.approx(0.5)
    assert found.label_agreement is None
    assert (found.max_abs_difference, found.n_texts, found.n_tokens) == (2.0, 3, 6)


def test_statistics_of_labels_and_scores() -> None:
    texts = EncoderDriftAccumulator()
    texts.add_logits(np.array([1.0, 2.0]), np.array([1.5, 1.0]))
    texts.add_logits(np.array([3.0, 2.0]), np.array([3.0, 2.0]))
    tokens = EncoderDriftAccumulator()
    tokens.add_logits(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [2.0, 1.0]]), np.array([[0.0, 1.0]] * 4))
    scores = EncoderDriftAccumulator()
    for ours, theirs in ((0.1, 0.5), (0.2, 0.7), (0.9, 0.6)):
        scores.add_logits(np.array([ours]), np.array([theirs]))
    for accumulator in (texts, tokens, scores):
        accumulator.count(1)
    assert (texts.statistics().label_agreement, texts.statistics().max_abs_difference) == (0.5, 1.0)
    assert tokens.statistics().label_agreement == 0.25
    assert scores.statistics().rank_correlation == pytest.approx(0.5)
    assert scores.statistics().label_agreement is None
    with pytest.raises(ValueError, match="no texts"):
        EncoderDriftAccumulator().statistics()


def test_json_round_trip_of_both_kinds() -> None:
    mismatch = TokenMismatch("12", add_special=True, source_ids=(1, 2), artifact_ids=(3,))
    parity = dataclasses.replace(PARITY, mismatches=(mismatch,), bos=False, bos_difference="x")
    for drift in (dataclasses.replace(DRIFT, parity=parity), dataclasses.replace(DRIFT, dead_tensors=("a",))):
        assert drift_from_json(json.loads(json.dumps(drift.to_json()))) == drift
    decoder = Drift(0.1, 0.2, 3.0, 3.0, 1.0, 0.9, 7, 1, 16, "t", "0", PARITY, "e", "r")
    assert drift_from_json(json.loads(json.dumps(decoder.to_json()))) == decoder


def test_thresholds_go_by_bits_and_grow_stricter() -> None:
    assert encoder_thresholds_for(32.0) is ENCODER_THRESHOLDS[0][1]
    assert encoder_thresholds_for(8.1).min_cosine == 0.99
    assert encoder_thresholds_for(4.6).min_cosine == 0.93
    for (more, strict), (less, loose) in itertools.pairwise(ENCODER_THRESHOLDS):
        assert more > less
        assert all(a > b for a, b in zip(dataclasses.astuple(strict), dataclasses.astuple(loose), strict=True))


@pytest.mark.parametrize(
    ("change", "limits", "name"),
    [
        ({}, EncoderThresholds(min_cosine=0.9961), "cosine"),
        ({"min_cosine": 0.89}, EncoderThresholds(min_cosine=0.99), "cosine, worst text"),
        ({}, EncoderThresholds(min_rank_correlation=0.99), "rank correlation"),
        ({"label_agreement": 0.9}, EncoderThresholds(min_label_agreement=0.91), "label agreement"),
        ({"length_ratio": 5.1}, EncoderThresholds(), "length of embeddings"),
        ({"length_ratio": 0.89}, EncoderThresholds(), "length of embeddings"),
        ({"mean_cosine": math.nan}, EncoderThresholds(min_cosine=0.5), "cosine"),
        ({"dead_tensors": ("a",)}, EncoderThresholds(), "matrices"),
        ({"parity": dataclasses.replace(PARITY, bos=False)}, EncoderThresholds(), "special tokens"),
        ({"parity": dataclasses.replace(PARITY, mismatches=(TokenMismatch("a", False, (1,), (2,)),))},
         EncoderThresholds(), "token ids"),
    ],
)  # fmt: skip
def test_each_fault_fails_its_own_line_only(change: dict[str, object], limits: EncoderThresholds, name: str) -> None:
    assert failing(dataclasses.replace(DRIFT, **change), limits) == [name]  # type: ignore[arg-type]


def test_limits_hold_at_equality_and_only_where_there_is_a_number() -> None:
    assert failing(DRIFT, EncoderThresholds(min_cosine=0.99, min_rank_correlation=0.985)) == []
    names = [line.name for line in judge_encoder(DRIFT, ENCODER_THRESHOLDS[1][1])]
    assert names == [
        "cosine", "cosine, worst text", "cosine of tokens", "rank correlation", "largest difference",
        "length of embeddings", "token ids", "special tokens",
    ]  # fmt: skip
    classifier = dataclasses.replace(
        DRIFT, mean_cosine=None, min_cosine=None, token_cosine=None, length_ratio=None, rank_correlation=None,
        label_agreement=0.97, task="text-classification",
    )  # fmt: skip
    assert failing(classifier, ENCODER_THRESHOLDS[1][1]) == []
    assert failing(classifier, ENCODER_THRESHOLDS[0][1]) == ["label agreement"]
