from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest

from targets.drift import (
    THRESHOLDS,
    Drift,
    DriftAccumulator,
    Parity,
    SpanKl,
    Thresholds,
    TokenMismatch,
    judge,
    kl_divergence,
    log_softmax,
    thresholds_for,
)

PARITY = Parity(n_strings=3, mismatches=(), bos=True, bos_difference=None, chat_template=True, chat_difference=None)
DRIFT = Drift(
    mean_kl=0.05, p99_kl=0.3, perplexity=11.0, source_perplexity=10.0, perplexity_ratio=1.1, same_top1=0.9,
    n_tokens_scored=510, n_chunks=2, chunk_tokens=512, text_name="t", text_sha256="0" * 64, parity=PARITY,
    engine="e", reference="r", notes=("n",),
)  # fmt: skip


def failing(drift: Drift, thresholds: Thresholds = Thresholds()) -> list[str]:  # noqa: B008 (frozen)
    return [line.name for line in judge(drift, thresholds) if line.ok is False]


def test_log_softmax_of_hand_computed_values() -> None:
    expected = [math.log(0.25), math.log(0.75)]
    for shift in (0.0, 5000.0):  # exp(5000) overflows: the maximum has to go first
        logits = np.array([[0.0 + shift, math.log(3) + shift]])
        np.testing.assert_allclose(log_softmax(logits)[0], expected, atol=1e-12)


def test_kl_of_two_coins_is_in_nats_and_from_source_to_artifact() -> None:
    fair, biased = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    assert kl_divergence(fair, biased)[0] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert kl_divergence(biased, fair)[0] == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert kl_divergence(fair, fair)[0] == 0.0


