from __future__ import annotations

import json

import pytest

from benchmarks.harness_noise import BENCH, FIGURES, bench, figures, rows, table, variation
from runtime.measurement import Measurement, MemorySplit, RunOptions, Stat, Trials


def run(peak: int, warm: float | None = 0.25) -> Measurement:
    return Measurement(
        0.5, Stat.of([90.0, 100.0, 120.0]), Stat.of([200.0]), Stat.of([10.0]), peak, MemorySplit(1, 1, 1, 1), 0, 0,
        RunOptions(), Trials(), {}, "", warm_load_s=warm,
    )  # fmt: skip


def test_the_variation_by_hand() -> None:
    assert variation([1.0, 2.0, 3.0]) == pytest.approx(0.5)
    assert variation([4.0, 4.0]) == 0


def test_every_figure_over_the_runs() -> None:
    assert figures(run(2_000_000))["first token, ms"] == 100.0
    found = rows([figures(run(size)) for size in (1_000_000, 2_000_000, 3_000_000)])
    assert [row["figure"] for row in found] == list(FIGURES)
    assert (found[0]["values"], found[0]["median"]) == ([1.0, 2.0, 3.0], 2.0)
    assert "| peak memory, MB | 2.00 | 50.00% |" in table({"runs": 3, "rows": found})
    assert "| over 3 runs | median |" in table({"runs": 3, "rows": found})


def test_what_a_run_does_not_have_is_left_out() -> None:
    without = [figures(run(1, warm=None)), figures(run(2))]
    assert "load, file in cache, s" not in {row["figure"] for row in rows(without)}


def test_what_llama_bench_prints_is_one_row_more() -> None:
    said = json.dumps([{"n_prompt": 128, "n_gen": 0, "samples_ts": [400.0, 500.0, 450.0]},
                       {"n_prompt": 0, "n_gen": 64, "samples_ts": [40.0, 44.0, 43.0]}])  # fmt: skip
    found = bench(said)
    assert found == {BENCH[0]: 450.0, BENCH[1]: 43.0}
    assert [row["figure"] for row in rows([found, found])] == list(BENCH)
