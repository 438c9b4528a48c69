"""Verifying encoders, with doubles for both sides: vectors of bytes, no engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.doubles import CLS, SEP, FakeEncoderReference, FakeEncoderSession, word_vectors

from exporter.verify import VerifyOptions, verify
from exporter.verify.encoder import TEXT_TOKENS, compare_encoders, cut_texts, find_frame
from runtime.artifact import Artifact
from runtime.errors import CheckFailed, ModelError, UserError
from targets.encoder_drift import EncoderDrift
from targets.facts import ModelFacts
from targets.text import EvalText

GOLDEN = Path(__file__).parents[2] / "golden" / "golden-q4_k_m.gguf"
TEXT = EvalText("a text", "".join(f"Word {n} is here. And {n * n} too!\n" for n in range(200)), "0" * 64)
TASKS = ("feature-extraction", "text-classification", "token-classification")


def run(session: FakeEncoderSession, reference: FakeEncoderReference, rounds: int = 1) -> EncoderDrift:
    return compare_encoders(session, reference, TEXT, rounds, lambda *_: None, task=reference.task)


@pytest.mark.parametrize("task", TASKS)
def test_the_same_model_has_no_drift(task: str) -> None:
    drift = run(FakeEncoderSession(task=task), FakeEncoderReference(task=task))
    assert (drift.task, drift.n_texts, drift.max_abs_difference) == (task, len(TEXT_TOKENS), 0.0)
    assert (drift.text_name, drift.engine, drift.reference) == ("a text", "fake engine 1", "fake source")
    assert drift.max_tokens == 40
    assert drift.parity.bos
    assert (drift.parity.mismatches, drift.parity.chat_template) == ((), None)
    if task == "feature-extraction":
        values = (drift.mean_cosine, drift.min_cosine, drift.token_cosine, drift.length_ratio, drift.rank_correlation)
        assert values == pytest.approx((1.0,) * 5)
        assert drift.label_agreement is None
    else:
        assert (drift.mean_cosine, drift.label_agreement) == (None, 1.0)


def test_both_sides_get_the_sources_ids_and_cosines_are_those_of_the_embeddings() -> None:
    session, reference = FakeEncoderSession(word_vectors(noise=0.3)), FakeEncoderReference()
    session.frame = ([], [])  # a tokenizer that is wrong has its own line and does not reach the vectors
    drift = run(session, reference)
    assert session.asked == reference.asked
    assert all(ids[0] == CLS and ids[-1] == SEP for ids in session.asked)
    cosines = []
    for ids in session.asked:
        a, b = (table[ids].astype(np.float64).mean(axis=0) for table in (reference.table, session.table))
        cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert drift.mean_cosine == pytest.approx(np.mean(cosines), abs=1e-6)
    assert drift.min_cosine == pytest.approx(np.min(cosines), abs=1e-6)
    assert not drift.parity.bos


def test_labels_of_special_tokens_do_not_count() -> None:
    table = word_vectors()
    table[[CLS, SEP]] *= -1
    drift = run(
        FakeEncoderSession(table, task="token-classification"), FakeEncoderReference(task="token-classification")
    )
    assert drift.label_agreement == 1.0
    table[ord("o")] *= -1
    drift = run(
        FakeEncoderSession(table, task="token-classification"), FakeEncoderReference(task="token-classification")
    )
    assert 0.5 < drift.label_agreement < 1.0


def test_texts_are_sentences_of_growing_length_and_the_longest_is_full() -> None:
    texts = cut_texts(FakeEncoderReference(), TEXT, 2, 70)
    assert len(texts) == 2 * len(TEXT_TOKENS)
    for ids, size in zip(texts, [min(tokens, 70) for tokens in TEXT_TOKENS] * 2, strict=True):
        assert (ids[0], ids[-1]) == (CLS, SEP)
        assert size / 2 <= len(ids) <= size
        assert len(ids) == size or size < 70
    first = bytes(texts[0][1:-1]).decode()
    assert TEXT.text.startswith(first)
    assert len({tuple(ids) for ids in texts}) == len(texts)


def test_a_sentence_that_fits_is_not_cut() -> None:
    text = EvalText("t", "One two three. Four five six. Seven eight nine. Ten.\n" * 3, "0")
    third = cut_texts(FakeEncoderReference(), text, 1, 512)[2]  # 24 tokens, 22 without the special ones
    assert bytes(third[1:-1]).decode() in ("Seven eight nine.", "Seven eight nine. Ten.")


def test_a_short_text_is_the_users_error() -> None:
    with pytest.raises(UserError, match="t: gives 2 texts, 4 are needed; name a longer text"):
        cut_texts(FakeEncoderReference(), EvalText("t", "One two. And three four five.", "0"), 8, 512)
    with pytest.raises(UserError, match="takes 2 tokens, of which 2 are special"):
        cut_texts(FakeEncoderReference(), TEXT, 8, 2)


def test_special_tokens_around_a_text() -> None:
    reference = FakeEncoderReference()
    assert find_frame(reference).size == 2
    reference.frame = ([], [])
    assert find_frame(reference).size == 0
    reference.tokenize = lambda _text, *, add_special: [1, 2] if add_special else [3]  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="other tokens where special ones are added"):
        find_frame(reference)


def test_without_a_pooled_output_the_means_of_the_states_are_compared() -> None:
    session, reference = FakeEncoderSession(2 * word_vectors()), FakeEncoderReference()
    assert run(session, reference).length_ratio == pytest.approx(1.0)
    session.pooled = False
    drift = run(session, reference)
    assert drift.length_ratio == pytest.approx(2.0)
    assert "leaves the sentence embedding to its user" in drift.notes[0]
    session.pooled, reference.pooled = True, False
    assert "how the source pools its sentence embedding is not known" in run(session, reference).notes[0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_failures_not_statistics(value: float) -> None:
    table = word_vectors()
    table[ord("d"), 1] = value
    with pytest.raises(
        CheckFailed, match=r"artifact's last_hidden_state is not finite in text 1 of 8 of a text \(8 tok"
    ):
        run(FakeEncoderSession(table), FakeEncoderReference())
    with pytest.raises(ModelError, match="source's own last_hidden_state is not finite"):
        run(FakeEncoderSession(), FakeEncoderReference(table))


def test_outputs_of_another_task_or_shape_fail() -> None:
    with pytest.raises(CheckFailed, match="gives last_hidden_state, sentence_embedding, not logits"):
        run(FakeEncoderSession(), FakeEncoderReference(task="text-classification"))
    with pytest.raises(CheckFailed, match=r"logits has shape \(2,\) in text 1 .*, the source's \(3,\)"):
        run(FakeEncoderSession(task=TASKS[1], labels=2), FakeEncoderReference(task=TASKS[1]))
    with pytest.raises(CheckFailed, match="token 257 has no row in the artifact's vocabulary of 200"):
        run(FakeEncoderSession(word_vectors()[:200]), FakeEncoderReference())


def test_progress_counts_texts() -> None:
    seen: list[tuple[str, int, int]] = []
    reference = FakeEncoderReference()
    compare_encoders(FakeEncoderSession(), reference, TEXT, 1, lambda *event: seen.append(event), task=reference.task)
    assert [event for event in seen if event[0] == "comparing outputs"] == [
        ("comparing outputs", done, 8) for done in range(9)
    ]


def test_verify_goes_by_the_task_of_the_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, reference = FakeEncoderSession(task=TASKS[1]), FakeEncoderReference(task=TASKS[1])
    asked = []
    monkeypatch.setattr("exporter.verify.run.open_session", lambda *_: session)
    monkeypatch.setattr(
        "exporter.verify.run.TransformersEncoder",
        lambda path, task, **how: asked.append((path, task, how)) or reference,
    )
    artifact = Artifact(tmp_path, "onnx", "m.onnx", "m", "int8", 4, 8.5, 40, "m", contract={"task": TASKS[1]})
    facts = ModelFacts("huggingface", tmp_path, "m", "m", {}, {})
    drift = verify(artifact, facts, VerifyOptions(chunks=1, threads=1), lambda *_: None)
    assert isinstance(drift, EncoderDrift)
    assert drift.task == TASKS[1]
    assert asked == [(tmp_path, TASKS[1], {"dtype": "float32", "threads": 1, "trust_remote_code": False})]
    assert session.closed
    assert reference.closed
    with pytest.raises(ModelError, match="is no encoder's"):
        verify(artifact, ModelFacts("gguf", GOLDEN, "m", "m", {}, {}), VerifyOptions(), lambda *_: None)