def naive(source: np.ndarray, artifact: np.ndarray, following: np.ndarray) -> dict[str, float]:
    """The definitions, position by position, in Python floats."""
    kls, nll_p, nll_q, same = [], 0.0, 0.0, 0
    for p_logits, q_logits, token in zip(source.tolist(), artifact.tolist(), following.tolist(), strict=True):
        p_sum, q_sum = math.fsum(map(math.exp, p_logits)), math.fsum(map(math.exp, q_logits))
        p, q = ([math.exp(x) / s for x in logits] for logits, s in ((p_logits, p_sum), (q_logits, q_sum)))
        kls.append(math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
        nll_p, nll_q = nll_p - math.log(p[token]), nll_q - math.log(q[token])
        same += p.index(max(p)) == q.index(max(q))
    kls.sort()
    rank = 0.99 * (len(kls) - 1)
    low = int(rank)
    n = len(kls)
    return {
        "mean_kl": math.fsum(kls) / n, "p99_kl": kls[low] + (rank - low) * (kls[min(low + 1, n - 1)] - kls[low]),
        "perplexity": math.exp(nll_q / n), "source_perplexity": math.exp(nll_p / n),
        "perplexity_ratio": math.exp(nll_q / n) / math.exp(nll_p / n), "same_top1": same / n, "n_tokens_scored": n,
    }  # fmt: skip


@pytest.mark.parametrize("cuts", [(70,), (16, 54), (1, 39, 30)])
def test_streaming_statistics_equal_the_naive_ones(cuts: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    source = (3 * rng.normal(size=(70, 40))).astype(np.float32)
    artifact = (source + 0.5 * rng.normal(size=source.shape)).astype(np.float32)
    following = rng.integers(0, 40, size=70)
    accumulator, start = DriftAccumulator(), 0
    for n in cuts:
        part = slice(start, start + n)
        accumulator.add(source[part], artifact[part], following[part])
        start += n
    assert vars(accumulator.statistics()) == pytest.approx(naive(source, artifact, following), rel=1e-9)


def test_divergence_by_position_is_the_mean_over_chunks_at_that_position() -> None:
    """Two chunks of three positions; against a fair coin, logits (0, log 3) cost half of log(4/3)."""
    fair, biased = [0.0, 0.0], [0.0, math.log(3)]
    cost = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    accumulator, following = DriftAccumulator(), np.zeros(3, np.int64)
    source = np.array([fair] * 3, np.float32)
    accumulator.add(source, np.array([fair, fair, biased], np.float32), following)
    accumulator.add(source, np.array([fair, biased, biased], np.float32), following)
    spans = accumulator.by_position(100)
    assert [(span.first, span.last) for span in spans] == [(100, 100), (101, 101), (102, 102)]
    assert [span.mean_kl for span in spans] == pytest.approx([0.0, cost / 2, cost])


def test_many_positions_are_told_in_sixteen_spans_that_miss_none() -> None:
    rng = np.random.default_rng(1)
    source = rng.normal(size=(255, 5)).astype(np.float32)
    artifact = rng.normal(size=(255, 5)).astype(np.float32)
    accumulator = DriftAccumulator()
    for _ in range(2):
        accumulator.add(source, artifact, np.zeros(255, np.int64))
    spans = accumulator.by_position(256)
    assert len(spans) == 16
    assert [spans[0].first, spans[-1].last] == [256, 510]
    assert all(after.first == before.last + 1 for before, after in itertools.pairwise(spans))
    sizes = [span.last - span.first + 1 for span in spans]
    whole = sum(span.mean_kl * size for span, size in zip(spans, sizes, strict=True)) / 255
    assert whole == pytest.approx(accumulator.statistics().mean_kl)
    assert DriftAccumulator().by_position(0) == ()


def test_a_report_of_an_older_packlight_has_no_positions() -> None:
    drift = dataclasses.replace(DRIFT, kl_by_position=(SpanKl(256, 271, 0.05),))
    data = json.loads(json.dumps(drift.to_json()))
    assert Drift.from_json(data) == drift
    del data["kl_by_position"]
    assert Drift.from_json(data).kl_by_position == ()


def test_no_positions_is_an_error() -> None:
    with pytest.raises(ValueError, match="no positions"):
        DriftAccumulator().statistics()


def test_json_round_trip() -> None:
    mismatch = TokenMismatch("12", add_special=True, source_ids=(1, 2), artifact_ids=(3,))
    parity = dataclasses.replace(PARITY, mismatches=(mismatch,), bos=False, bos_difference="x", chat_template=None)
    drift = dataclasses.replace(DRIFT, parity=parity, dead_tensors=("a",))
    assert Drift.from_json(json.loads(json.dumps(drift.to_json()))) == drift


def test_thresholds_go_by_bits_and_grow_stricter() -> None:
    assert thresholds_for(16.1) is THRESHOLDS[0][1]
    assert thresholds_for(8.5).max_mean_kl == 0.03
    assert thresholds_for(5.9).max_mean_kl == 0.2
    assert thresholds_for(5.899).max_mean_kl == 0.55
    assert thresholds_for(0.0) is THRESHOLDS[-1][1]
    for (more, strict), (less, loose) in itertools.pairwise(THRESHOLDS):
        assert more > less
        for name in ("max_mean_kl", "max_p99_kl", "max_perplexity_ratio"):
            assert getattr(strict, name) < getattr(loose, name)
        assert strict.min_same_top1 > loose.min_same_top1


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        (Thresholds(max_mean_kl=0.049), "KL divergence"),
        (Thresholds(max_p99_kl=0.29), "KL divergence, 99th percentile"),
        (Thresholds(max_perplexity_ratio=1.09), "perplexity ratio"),
        (Thresholds(min_same_top1=0.91), "same top-1"),
    ],
)
def test_each_limit_fails_its_own_line_only(limits: Thresholds, name: str) -> None:
    assert failing(DRIFT, limits) == [name]
    assert failing(DRIFT, Thresholds(0.05, 0.3, 1.1, 0.9)) == []


def test_without_limits_numbers_are_not_judged_but_parity_is() -> None:
    oks = {line.name: line.ok for line in judge(DRIFT, Thresholds())}
    assert oks["KL divergence"] is None
    assert oks["token ids"] is oks["BOS"] is oks["chat template"] is oks["matrices"] is True


def test_nan_fails() -> None:
    assert failing(dataclasses.replace(DRIFT, mean_kl=math.nan), THRESHOLDS[-1][1]) == ["KL divergence"]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"mismatches": (TokenMismatch("a", False, (1,), (2,)),)}, "token ids"),
        ({"bos": False, "bos_difference": "d"}, "BOS"),
        ({"chat_template": False, "chat_difference": "d"}, "chat template"),
    ],
)
def test_parity_failures_have_their_lines(change: dict[str, object], name: str) -> None:
    assert failing(dataclasses.replace(DRIFT, parity=dataclasses.replace(PARITY, **change))) == [name]


def test_no_template_on_either_side_holds() -> None:
    assert failing(dataclasses.replace(DRIFT, parity=dataclasses.replace(PARITY, chat_template=None))) == []


def test_dead_tensors_fail() -> None:
    assert failing(dataclasses.replace(DRIFT, dead_tensors=("blk.0.attn_k.weight",))) == ["matrices"]
