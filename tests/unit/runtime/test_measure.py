from __future__ import annotations

import dataclasses
import json
import os
import stat
import sys
from pathlib import Path

import pytest

from runtime import measure as measure_module
from runtime.artifact import Artifact, FileRecord, open_artifact
from runtime.cap import capped
from runtime.check import check, check_with
from runtime.errors import EngineError, OutOfMemory, TimedOut, UserError
from runtime.measure import child_environment, measure
from runtime.measurement import Measurement, RunOptions, Trials
from runtime.openmp import SPINS
from runtime.series import MemorySample
from runtime.timeline import Timeline

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "golden-q4_k_m.gguf"
OPTIONS = RunOptions(threads=1, context=64)
TRIALS = Trials(prompt_tokens=8, decode_tokens=2, count=2)
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is capped on Linux only")


def fake_worker(monkeypatch, tmp_path, body):
    """Have `measure` start a program of ours in place of the worker's interpreter."""
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\nimport sys, os\nsay = lambda t: print(t, flush=True)\n{body}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(measure_module.sys, "executable", str(script))


def test_a_real_run_is_recorded_whole():
    phases = []
    done = measure(open_artifact(GOLDEN), OPTIONS, TRIALS, progress=phases.append, command="here")
    assert phases[0] == "starting"
    assert phases[-2:] == ["done", "loading again"]
    assert len(done.decode_tokens_per_s.values) == 2
    split = done.memory
    total = split.weights_bytes + split.kv_cache_bytes + split.compute_bytes + split.other_bytes
    assert total == done.peak_rss_bytes
    assert 0 < done.resident.anonymous_bytes < done.peak_rss_bytes
    assert Measurement.from_json(done.to_json()) == done
    assert done.host["engine"].startswith("llama.cpp")
    assert (done.command, done.cap, done.options.threads) == ("here", None, 1)


def test_a_prompt_that_does_not_fit_is_cut_and_noted():
    done = measure(open_artifact(GOLDEN), OPTIONS, Trials(500, 16, 1))
    assert (done.trials.prompt_tokens, done.trials.decode_tokens) == (48, 16)
    assert "cut from 500 + 16 tokens to 48 + 16" in done.notes[0]


ALL = dataclasses.replace(TRIALS, turns=4, fill_context=True, sustained_s=1.0)


@linux
@pytest.mark.parametrize("mmap", [True, False])
def test_a_run_with_all_phases_over_mapped_and_read_weights(mmap):
    phases = []
    options = dataclasses.replace(OPTIONS, mmap=mmap)
    done = measure(open_artifact(GOLDEN), options, ALL, progress=phases.append)
    assert phases == [
        "starting", "loading", "warm-up", "trial 1 of 2", "trial 2 of 2", "full context", "first turn", "second turn",
        "turn 3", "turn 4", "sustained load", "done", "loading again",
    ]  # fmt: skip
    assert [sample.phase for sample in done.timeline] == sorted(
        (sample.phase for sample in done.timeline), key=phases.index
    )
    assert {sample.phase for sample in done.timeline} >= set(phases[:-2])  # the last may be over before it is seen
    assert 0 < max(sample.rss_bytes for sample in done.timeline) <= done.peak_rss_bytes
    assert all(0 < sample.anonymous_bytes < sample.rss_bytes for sample in done.timeline)
    assert (done.mapped_weights_bytes > 0) == mmap
    assert done.options.mmap == mmap
    assert (done.load_is_cold, done.load_s > 0, done.warm_load_s > 0) == (True, True, True)
    assert len(done.turn_rss_bytes) == 4
    assert done.full_context_tokens_per_s > 0
    assert done.resident.peak_proportional_bytes >= done.resident.proportional_bytes
    assert done.sustained.tokens > 0
    assert Measurement.from_json(json.loads(json.dumps(done.to_json()))) == done


def test_a_timeline_ends_with_the_run_and_stays_below_the_peak():
    samples = [
        MemorySample(0.1, 90, 50, "loading"),
        MemorySample(0.2, 101, 60, "turn"),
        MemorySample(0.3, 99, 60, "done"),
    ]
    assert measure_module._timeline(samples, 100) == (samples[0], MemorySample(0.2, 100, 60, "turn"))


def test_without_proc_there_is_no_timeline(monkeypatch, tmp_path):
    monkeypatch.setattr(measure_module, "Timeline", lambda pid: Timeline(pid, tmp_path))
    assert measure(open_artifact(GOLDEN), OPTIONS, TRIALS).timeline == ()


