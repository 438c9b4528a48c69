from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.doubles import FakeEncoderSession

from runtime import worker
from runtime.artifact import Artifact
from runtime.measurement import RunOptions, Trials
from runtime.worker import Answers, fit_to_context, model_mapped_bytes, split_memory, time_encoder, token_ids

ROOT = Path(__file__).resolve().parents[3]


def test_token_ids_are_fixed_and_away_from_the_ends():
    assert token_ids(1000, 3) == [100 + 48271 % 800, 100 + 48271**2 % 2147483647 % 800, token_ids(1000, 3)[2]]
    assert all(100 <= token < 900 for token in token_ids(1000, 500))
    assert len(set(token_ids(49152, 500))) > 400


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(16, 4096))
def test_prompt_and_decode_fit_the_context(prompt, decode, context):
    n_prompt, n_decode, note = fit_to_context(Trials(prompt, decode), context)
    assert n_prompt >= 1 <= n_decode
    assert n_prompt + n_decode <= context
    assert (note is None) == (prompt + decode <= context)


def test_split_counts_what_is_resident_and_adds_up():
    engine = {"weights": 140, "weights_mapped": 100, "kv_cache": 45, "compute": 107}
    split = split_memory(engine, mapped=90, grown=20, peak=240)
    assert split == {"weights_bytes": 130, "kv_cache_bytes": 45, "compute_bytes": 20, "other_bytes": 45}
    assert sum(split_memory(engine, mapped=None, grown=None, peak=50).values()) == 50


def test_the_worker_needs_neither_torch_nor_transformers_nor_numpy():
    code = (
        "import sys\nfor name in ('torch', 'transformers', 'numpy'): sys.modules[name] = None\n"
        "from runtime import worker\nraise SystemExit(worker.main())"
    )
    request = {
        "artifact": {"root": str(ROOT / "tests/golden"), "format": "gguf", "entry": "golden-q4_k_m.gguf"},
        "options": {"threads": 1, "context": 64}, "trials": {"prompt_tokens": 8, "decode_tokens": 2, "count": 1},
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(request), capture_output=True, text=True, cwd=ROOT
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["phase"] for answer in answers if "phase" in answer] == [
        "starting", "loading", "warm-up", "trial 1 of 1", "first turn", "second turn", "done",
    ], done.stderr  # fmt: skip
    assert answers[-1]["result"]["peak_rss_bytes"] > 5 << 20


def test_an_encoder_reads_one_text_again_and_again_then_growing_ones() -> None:
    session, answers = FakeEncoderSession(), Answers(io.StringIO())
    found = time_encoder(session, RunOptions(), Trials(prompt_tokens=16, count=2), answers)
    passes = [5, 10, 15, 20, 25, 30, 35, 40]  # eighths of the 40 tokens that it takes
    assert session.timed == [16, 16, 16, *passes, *passes]
    assert (found["prompt_tokens"], found["decode_tokens"], answers.notes) == (16, 0, [])
    assert len(found["latency_ms"]) == len(found["prefill_tokens_per_s"]) == 2
    assert found["latency_ms"][0] * found["prefill_tokens_per_s"][0] == pytest.approx(16e3)
    assert "first_token_ms" not in found
    assert "decode_tokens_per_s" not in found


def test_a_text_longer_than_the_encoder_or_the_context_takes_is_cut_and_noted() -> None:
    for context, longest in ((2048, 40), (20, 20)):
        session, answers = FakeEncoderSession(), Answers(io.StringIO())
        found = time_encoder(session, RunOptions(context=context), Trials(count=1), answers)
        assert (found["prompt_tokens"], max(session.timed)) == (longest, longest)
        assert answers.notes == [f"the text was cut from 128 to {longest} tokens, the most that the model takes"]


def test_mappings_of_every_file_of_the_model_count(tmp_path, monkeypatch) -> None:
    sizes = {"a.onnx": 3, "a.onnx_data": 40, "tokenizer.json": 500}
    monkeypatch.setattr(worker, "mapped_bytes", lambda path: sizes[path.name])
    artifact = Artifact(
        tmp_path, "onnx", "a.onnx", "a", "int4", 1, 4.0, 8, "m", {"model_files": ["a.onnx", "a.onnx_data"]}
    )
    assert model_mapped_bytes(artifact) == 43
    assert model_mapped_bytes(Artifact(tmp_path, "gguf", "a.onnx", "a", "q", 1, 4.0, 8, "m")) == 3
    monkeypatch.setattr(worker, "mapped_bytes", lambda _path: None)
    assert model_mapped_bytes(artifact) is None
