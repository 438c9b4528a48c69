from __future__ import annotations

import dataclasses
import json

import pytest

from runtime.budget import Budget, judge
from runtime.measurement import Measurement, MemorySplit, RunOptions, Stat, Trials
from runtime.series import MemorySample, Sustained, Window


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


NEW = (
    "load_is_cold", "warm_load_s", "mapped_weights_bytes", "full_context_tokens_per_s", "turn_rss_bytes", "timeline",
    "sustained",
)  # fmt: skip
LOAD = Sustained(20.0, 100, (*[Window(1.0, 10.0)] * 16, *[Window(2.0, 4.0)] * 4))


def test_a_measurement_of_before_is_read():
    old = measurement().to_json()
    for name in NEW:
        del old[name]
    for name in ("turns", "fill_context", "sustained_s"):
        del old["trials"][name]
    old["resident"] = {"anonymous_bytes": 1, "file_bytes": 2, "shared_bytes": 3, "proportional_bytes": None}
    found = Measurement.from_json(old)
    assert dataclasses.replace(found, resident=None) == measurement()
    assert found.resident.peak_proportional_bytes is None


def test_what_is_measured_over_time_survives_json():
    made = measurement(
        timeline=(MemorySample(0.1, 9, None, "loading"), MemorySample(0.2, 10, 4, "warm-up")), turn_rss_bytes=(1, 2),
        sustained=LOAD, load_is_cold=True, warm_load_s=0.1, mapped_weights_bytes=0, full_context_tokens_per_s=3.0,
    )  # fmt: skip
    plain = json.loads(json.dumps(made.to_json()))
    assert plain["timeline"][0] == {"seconds": 0.1, "rss_bytes": 9, "anonymous_bytes": None, "phase": "loading"}
    assert plain["sustained"]["windows"][0] == {
        "seconds": 1.0, "tokens_per_s": 10.0, "temperature_c": None, "frequency_hz": None,
    }  # fmt: skip
    assert set(plain["sustained"]) == {"seconds", "tokens", "windows", "energy_j", "energy_source"}
    assert Measurement.from_json(plain) == made


def test_lines_of_what_was_asked_for_beside():
    more = measurement(
        mapped_weights_bytes=5_000_000, warm_load_s=0.25, full_context_tokens_per_s=8.0, sustained=LOAD,
        turn_rss_bytes=(1_000_000, 4_000_000, 3_000_000),
    )  # fmt: skip
    lines = {line.name: (line.text, line.ok) for line in judge(100, more, Budget(min_sustained_tokens_per_s=4.0))}
    assert list(lines) == [
        "size", "peak memory", "of it mapped weights", "load", "load, file in cache", "first token", "prefill",
        "decode", "decode, full context", "growth over 3 turns", "sustained",
    ]  # fmt: skip
    assert lines["of it mapped weights"] == ("5.0 MB", None)
    assert lines["load, file in cache"] == ("0.25 s", None)
    assert lines["decode, full context"] == ("8.0 tokens/s", None)
    assert lines["growth over 3 turns"] == ("2.0 MB", None)
    assert lines["sustained"] == ("4.0 tokens/s; first tenth 10.0, last tenth 4.0 (-60%)", True)
    read = {line.name: line.text for line in judge(100, measurement(mapped_weights_bytes=0), Budget())}
    assert read["of it mapped weights"] == "none"


def test_a_sustained_limit_fails_one_beyond_and_where_nothing_was_measured():
    limit = Budget(min_sustained_tokens_per_s=4.1)
    for load in (LOAD, None):
        lines = {line.name: line for line in judge(100, measurement(sustained=load), limit)}
        assert (lines["sustained"].ok, lines["sustained"].limit_text) == (False, "≥ 4.1 tokens/s")
    assert "sustained" not in {line.name for line in judge(100, measurement(), Budget())}


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
