from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.doubles import BOS, N_VOCAB, FakeReference, FakeSession, bigrams

from exporter.verify import VerifyOptions, bits_per_weight, verify
from exporter.verify.run import compare
from runtime.artifact import Artifact
from runtime.errors import CheckFailed, ModelError, UserError
from targets.facts import ModelFacts, TensorFact
from targets.text import EvalText

if TYPE_CHECKING:
    from pathlib import Path

    from targets.drift import Drift

TEXT = EvalText("a text", "".join(chr(97 + i % 26) for i in range(100)), "0" * 64)


def run(session: FakeSession, reference: FakeReference, chunks: int = 8, context: int = 16) -> Drift:
    return compare(session, reference, TEXT, (chunks, context), lambda *_: None)


def test_the_same_model_has_no_drift() -> None:
    drift = run(FakeSession(), FakeReference())
    assert drift.mean_kl == 0.0
    assert (drift.perplexity_ratio, drift.same_top1) == (1.0, 1.0)
    assert (drift.n_chunks, drift.chunk_tokens, drift.n_tokens_scored) == (6, 16, 6 * 7)
    assert (drift.text_name, drift.engine, drift.reference) == ("a text", "fake engine 1", "fake source")


def test_positions_and_their_next_tokens_are_those_of_llama_perplexity() -> None:
    session, reference = FakeSession(bigrams(noise=0.5)), FakeReference()
    drift = run(session, reference, chunks=2)
    ids = list(TEXT.text.encode())
    nll = []
    for chunk in (ids[:16], ids[16:32]):
        for position in range(8, 15):  # n_ctx / 2 .. n_ctx - 2
            row = session.table[chunk[position]].astype(np.float64)
            nll.append(np.log(np.exp(row).sum()) - row[chunk[position + 1]])
    assert drift.perplexity == pytest.approx(np.exp(np.mean(nll)))
    assert drift.n_tokens_scored == len(nll)
    assert [span.first for span in drift.kl_by_position] == list(range(8, 15))
    assert session.asked == reference.asked == [ids[:16], ids[16:32]]


def test_bos_replaces_the_first_token_of_every_chunk() -> None:
    session = FakeSession(add_bos=True)
    run(session, FakeReference(add_bos=True), chunks=2)
    ids = [BOS, *TEXT.text.encode()]  # the text as a whole is tokenized with special tokens
    assert session.asked == [[BOS, *ids[1:16]], [BOS, *ids[17:32]]]


def test_a_short_text_is_the_users_error() -> None:
    with pytest.raises(UserError, match="a text: has 100 tokens, one chunk needs 102"):
        run(FakeSession(), FakeReference(), context=102)
    assert run(FakeSession(), FakeReference(), context=100).n_chunks == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_failures_not_statistics(value: float) -> None:
    table = bigrams()
    table[ord("k"), 3] = value  # the 11th letter: position 10 of the first chunk
    with pytest.raises(CheckFailed, match="not finite at position 10 of chunk 1 of 6 of a text"):
        run(FakeSession(table), FakeReference())
    with pytest.raises(ModelError, match="source's own logits are not finite"):
        run(FakeSession(), FakeReference(table))


def test_padded_columns_are_left_out_and_named() -> None:
    padded = np.concatenate([bigrams(), np.full((N_VOCAB, 6), 50, np.float32)], axis=1)
    for session, reference in [
        (FakeSession(), FakeReference(padded)),
        (FakeSession(padded), FakeReference()),
    ]:
        drift = run(session, reference)
        assert drift.mean_kl == 0.0
        assert drift.notes == (
            f"compared on the 258 columns that both have: source {reference.n_vocab}, artifact {session.n_vocab}",
        )


def test_a_vocabulary_that_lacks_needed_tokens_fails() -> None:
    with pytest.raises(CheckFailed, match="token 122 has no column in the artifact's 100 logits"):
        run(FakeSession(bigrams(n_vocab=100)), FakeReference())


def test_progress_counts_chunks() -> None:
    seen: list[tuple[str, int, int]] = []
    compare(FakeSession(), FakeReference(), TEXT, (3, 16), lambda *event: seen.append(event))
    assert [event for event in seen if event[0] == "comparing logits"] == [
        ("comparing logits", done, 3) for done in range(4)
    ]


def artifact(tmp_path: Path, **changes: object) -> Artifact:
    fields = {
        "root": tmp_path, "format": "fake", "entry": "a.fake", "name": "a", "quant": "q8_0", "n_params": 4,
        "bits_per_weight": 8.5, "context_length": 16, "source": "m",
    }  # fmt: skip
    return Artifact(**{**fields, **changes})  # type: ignore[arg-type]


def test_verify_opens_both_sides_and_closes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, reference, asked = FakeSession(), FakeReference(), []
    monkeypatch.setattr("exporter.verify.run.open_session", lambda *given: asked.append(given[1]) or session)
    monkeypatch.setattr("exporter.verify.run.open_reference", lambda *_: reference)
    text = tmp_path / "t.txt"
    text.write_text(TEXT.text)
    facts = ModelFacts("huggingface", tmp_path, "m", "m", {}, {})
    drift = verify(artifact(tmp_path), facts, VerifyOptions(text=text, chunks=2, threads=1), lambda *_: None)
    assert (drift.n_chunks, drift.chunk_tokens) == (2, 16)  # the model's own context is shorter than 512
    assert (asked[0].context, asked[0].batch, asked[0].threads) == (16, 16, 1)
    assert session.closed
    assert reference.closed


def test_the_session_is_closed_where_the_source_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = FakeSession()

    def refuse(*_: object) -> None:
        raise ModelError("no")

    monkeypatch.setattr("exporter.verify.run.open_session", lambda *_: session)
    monkeypatch.setattr("exporter.verify.run.open_reference", refuse)
    with pytest.raises(ModelError, match="no"):
        verify(artifact(tmp_path), ModelFacts("gguf", tmp_path, "m", "m", {}, {}), VerifyOptions(), lambda *_: None)
    assert session.closed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunks": 0}, "chunks is 0"),
        ({"context": 511}, "context is 511"),
        ({"dtype": "int8"}, "'int8' is not a dtype"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        VerifyOptions(**options)


def test_bits_per_weight_of_a_bare_file_come_from_its_size(tmp_path: Path) -> None:
    (tmp_path / "a.fake").write_bytes(b"x" * 6)
    tensor = TensorFact("t", (4, 3), "F32", tmp_path / "s", 0, 48)
    facts = ModelFacts("huggingface", tmp_path, "m", "m", {}, {"t": tensor})
    assert bits_per_weight(artifact(tmp_path), facts) == 8.5
    assert bits_per_weight(artifact(tmp_path, bits_per_weight=0.0), facts) == 6 * 8 / 12
