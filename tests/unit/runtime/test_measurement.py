from __future__ import annotations

import dataclasses
import json

import pytest

from runtime.budget import Budget, judge
from runtime.measurement import Measurement, MemorySplit, RunOptions, Stat, Trials


def measurement(**changes):
    values = {
        "load_s": 0.5, "first_token_ms": Stat.of([100.0]), "prefill_tokens_per_s": Stat.of([200.0]),
        "decode_tokens_per_s": Stat.of([10.0]), "peak_rss_bytes": 1000, "memory": MemorySplit(600, 200, 100, 100),
        "second_turn_growth_bytes": 0, "major_page_faults": 0, "options": RunOptions(threads=2), "trials": Trials(),
        "host": {"cpu": "x"}, "command": "packlight measure", "notes": ("a note",),
        "cap": {"method": "cgroup-v1", "bytes": 5},
    }  # fmt: skip
    return Measurement(**{**values, **changes})


def test_stat_by_hand():
    stat = Stat.of([10.0, 30.0, 20.0, 50.0, 40.0])
    assert (stat.median, stat.values) == (30.0, (10.0, 30.0, 20.0, 50.0, 40.0))
    assert stat.p95 == pytest.approx(48.0)  # rank 0.95 * 4 = 3.8: between 40 and 50
    assert stat.spread == pytest.approx(40 / 30)


def test_p95_is_the_bad_side_of_a_speed():
    assert Stat.of([10.0, 30.0, 20.0, 50.0, 40.0], higher_is_better=True).p95 == pytest.approx(12.0)


def test_one_value_has_no_spread():
    assert Stat.of([7.0]) == Stat(median=7.0, p95=7.0, spread=0.0, values=(7.0,))


def test_measurement_survives_json():
    made = measurement()
    assert Measurement.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_limits_hold_at_equality_and_fail_one_beyond():
    limits = Budget(
        max_memory_bytes=1000, max_artifact_bytes=99, max_load_s=0.5, max_first_token_ms=99.9,
        min_prefill_tokens_per_s=200.0, min_decode_tokens_per_s=10.1,
    )  # fmt: skip
    verdict = {line.name: line.ok for line in judge(100, measurement(), limits)}
    assert verdict == {
        "size": False, "peak memory": True, "load": True, "first token": False, "prefill": True, "decode": False,
    }  # fmt: skip


def test_without_a_limit_there_is_no_verdict():
    assert {line.ok for line in judge(100, measurement(), Budget())} == {None}


def test_the_cold_first_token_is_a_line_of_its_own_where_it_was_measured():
    cold = dataclasses.replace(measurement(), cold_first_token_ms=1234.5)
    lines = {line.name: line for line in judge(100, cold, Budget())}
    assert (lines["first token, cold file"].text, lines["first token, cold file"].ok) == ("1,234 ms", None)
    assert "first token, cold file" not in {line.name for line in judge(100, measurement(), Budget())}


def encoder(**changes):
    values = {"first_token_ms": None, "decode_tokens_per_s": None, "latency_ms": Stat.of([4.0, 5.0, 6.0])}
    return measurement(**{**values, **changes})


def test_json_has_only_what_the_kind_of_model_has():
    decoder_keys, encoder_keys = set(measurement().to_json()), set(encoder().to_json())
    assert decoder_keys - encoder_keys == {"first_token_ms", "decode_tokens_per_s"}
    assert encoder_keys - decoder_keys == {"latency_ms"}
    assert Measurement.from_json(json.loads(json.dumps(encoder().to_json()))) == encoder()


def test_lines_of_an_encoder():
    lines = {line.name: line for line in judge(100, encoder(cold_first_token_ms=9.0), Budget(max_latency_ms=4.9))}
    assert list(lines) == ["size", "peak memory", "load", "latency, cold file", "latency", "throughput"]
    assert (lines["latency"].text, lines["latency"].limit_text, lines["latency"].ok) == ("5.0 ms", "≤ 4.9 ms", False)
    assert {line.ok for line in judge(100, encoder(), Budget(max_latency_ms=5.0))} == {None, True}


def test_a_limit_on_what_a_model_does_not_have_fails():
    decode = {line.name: line.ok for line in judge(100, encoder(), Budget(min_decode_tokens_per_s=1.0))}
    assert decode["decode"] is False
    latency = {line.name: line.ok for line in judge(100, measurement(), Budget(max_latency_ms=1e9))}
    assert latency["latency"] is False


def test_the_default_prompt_goes_by_the_kind_of_model():
    assert Trials().resolved(encoder=False).prompt_tokens == 512
    assert Trials().resolved(encoder=True).prompt_tokens == 128
    assert Trials(prompt_tokens=7).resolved(encoder=True).prompt_tokens == 7
