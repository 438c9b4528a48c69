"""An encoder in ONNX Runtime, as verify and measure use it."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.tiny_encoders import difference, export_onnx, make_tiny_bert, make_tiny_encoder, padded, torch_outputs

from runtime.errors import EngineError, UserError
from runtime.measurement import RunOptions
from runtime.sessions import open_session
from runtime.sessions.onnxruntime import OnnxEncoderSession

if TYPE_CHECKING:
    from pathlib import Path

IDS = [2, 10, 40, 60, 61, 62, 3]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bert(tmp_path_factory.mktemp("source") / "m")


@pytest.fixture(scope="module")
def artifact(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return export_onnx(source, tmp_path_factory.mktemp("session") / "out")


def opened(artifact: Any, **options: Any) -> OnnxEncoderSession:
    session = open_session(artifact, RunOptions(threads=1, **options))
    assert isinstance(session, OnnxEncoderSession)
    return session


def test_outputs_are_those_of_torch_without_the_batch(artifact: Any, source: Path) -> None:
    session = opened(artifact)
    found = session.encode(IDS)
    states = torch_outputs(source, *padded([IDS], 0))["last_hidden_state"][0]
    assert session.outputs == tuple(found) == ("last_hidden_state", "sentence_embedding")
    assert {name: array.shape for name, array in found.items()} == {
        "last_hidden_state": (len(IDS), 32), "sentence_embedding": (32,),
    }  # fmt: skip
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    assert difference(found["last_hidden_state"], states) < 1e-5
    mean = states.mean(axis=0)
    assert difference(found["sentence_embedding"], mean / np.linalg.norm(mean)) < 1e-5


def test_nothing_is_kept_between_texts(artifact: Any) -> None:
    session = opened(artifact)
    first = session.encode(IDS)
    session.run([2, *range(20, 60), 3])
    again = session.encode(IDS)
    for name, array in first.items():
        np.testing.assert_array_equal(again[name], array)


def test_what_it_says_of_itself(artifact: Any) -> None:
    session = opened(artifact)
    assert (session.max_tokens, session.n_vocab) == (64, 193)
    assert session.engine.startswith("ONNX Runtime 1.")
    assert session.tokenize("hi", add_special=True)[0] == 2
    assert session.chat_template() is None
    assert session.special_text("cls") == "[CLS]"
    memory = session.memory_bytes()
    assert set(memory) == {"weights", "weights_mapped", "kv_cache", "compute"}
    assert memory["kv_cache"] == 0
    assert min(memory.values()) >= 0


@pytest.mark.parametrize("family", ["Bert", "Roberta", "DistilBert"])
@pytest.mark.parametrize("quant", ["fp32", "int8"])
def test_texts_up_to_the_last_position(family: str, quant: str, tmp_path: Path) -> None:
    """One token more would be read from behind the table: ONNX Runtime does not notice that in a table of blocks."""
    model = make_tiny_encoder(tmp_path / "m", family)
    session = opened(export_onnx(model, tmp_path / "out", quant))
    longest = [2, *range(20, 82), 3]
    found = session.encode(longest)["last_hidden_state"]
    expected = torch_outputs(model, *padded([longest], 0))["last_hidden_state"][0]
    assert session.max_tokens == 64
    assert difference(found, expected) < (1e-5 if quant == "fp32" else 0.15)
    with pytest.raises(EngineError, match="65 tokens are more than the 64"):
        session.encode([*longest, 3])


def test_a_token_outside_the_vocabulary_is_one_line(artifact: Any) -> None:
    with pytest.raises(EngineError, match="cannot read 3 tokens") as caught:
        opened(artifact).encode([2, 9999, 3])
    assert "\n" not in str(caught.value)


def test_a_damaged_graph_is_one_line(artifact: Any, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    broken = dataclasses.replace(artifact, root=tmp_path, entry="model.onnx")
    with pytest.raises(EngineError, match="cannot load it") as caught:
        opened(broken)
    assert "\n" not in str(caught.value)


def test_weights_are_always_mapped(artifact: Any) -> None:
    with pytest.raises(UserError, match="leave out --no-mmap"):
        opened(artifact, mmap=False)


def test_closing_twice_does_nothing(artifact: Any) -> None:
    session = opened(artifact)
    engine = weakref.ref(session._session)
    assert engine() is not None
    session.close()
    session.close()
    gc.collect()
    assert engine() is None
