"""Speeds from a calibration, and what a bandwidth allows."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from runtime.errors import UserError
from targets.outline import Work
from targets.speed import EngineSpeed, HostSpeed, decode_bound, load_speed

ENGINE = EngineSpeed(
    {"A": 1e-9, "B": 2e-9},
    {"A": 1e-10, "B": 3e-10},
    layer_s=1e-5,
    attention_s={"f16": 1e-9, "q8_0": 5e-10},
    prompt_attention_s={"f16": 1e-10, "q8_0": 2e-10},
)
HOST = HostSpeed("a cpu", 2, 10e9, {"gguf": ENGINE}, "2026-01-01T00:00:00Z")
WORK = Work({"A": 10**6, "B": 10**6}, {"B": 5 * 10**5}, 2_000_000, n_layers=10, kv_elements=1000, attention=4000)


@dataclass
class Outlined:
    format: str = "gguf"
    encoder: bool = False
    asked: Work = WORK

    def work(self):
        return self.asked


def test_a_decoded_token_pays_for_matrices_layers_and_what_lies_behind_it():
    seconds = 1e-3 + 2e-3 + 10 * 1e-5 + 4000 * 100 * 1e-9
    assert HOST.decode(Outlined(), 100, "f16") == pytest.approx(1 / seconds)
    assert HOST.decode(Outlined(), 200, "q8_0") == pytest.approx(1 / seconds)


def test_a_prompt_pays_for_the_head_once_and_for_half_of_itself():
    seconds = 10**6 * 1e-10 + 5 * 10**5 * 3e-10 + 4000 * 256 * 1e-10
    assert HOST.prefill(Outlined(), 512, "f16") == pytest.approx(1 / seconds)
    assert HOST.prefill(Outlined(), 256, "q8_0") == pytest.approx(1 / seconds)


def test_what_was_not_measured_is_not_made_up():
    assert HOST.decode(Outlined(format="onnx"), 1, "f16") is None
    assert HOST.prefill(Outlined(format="onnx"), 1, "f16") is None
    unknown = Work({"C": 1}, {}, 1, 1)
    assert HOST.decode(Outlined(asked=unknown), 1, "f16") is None
    assert HOST.prefill(Outlined(asked=unknown), 1, "f16") is None
    assert HOST.decode(Outlined(encoder=True), 1, "f16") is None
    assert HOST.prefill(Outlined(encoder=True), 1, "f16") is None  # of llama.cpp: its prompts are decoders'
    assert HOST.decode(Outlined(), 1, "q4_0") is None
    assert HOST.prefill(Outlined(), 1, "q4_0") is None


def test_a_bandwidth_reads_weights_and_cache_once_a_token():
    assert decode_bound(WORK, 10**9, 0, "f16") == pytest.approx(500)
    assert decode_bound(WORK, 10**9, 1000, "f16") == pytest.approx(1e9 / (2_000_000 + 2_000_000))
    assert decode_bound(WORK, 10**9, 1000, "q8_0") == pytest.approx(1e9 / (2_000_000 + 1_062_500))


def test_a_calibration_comes_back(tmp_path):
    path = tmp_path / "speed.json"
    assert load_speed(path) is None
    path.write_text(json.dumps(HOST.to_json()))
    assert load_speed(path) == HOST


@pytest.mark.parametrize(
    "text", ["{", '{"version": 2}', '{"version": 2, "engines": []}', '{"version": 2, "engines": {"gguf": {}}}']
)
def test_a_damaged_one_is_named(tmp_path, text):
    path = tmp_path / "speed.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"speed.json.*calibrate-host"):
        load_speed(path)


@pytest.mark.parametrize("text", ['{"version": 1}', "[]"])
def test_one_of_another_version_is_as_none(tmp_path, text):
    path = tmp_path / "speed.json"
    path.write_text(text)
    assert load_speed(path) is None