def test_a_file_that_stays_in_the_cache_is_not_called_cold(monkeypatch):
    monkeypatch.setattr(measure_module, "drop_file_cache", lambda path: path.read_bytes())
    done = measure(open_artifact(GOLDEN), OPTIONS, TRIALS)
    assert done.load_is_cold is False
    assert any(note.startswith("load and first token are not of a cold file") for note in done.notes)


def test_a_second_load_that_fails_is_a_note(monkeypatch):
    run = measure_module._Child.run

    def once(child, request, environment):
        if request.get("load_only"):
            raise EngineError("no more")
        return run(child, request, environment)

    monkeypatch.setattr(measure_module._Child, "run", once)
    done = measure(open_artifact(GOLDEN), OPTIONS, TRIALS)
    assert done.warm_load_s is None
    assert done.notes[-1] == "the load with the file in the page cache was not measured: no more"


@pytest.mark.parametrize(
    ("trials", "said"),
    [
        (Trials(turns=1), "1 turns show no growth: use --turns 2 or more"),
        (Trials(turns=33), "33 turns do not fit into a context of 64 tokens: use --turns 32 at most"),
        (Trials(sustained_s=-1.0), "a sustained load of -1 s"),
    ],
)
def test_what_cannot_be_measured_is_one_line(trials, said):
    with pytest.raises(UserError, match=said):
        measure(open_artifact(GOLDEN), OPTIONS, trials)


def test_an_encoder_has_no_context_to_fill(tmp_path):
    artifact = Artifact(tmp_path, "onnx", "a.onnx", "a", "int8", 1, 8.0, 40, "m", {"task": "feature-extraction"})
    with pytest.raises(UserError, match="--fill-context is for models that generate"):
        measure(artifact, OPTIONS, dataclasses.replace(TRIALS, fill_context=True))


def test_a_load_that_goes_on_has_its_time_on_top(monkeypatch, tmp_path):
    body = """import time; say('{"phase": "sustained load"}'); time.sleep(1.5)
say('{"error": {"kind": "UserError", "message": "came to its end"}}')"""
    fake_worker(monkeypatch, tmp_path, body)
    with pytest.raises(UserError, match="came to its end"):
        measure(open_artifact(GOLDEN), OPTIONS, dataclasses.replace(TRIALS, timeout_s=1.0, sustained_s=30.0))


def test_openmp_is_set_afresh(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("KMP_BLOCKTIME", "infinite")
    child = child_environment(3)
    assert (child["OMP_NUM_THREADS"], child["GOMP_SPINCOUNT"]) == ("3", str(SPINS))
    assert not {"KMP_BLOCKTIME", "OMP_WAIT_POLICY"} & child.keys()


def test_the_workers_own_error_arrives_as_one_line(tmp_path):
    path = tmp_path / "cut.gguf"
    path.write_bytes(GOLDEN.read_bytes()[:-5000])
    with pytest.raises(EngineError, match=r"cut\.gguf: llama\.cpp does not load it: .*not within the file bounds"):
        measure(open_artifact(path), OPTIONS, TRIALS)
    with pytest.raises(UserError, match="KV cache"):
        measure(open_artifact(GOLDEN), RunOptions(kv_type="no"), TRIALS)
    with pytest.raises(UserError, match="too small to measure"):
        measure(open_artifact(GOLDEN), RunOptions(context=4), TRIALS)


def test_a_crash_names_the_phase_and_the_last_words(monkeypatch, tmp_path):
    body = """say('{"phase": "warm-up"}'); sys.stderr.write('noise\\nlast words\\n'); sys.stderr.flush(); os.abort()"""
    fake_worker(monkeypatch, tmp_path, body)
    with pytest.raises(EngineError, match=r"died \(SIGABRT\) while warm-up: last words") as caught:
        measure(open_artifact(GOLDEN), OPTIONS, TRIALS)
    assert not isinstance(caught.value, OutOfMemory)


def test_an_engine_of_another_processor_is_named_as_such(monkeypatch, tmp_path):
    body = """import signal; say('{"phase": "warm-up"}'); os.kill(os.getpid(), signal.SIGILL)"""
    fake_worker(monkeypatch, tmp_path, body)
    with pytest.raises(EngineError, match=r"died \(SIGILL\) while warm-up; the engine was built for another processor"):
        measure(open_artifact(GOLDEN), OPTIONS, TRIALS)


def test_bad_alloc_is_out_of_memory(monkeypatch, tmp_path):
    body = (
        """say('{"phase": "loading"}'); sys.stderr.write("what():  std::bad_alloc"); sys.stderr.flush(); os.abort()"""
    )
    fake_worker(monkeypatch, tmp_path, body)
    with pytest.raises(OutOfMemory) as caught:
        measure(open_artifact(GOLDEN), OPTIONS, TRIALS)
    assert caught.value.phase == "loading"


def test_a_run_that_hangs_is_given_up(monkeypatch, tmp_path):
    fake_worker(monkeypatch, tmp_path, 'import time; say(\'{"phase": "loading"}\'); time.sleep(600)')
    with pytest.raises(TimedOut, match=r"took longer than 1 s, while loading"):
        measure(open_artifact(GOLDEN), OPTIONS, Trials(timeout_s=1.0))


def test_ctrl_c_kills_the_child(monkeypatch, tmp_path):
    fake_worker(monkeypatch, tmp_path, 'import time; say(\'{"phase": "%d"}\' % os.getpid()); time.sleep(600)')
    seen = []

    def interrupt(phase):
        seen.append(int(phase))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(open_artifact(GOLDEN), OPTIONS, TRIALS, progress=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0], 0)


