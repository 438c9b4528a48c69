"""Calibration: the equations, and real engines on small synthetic models."""

from __future__ import annotations

import pytest

from exporter import calibrate_host
from exporter.calibrate_host import DECODED, LONG, SHORT, Asked, Times, bandwidth_bytes_per_s, calibrate, solve
from exporter.progress import SilentReporter
from runtime.artifact import open_artifact
from runtime.errors import UserError
from runtime.measurement import RunOptions
from runtime.sessions import open_session
from targets.gguf.synthetic import write_gguf
from targets.gguf.types import TYPES
from targets.onnx.synthetic import presets, write_onnx, write_source
from targets.synthetic import Shape

SMALL = Shape(256, 256, 1, 4)


def test_solving_gives_back_what_times_were_made_of():
    element, read = {"base": 1e-10, "small": 5e-11, "halves": 7e-11}, {"base": 1e-11, "small": 2e-11, "halves": 3e-11}
    attention, prompt = {"f32": 3e-10, "f16": 9e-10}, {"f32": 4e-12, "f16": 1e-12}
    layer = 2e-5
    asked = Asked("base", {"f32": "base", "f16": "halves"}, {"base": "f32", "small": "f32", "halves": "f16"})

    def times(run):
        shape, past = run.shape, run.prompt + DECODED / 2
        return Times(
            shape.elements * element[run.label]
            + shape.layers * layer
            + shape.attention * past * attention[run.kv_type],
            shape.elements * read[run.label] + shape.attention * run.prompt / 2 * prompt[run.kv_type],
        )

    found = solve(asked, {run: times(run) for run in asked.runs})
    assert len(asked.runs) == 8  # wide in three labels, deep, and two caches with a short and a long prompt
    assert {run.prompt for run in asked.runs} == {SHORT, LONG}
    assert found.decode_s == pytest.approx(element)
    assert found.prefill_s == pytest.approx(read)
    assert found.layer_s == pytest.approx(layer)
    assert found.attention_s == pytest.approx(attention)
    assert found.prompt_attention_s == pytest.approx(prompt)


def test_what_noise_has_timed_as_nothing_is_not_measured():
    asked = Asked("base", {"f32": "base"}, dict.fromkeys(("base", "free", "slow"), "f32"))
    times = {
        asked.wide("base"): Times(1e-3, 1e-5), asked.deep: Times(9e-3, 1e-6),  # layers take longer than all of it
        asked.around("f32")[0]: Times(1e-3, 1e-5), asked.around("f32")[1]: Times(0.9e-3, 0.9e-5),
        asked.wide("free"): Times(1e-9, 1e-9), asked.wide("slow"): Times(1.0, 1.0),
    }  # fmt: skip
    found = solve(asked, times)
    assert set(found.decode_s) == {"slow"}
    assert (found.attention_s, found.prompt_attention_s) == ({"f32": 0}, {"f32": 0})
    assert min([*found.decode_s.values(), *found.prefill_s.values(), found.layer_s]) > 0


@pytest.mark.parametrize("name", TYPES)
def test_llamacpp_runs_a_model_of_every_type(tmp_path, name):
    path = tmp_path / "one.gguf"
    write_gguf(path, SMALL, TYPES[name])
    session = open_session(open_artifact(path), RunOptions(context=64, threads=1))
    session.prefill([1, 2, 3])
    assert 0 <= session.greedy() < 512
    session.close()


@pytest.mark.parametrize("label", presets())
def test_onnxruntime_runs_a_model_of_every_scheme(tmp_path, label):
    facts = write_source(tmp_path / "source", SMALL)
    (tmp_path / "out").mkdir()
    artifact = write_onnx(facts, presets()[label], tmp_path / "out")
    session = open_session(artifact, RunOptions(context=64, threads=1))
    session.prefill([1, 2, 3])
    assert 0 <= session.greedy() < 512
    session.close()


def test_every_label_of_the_presets_is_calibrated(tiny_llama):
    from exporter.checkpoint import resolve
    from targets.onnx.outline import outlines

    labels = {label for one in outlines(resolve(str(tiny_llama))).outlines for label in one.work().weights}
    known = set(presets())
    assert {label for label in labels if label not in known} <= {"int4 block 16", "int8 block 16 symmetric"}


def test_memory_is_read():
    assert bandwidth_bytes_per_s(1, n_bytes=1 << 20, rounds=1) > 0


def test_the_whole_of_it(monkeypatch):
    monkeypatch.setattr(calibrate_host, "WIDE", Shape(256, 512, 1, 4))
    monkeypatch.setattr(calibrate_host, "DEEP", Shape(64, 64, 2, 2))
    monkeypatch.setattr(calibrate_host, "FAR", Shape(128, 64, 2, 2))
    monkeypatch.setattr(calibrate_host, "LONG", 256)
    monkeypatch.setattr(calibrate_host, "BUFFER_BYTES", 1 << 20)
    monkeypatch.setattr(calibrate_host, "KV_TYPES", ("f16", "q8_0"))
    monkeypatch.setattr("targets.gguf.types.TYPES", {name: TYPES[name] for name in ("F16", "Q8_0")})
    speed = calibrate(1, ["gguf"], SilentReporter())
    assert set(speed.engines) == {"gguf"}
    assert set(speed.engines["gguf"].decode_s) == {"F16", "Q8_0"}
    assert set(speed.engines["gguf"].attention_s) == {"f16", "q8_0"}
    assert (speed.threads, "llama.cpp" in speed.engine_versions["gguf"]) == (1, True)


def test_an_unknown_format_is_refused_before_anything_runs():
    with pytest.raises(UserError, match="ptl is not calibrated, only gguf, onnx"):
        calibrate(1, ["ptl"], SilentReporter())
