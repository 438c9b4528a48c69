"""What statistics are gathered on: the model's own text, drawn as it says and kept on disk, or what the user names."""

from __future__ import annotations

import json
import sys
import types
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from exporter import calibration
from exporter.calibration import calibration_chunks, home, sampled
from exporter.checkpoint import resolve
from exporter.compress.job import CompressRequest, compress
from exporter.progress import SilentReporter
from exporter.recipe import Recipe
from exporter.steps import Text
from exporter.verify.reference import TransformersReference
from runtime.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def silent(_what: str, _done: int, _total: int) -> None:
    pass


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKLIGHT_HOME", str(tmp_path / "home"))


@pytest.fixture
def llama(tiny_llama: Path) -> Iterator[TransformersReference]:
    source = TransformersReference(tiny_llama)
    yield source
    source.close()


def chunks_of(model: TransformersReference, seed: int = 0, **wanted: Any) -> list[list[int]]:
    return calibration_chunks(model, resolve(str(model.path)), Text(**wanted), seed, silent)


def test_the_model_writes_by_its_own_distribution(
    llama: TransformersReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of three tokens, over many texts, has the shares that the model gives after the two before it."""
    plain = calibration._plain_tokens(llama)
    monkeypatch.setattr(calibration, "BATCH", 500)
    texts = torch.tensor(sampled(llama, 4000, 3, 0, silent))
    with torch.no_grad():
        logits = llama.model(texts[:, :2]).logits[:, -1].float()
    shares = torch.softmax(logits[:, plain], -1)
    place = {token: number for number, token in enumerate(plain)}
    drawn = torch.tensor([place[int(token)] for token in texts[:, 2]])
    # The sum of the log shares of what was drawn is, over 4000 draws, near the sum of the entropies.
    logs = torch.log(shares)
    found = logs.gather(1, drawn[:, None])[:, 0]
    entropy = -(shares * logs).sum(1)
    spread = ((shares * logs**2).sum(1) - entropy**2).sum().sqrt()
    assert abs(float((found + entropy).sum())) < 4 * float(spread)
    # A draw that does not look at the past would be far off.
    wrong = logs.roll(1, 0).gather(1, drawn[:, None])[:, 0]
    assert abs(float((wrong + entropy).sum())) > 8 * float(spread)


def test_only_plain_tokens_and_the_lengths_asked_for(llama: TransformersReference) -> None:
    found = chunks_of(llama, chunks=5, tokens=24)
    assert [len(ids) for ids in found] == [24] * 5
    plain = set(calibration._plain_tokens(llama))
    assert {token for ids in found for token in ids} <= plain
    assert not {0, 1, 2} & plain


def test_a_model_with_a_first_token_begins_with_it(tiny_llama3: Path) -> None:
    source = TransformersReference(tiny_llama3)
    found = chunks_of(source, chunks=3, tokens=16)
    source.close()
    assert source.bos_id is not None
    assert {ids[0] for ids in found} == {source.bos_id}
    assert len({ids[1] for ids in found}) > 1


def test_it_is_kept_and_a_damaged_file_is_written_anew(
    llama: TransformersReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = chunks_of(llama, chunks=3, tokens=16)
    assert chunks_of(llama, seed=1, chunks=3, tokens=16) != first
    (kept,) = [
        path for path in home().rglob("*.json") if json.loads(path.read_text(encoding="utf-8"))["chunks"] == first
    ]
    for damaged in ("{", '{"chunks": [[1]]}', json.dumps({"chunks": [[10**6] * 16] * 3})):
        kept.write_text(damaged, encoding="utf-8")
        assert chunks_of(llama, chunks=3, tokens=16) == first
    monkeypatch.setattr(calibration, "sampled", lambda *_: pytest.fail("was kept"))
    assert chunks_of(llama, chunks=3, tokens=16) == first


def test_other_weights_are_another_key(tiny_llama: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(tiny_llama, copy)
    assert _key(tiny_llama) == _key(copy)
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-2, 2)
        file.write(b"\0\1")
    assert _key(tiny_llama) != _key(copy)


def _key(directory: Path) -> str:
    return calibration._key(resolve(str(directory)), Text(), 0)


def test_a_text_and_the_help(llama: TransformersReference, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("one two three " * 200, encoding="utf-8")
    assert llama.tokenize("one two three", add_special=False)[:2] == chunks_of(llama, text=file, chunks=1)[0][:2]
    assert chunks_of(llama, source="help", chunks=2, tokens=32) != chunks_of(llama, text=file, chunks=2, tokens=32)
    assert not home().exists()


def test_a_data_set_of_the_hub(llama: TransformersReference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="needs the library 'datasets'; pip install datasets"):
        chunks_of(llama, dataset="org/texts")
    asked: list[Any] = []

    def load_dataset(name: str, **options: Any) -> Any:
        asked.append((name, options))
        return iter([{"body": "short"}, {"body": "a b c d e f g h " * 20}, {"body": "i j k l m n o p " * 20}])

    stub = types.ModuleType("datasets")
    stub.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", stub)
    found = chunks_of(llama, dataset="org/texts", split="test", field="body", chunks=2, tokens=16)
    assert asked == [("org/texts", {"split": "test", "streaming": True})]
    assert [len(ids) for ids in found] == [16, 16]
    with pytest.raises(UserError, match=r"org/texts cannot be read .*; check id, split and field"):
        chunks_of(llama, dataset="org/texts", chunks=2, tokens=16)
    with pytest.raises(UserError, match="has no text of 4096 tokens"):
        chunks_of(llama, dataset="org/texts", field="body", chunks=2, tokens=4096)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"source": "text"}, "source text needs text"),
        ({"source": "model", "text": "a.txt"}, "text goes with source text only"),
        ({"text": "a.txt", "dataset": "b"}, "dataset goes with source dataset only"),
    ],
)
def test_what_goes_together(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Text.model_validate(content)


def test_a_recipe_without_a_text_asks_the_model_before_it_changes(tiny_llama: Path, tmp_path: Path) -> None:
    steps = [
        {"step": "prune", "method": "magnitude", "sparsity": 0.5},
        {"step": "prune", "method": "wanda", "sparsity": 0.6},
    ]
    recipe = Recipe.model_validate({"calibration": {"chunks": 4, "tokens": 32}, "steps": steps})
    compress(CompressRequest(str(tiny_llama), tmp_path / "out", recipe, "test", 2), SilentReporter())
    (kept,) = home().rglob("*.json")
    source = TransformersReference(tiny_llama)
    expected = sampled(source, 4, 32, 0, silent)
    source.close()
    assert json.loads(kept.read_text(encoding="utf-8"))["chunks"] == expected
    assert np.array(expected).shape == (4, 32)


def test_lines_of_json(llama: TransformersReference, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    turns = [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "three"}]
    lines: list[Any] = [{"answer": "four five six " * 6}, {"answer": turns}, {"answer": "seven eight " * 6}]
    file.write_text("\n\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    expected: list[int] = []
    for text, special in (
        ("four five six " * 6, True),
        (llama.render(turns, prompt=False), False),  # it has its special tokens written in it
        ("seven eight " * 6, True),
    ):
        expected += [*llama.tokenize(text, add_special=special), llama.eos_id or -1]
    n = len(expected) // 16
    assert n >= 3
    assert chunks_of(llama, jsonl=file, field="answer", chunks=99, tokens=16) == [
        expected[16 * number : 16 * number + 16] for number in range(n)
    ]
    assert chunks_of(llama, jsonl=file, field="answer", chunks=2, tokens=16) == [expected[:16], expected[16:32]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "one"}\n{"text": \n', r":2: is not JSON in UTF-8 \(.*; mend that line"),
        (b'{"text": "\xe9"}', ":1: is not JSON in UTF-8"),
        (b'{"prompt": "one"}', ":1: is no object with text; name another field, or mend that line"),
        (b"[1]", ":1: is no object with text"),
        (b'{"text": 3}', ":1: text is neither a text nor a list of messages"),
        (b'{"text": [{"role": 3}]}', ":1: the model's chat template refuses it|has no chat template"),
        (b'{"text": "one"}', r"answers.jsonl: has \d+ tokens, a piece is 16; name a longer file"),
        (None, "answers.jsonl: cannot be read"),
    ],
)
def test_a_bad_line_is_named(content: bytes | None, message: str, llama: TransformersReference, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        chunks_of(llama, jsonl=file, chunks=1, tokens=16)