@linux
def test_check_under_a_real_cap():
    artifact = open_artifact(GOLDEN)
    fits = check(artifact, OPTIONS, TRIALS, 500_000_000)
    assert fits.fits, fits.text
    assert fits.measurement.cap["bytes"] == 500_000_000
    assert fits.text.startswith("fits: peak ")
    small = check(artifact, OPTIONS, TRIALS, 8_000_000)
    assert not small.fits
    assert small.needed_bytes == small.measurement.peak_rss_bytes > 8_000_000
    assert small.text.startswith("does not fit: needed ")
    assert small.phase
    assert small.text.endswith(f"died while {small.phase}")
    assert small.to_json()["phase"] == small.phase
    assert (fits.phase, fits.measurement.warm_load_s) == (None, None)


@linux
@pytest.mark.parametrize("method", ["rlimit-data", "rlimit-as"])
def test_check_where_there_are_no_cgroups(method):
    artifact = open_artifact(GOLDEN)

    def runner(cap):
        return measure_module.measure_under(cap, artifact, OPTIONS, TRIALS)

    verdict = check_with((method,), 8_000_000, runner)
    assert (verdict.fits, verdict.method) == (False, method)
    assert method in verdict.text
    assert check_with((method,), 2_000_000_000, runner).fits


@linux
def test_completed_over_the_cap_does_not_fit():
    free = measure(open_artifact(GOLDEN), OPTIONS, TRIALS)
    verdict = check_with(("rlimit-data",), free.peak_rss_bytes - 1, lambda _: free)
    assert not verdict.fits
    assert "counts private writable memory" in verdict.text
    assert check_with(("rlimit-data",), free.peak_rss_bytes, lambda _: free).fits


@linux
def test_a_failure_that_is_not_memory_is_no_verdict(tmp_path):
    path = tmp_path / "not.gguf"
    path.write_bytes(b"hello world")
    with capped(500_000_000), pytest.raises(EngineError, match="invalid magic"):
        check(open_artifact(path), OPTIONS, TRIALS, 500_000_000)


def test_an_encoder_is_described_to_the_worker_and_all_its_files_are_cold(monkeypatch, tmp_path):
    artifact = Artifact(
        tmp_path, "onnx", "a.onnx", "a", "int8", 1, 8.0, 40, "m", {"task": "feature-extraction", "n_vocab": 9},
        {"a.onnx": FileRecord(1, ""), "a.onnx_data": FileRecord(1, "")},
    )  # fmt: skip
    dropped, asked = [], []
    result = {
        "load_s": 0.5, "cold_first_token_ms": 9.0, "latency_ms": [4.0, 5.0], "prefill_tokens_per_s": [10.0, 20.0],
        "peak_rss_bytes": 9, "memory": {f"{name}_bytes": 1 for name in ("weights", "kv_cache", "compute", "other")},
        "second_turn_growth_bytes": 0, "major_page_faults": 0, "engine": "e", "prompt_tokens": 40, "decode_tokens": 0,
        "notes": [], "resident": None,
    }  # fmt: skip
    monkeypatch.setattr(measure_module, "drop_file_cache", lambda path: dropped.append(path.name))
    monkeypatch.setattr(measure_module._Child, "run", lambda _self, request, _env: asked.append(request) or result)
    done = measure(artifact, OPTIONS, Trials())
    assert dropped == ["a.onnx", "a.onnx_data"]
    assert (done.load_is_cold, done.warm_load_s, len(asked)) == (None, None, 1)  # there are no such files
    sent = asked[0]["artifact"]
    assert (sent["context_length"], sent["contract"]["task"]) == (40, "feature-extraction")
    assert asked[0]["trials"]["prompt_tokens"] == 128
    assert (done.latency_ms.median, done.first_token_ms, done.decode_tokens_per_s) == (4.5, None, None)
    assert (done.trials.prompt_tokens, done.trials.decode_tokens) == (40, 0)
