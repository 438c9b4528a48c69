"""The room between a figure and its limit, and what is wrong with limits."""

from __future__ import annotations

import pytest

from benchmarks import thresholds
from targets.drift import Thresholds

LIMITS = Thresholds(max_mean_kl=0.1, max_p99_kl=0.5, max_perplexity_ratio=1.2, min_same_top1=0.8)


@pytest.mark.parametrize(
    ("measure", "value", "room"),
    [("mean_kl", 0.05, 2.0), ("p99_kl", 1.0, 0.5), ("perplexity_ratio", 1.1, 2.0), ("same_top1", 0.95, 4.0)],
)
def test_room_is_the_allowed_loss_over_the_measured_one(measure, value, room):
    assert thresholds.headroom(measure, value, LIMITS) == pytest.approx(room)


def test_a_better_perplexity_than_the_sources_is_no_loss():
    assert thresholds.headroom("perplexity_ratio", 0.99, LIMITS) is None


def _honest(quant: str, bits: float, mean_kl: float, room: float, fails: tuple[str, ...] = ()) -> dict:
    figures = {"mean_kl": mean_kl, "p99_kl": 0.1, "perplexity": 11.0, "source_perplexity": 10.0, "same_top1": 0.9}
    return {"quant": quant, "bits_per_weight": bits, **figures, "headroom": {"mean_kl": room}, "fails": list(fails)}


def test_the_worst_file_of_each_row_of_limits():
    rows = [_honest("a", 8.5, 0.01, 3), _honest("b", 8.1, 0.02, 1.5), _honest("c", 6.0, 0.01, 9)]
    assert [row["quant"] for row in thresholds.worst_of_each_limit(rows)] == ["b", "c"]


def test_complaints():
    rows = [
        _honest("a", 8.5, 0.01, 1.5),
        _honest("b", 8.1, 0.021, 1.43),
        _honest("c", 6.0, 0.3, 0.7, ("KL divergence",)),
    ]
    faults = [
        {"quant": "a", "fault": "x", "fails_loosest": ["same top-1"]},
        {"quant": "b", "fault": "x", "fails_loosest": []},
    ]
    assert thresholds.complaints({"rows": rows, "faults": faults}) == [
        "b: honest, but only 1.43 times the room on mean KL",
        "c: honest, but fails KL divergence",
        "b: x, and passes the loosest limits",
    ]


def test_table_has_the_limit_and_the_room_beside_each_figure():
    fault = {**_honest("q4_k_m", 6.2, 0.25, 1, ("matrices",)), "fault": "x", "honest_mean_kl": 0.05}
    table = thresholds.table({"rows": [_honest("q8_0", 8.5, 0.015, 2)], "faults": [fault]})
    # 8.5 bits: 0.03 nats, 0.15 nats, 1.05 and 90 % in targets/drift.py
    assert (
        "| Q8_0 | 8.50 | 0.0150 (0.03, 2.0x) | 0.100 (0.15, 1.5x) | 1.100 (1.05, 0.5x) | 0.900 (0.9, 1.0x) |" in table
    )
    assert "| x | Q4_K_M | 0.2500 (0.0500) | 0.100 | 1.100 | 0.900 | matrices |" in table
