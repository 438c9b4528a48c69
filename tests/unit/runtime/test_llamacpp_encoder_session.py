"""An encoder in llama.cpp, as verify and measure use it."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from support.parity import emit
from support.tiny_gguf_encoders import make_case

from runtime.errors import EngineError, HostError
from runtime.hosts.adb.engines.llamacpp import LlamaCppTools
from runtime.measure import measure
from runtime.measurement import RunOptions, Trials
from runtime.sessions import open_session
from runtime.sessions.llamacpp_encoder import LlamaCppEncoderSession

IDS = [2, 10, 40, 60, 61, 62, 3]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("encoder")
    directory = make_case("bert", root / "model")
    (root / "out").mkdir()
    return emit(directory, root / "out")


def opened(artifact: Any, **options: Any) -> Any:
    session = open_session(artifact, RunOptions(threads=1, **options))
    assert isinstance(session, LlamaCppEncoderSession)
    return closing(session)


def test_nothing_is_kept_between_texts(artifact: Any) -> None:
    with opened(artifact) as session:
        first = session.encode(IDS)
        session.run([2, *range(20, 60), 3])
        again = session.encode(IDS)
    for name, values in first.items():
        np.testing.assert_array_equal(again[name], values)
        assert values.dtype == np.float32
    assert abs(np.linalg.norm(first["sentence_embedding"]) - 1) < 1e-6


def test_what_it_says_of_itself(artifact: Any) -> None:
    with opened(artifact) as session:
        assert (session.max_tokens, session.n_vocab) == (64, 193)
        assert session.outputs == ("last_hidden_state", "sentence_embedding")
        assert session.tokenize("hi", add_special=True)[0] == 2
        memory = session.memory_bytes()
    assert memory["kv_cache"] == 0
    assert min(memory["weights"], memory["weights_mapped"], memory["compute"]) > 0


def test_a_text_longer_than_the_context_is_refused(artifact: Any) -> None:
    with opened(artifact, context=16) as session:
        assert session.max_tokens == 16
        session.run(IDS)
        with pytest.raises(EngineError, match="17 tokens are more than the 16"):
            session.run([5] * 17)
        with pytest.raises(EngineError, match="outside the vocabulary"):
            session.encode([2, 193, 3])


def test_lengths_are_kept_where_the_contract_says_so(artifact: Any) -> None:
    raw = dataclasses.replace(artifact, contract={**artifact.contract, "normalize": False})
    with opened(artifact) as normal, opened(raw) as other:
        ours, theirs = (session.encode(IDS)["sentence_embedding"] for session in (normal, other))
    assert abs(np.linalg.norm(theirs) - 1) > 0.1
    np.testing.assert_allclose(theirs / np.linalg.norm(theirs), ours, atol=1e-6)


def test_a_phones_tools_do_not_time_it(artifact: Any) -> None:
    with pytest.raises(HostError, match="not encoders; measure it here or over ssh"):
        LlamaCppTools().refuse(artifact)
    LlamaCppTools().refuse(dataclasses.replace(artifact, contract={}))


def test_it_is_measured_in_a_process_of_its_own(artifact: Any) -> None:
    found = measure(artifact, RunOptions(threads=1), Trials(count=2, turns=2))
    assert found.of_encoder
    assert found.latency_ms is not None
    assert found.latency_ms.median > 0
    assert found.peak_rss_bytes > 1_000_000
    assert found.memory is not None
    assert found.memory.kv_cache_bytes == 0
    assert any("cut from 128 to 64 tokens" in note for note in found.notes)
