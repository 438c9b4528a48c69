from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from runtime.artifact import open_artifact
from runtime.errors import EngineError, UserError
from runtime.measurement import RunOptions
from runtime.sessions import open_session

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "golden-q4_k_m.gguf"
IDS = [3, 9, 27, 17, 51, 25, 11, 33, 35, 41, 59]


def session(path=GOLDEN, **options):
    return closing(open_session(open_artifact(path), RunOptions(**{"threads": 1, "context": 256, **options})))


def test_all_logits_are_those_of_one_token_after_another():
    with session(batch=4) as engine:
        at_once = engine.all_logits(IDS)
        engine.reset()
        for position, token in enumerate(IDS):
            engine.decode(token)
            np.testing.assert_allclose(engine.last_logits(), at_once[position], rtol=0, atol=2e-2)
        assert at_once.shape == (len(IDS), engine.n_vocab)
        assert at_once.dtype == np.float32
        assert engine.greedy() == int(at_once[-1].argmax())
        assert not np.allclose(at_once[0], at_once[-1])


def test_reset_forgets():
    with session() as engine:
        engine.prefill(IDS)
        first = engine.last_logits()
        engine.prefill(IDS)
        engine.reset()
        engine.prefill(IDS)
        np.testing.assert_array_equal(engine.last_logits(), first)
        assert engine.n_past == len(IDS)


@pytest.mark.parametrize("kv_type", ["f32", "bf16", "q8_0"])
def test_kv_types_change_the_cache_and_hardly_the_logits(kv_type):
    with session(kv_type="f16") as reference, session(kv_type=kv_type) as engine:
        assert engine.memory_bytes()["kv_cache"] != reference.memory_bytes()["kv_cache"] or kv_type == "bf16"
        np.testing.assert_allclose(engine.all_logits(IDS), reference.all_logits(IDS), rtol=0, atol=0.1)


def test_weights_are_mapped_unless_asked_otherwise():
    with session() as mapped, session(mmap=False) as read:
        assert mapped.memory_bytes()["weights_mapped"] > 0
        assert read.memory_bytes()["weights_mapped"] == 0


def test_lone_surrogates_and_nul_do_not_crash():
    with session() as engine:
        assert isinstance(engine.tokenize("\ud800 a\0b", add_special=True), list)


def test_a_full_context_is_one_clear_error():
    with session(batch=64) as engine:
        with pytest.raises(EngineError, match=r"64 tokens do not fit: the context of 256 holds 256 already"):
            engine.prefill([5] * 320)
        engine.reset()
        with pytest.raises(EngineError, match="outside the vocabulary"):
            engine.decode(engine.n_vocab)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"hello world", "invalid magic"), (GOLDEN.read_bytes()[:1000], "failed to read"),
     (GOLDEN.read_bytes()[:-5000], "not within the file bounds")],
)  # fmt: skip
def test_files_that_do_not_load_say_why(tmp_path, content, reason):
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=rf"bad\.gguf: llama\.cpp does not load it: .*{reason}") as caught:
        session(path)
    assert "\n" not in str(caught.value)


def test_bad_options_are_the_users():
    with pytest.raises(UserError, match="not a type of KV cache; known: f32"):
        session(kv_type="q3_k")


@pytest.mark.slow
def test_the_real_model_answers():
    from benchmarks.smollm2 import gguf_file

    with session(gguf_file(), context=512, threads=2) as engine:
        prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
        ids = engine.tokenize(prompt, add_special=False)
        assert ids[:3] == [1, 4093, 198]  # <|im_start|>, user, newline
        assert (engine.special_text("bos"), engine.special_text("eos")) == ("<|im_start|>", "<|im_end|>")
        assert "im_start" in engine.chat_template()
        engine.prefill(ids)
        answer = []
        for _ in range(7):
            answer.append(engine.greedy())
            engine.decode(answer[-1])
        assert engine.tokenize(" Paris", add_special=False)[0] in answer
