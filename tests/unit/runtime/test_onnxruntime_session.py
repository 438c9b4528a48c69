"""A decoder in ONNX Runtime: its context, its cache in place, its errors."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.parity import TOKENS, emit

from runtime.errors import EngineError, UserError
from runtime.measurement import RunOptions
from runtime.sessions import open_session

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.artifact import Artifact


@pytest.fixture(scope="module", params=["fp32", "int4"])
def artifact(request: pytest.FixtureRequest, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return emit(tiny_llama, tmp_path_factory.mktemp("session"), "onnx", request.param)


def session(artifact: Artifact, **options: Any) -> Any:
    return closing(open_session(artifact, RunOptions(**{"threads": 1, "context": 64, **options})))


def test_one_token_after_another_is_the_whole(artifact: Artifact) -> None:
    with session(artifact) as engine:
        whole = engine.all_logits(TOKENS)
        assert whole.shape == (len(TOKENS), engine.n_vocab)
        assert whole.dtype == np.float32
        assert engine.n_past == len(TOKENS)
        engine.reset()
        for position, token in enumerate(TOKENS):
            engine.decode(token)
            # a single row may take another kernel: what int8 inputs round
            np.testing.assert_allclose(engine.last_logits(), whole[position], rtol=0, atol=1e-3)
        assert engine.greedy() == int(whole[-1].argmax())
        assert not np.allclose(whole[0], whole[-1])


@pytest.mark.parametrize("batch", [1, 7, 16, 48])
def test_a_prompt_in_pieces_is_the_prompt(batch: int, artifact: Artifact) -> None:
    with session(artifact) as one, session(artifact, batch=batch) as pieces:
        one.prefill(TOKENS)
        pieces.prefill(TOKENS)
        np.testing.assert_allclose(pieces.last_logits(), one.last_logits(), rtol=0, atol=1e-3)
        np.testing.assert_allclose(pieces.all_logits(TOKENS), one.all_logits(TOKENS), rtol=0, atol=1e-3)
        assert pieces.n_past == len(TOKENS)


def test_reset_forgets(artifact: Artifact) -> None:
    with session(artifact) as engine:
        engine.prefill(TOKENS[:20])
        first = engine.last_logits()
        engine.prefill(TOKENS[20:40])
        assert not np.allclose(engine.last_logits(), first)
        engine.reset()
        assert engine.n_past == 0
        with pytest.raises(EngineError, match="no logits before a token is evaluated"):
            engine.greedy()
        engine.prefill(TOKENS[:20])
        np.testing.assert_array_equal(engine.last_logits(), first)


def test_logits_are_a_copy(artifact: Artifact) -> None:
    with session(artifact) as engine:
        engine.prefill(TOKENS[:4])
        logits = engine.last_logits()
        kept = logits.copy()
        logits[:] = 0
        np.testing.assert_array_equal(engine.last_logits(), kept)
        first = engine.last_logits()
        engine.decode(5)
        np.testing.assert_array_equal(first, kept)


def test_a_full_context_and_a_wrong_token_are_clear_errors(artifact: Artifact) -> None:
    with session(artifact, batch=32) as engine:
        with pytest.raises(EngineError, match=r"32 tokens do not fit: the context of 64 holds 64 already"):
            engine.prefill([5] * 96)
        with pytest.raises(EngineError, match=r"1 tokens do not fit"):
            engine.decode(5)
        engine.reset()
        for token in (engine.n_vocab, -1):
            with pytest.raises(EngineError, match=rf"token {token} is outside the vocabulary of {engine.n_vocab}"):
                engine.decode(token)
        assert engine.n_past == 0
        engine.decode(5)


def test_the_cache_is_one_buffer_for_the_context(artifact: Artifact) -> None:
    with session(artifact, context=64) as small, session(artifact, context=128) as large:
        # two layers of keys and values, two heads of 16, float32
        assert small.memory_bytes()["kv_cache"] == 2 * 2 * 2 * 64 * 16 * 4
        assert large.memory_bytes()["kv_cache"] == 2 * small.memory_bytes()["kv_cache"]
        assert set(small.memory_bytes()) == {"weights", "weights_mapped", "kv_cache", "compute"}
        assert all(isinstance(value, int) and value >= 0 for value in small.memory_bytes().values())
        assert (small.n_context, small.n_past) == (64, 0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"context": 0}, "context 0 and batch 512 have to be at least 1"),
        ({"batch": 0}, "batch 0 have to be at least 1"),
        ({"context": 4096}, "holds 2048 tokens of context, not 4096"),
        ({"mmap": False}, "leave out --no-mmap"),
    ],
)
def test_bad_options_are_the_users(options: dict[str, Any], says: str, artifact: Artifact) -> None:
    with pytest.raises(UserError, match=says):
        session(artifact, **options)


@pytest.mark.parametrize("fault", ["no graph", "no data", "short data", "not a graph"])
def test_files_that_do_not_load_are_one_line(fault: str, tiny_llama: Path, tmp_path: Path) -> None:
    broken = emit(tiny_llama, tmp_path, "onnx")
    data = tmp_path / f"{broken.entry}_data"
    if fault == "no graph":
        broken.entry_path.unlink()
    elif fault == "no data":
        data.unlink()
    elif fault == "short data":
        data.write_bytes(data.read_bytes()[:1000])
    else:
        broken.entry_path.write_bytes(b"hello world")
    with pytest.raises(EngineError, match=r"model\.onnx: ONNX Runtime cannot load it: ") as caught:
        session(broken)
    assert "\n" not in str(caught.value)


def test_closing_twice_is_closing(artifact: Artifact) -> None:
    engine = open_session(artifact, RunOptions(threads=1, context=64))
    assert engine.memory_bytes()["kv_cache"] > 0
    engine.close()
    engine.close()
    assert engine.memory_bytes()["kv_cache"] == 0


def test_a_half_precision_cache(tiny_llama: Path, tmp_path: Path) -> None:
    half = emit(tiny_llama, tmp_path, "onnx", "fp16")
    with session(half) as engine:
        assert engine.memory_bytes()["kv_cache"] == 2 * 2 * 2 * 64 * 16 * 2
        whole = engine.all_logits(TOKENS)
        assert whole.dtype == np.float32
        engine.reset()
        engine.prefill(TOKENS)
        np.testing.assert_allclose(engine.last_logits(), whole[-1], rtol=0, atol=0.05)
