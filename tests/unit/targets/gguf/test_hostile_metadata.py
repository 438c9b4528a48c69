"""GGUF files that parse and whose metadata would cost memory, a traceback or a path: refused or mended in time."""

from __future__ import annotations

import struct
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from support.gguf_fields import MODEL_TENSORS, Atom, build, model_keys, scalar, string

from exporter.report.modelfile import Chat, modelfile
from runtime.errors import ModelError, UnsupportedError
from targets.base import EmitOptions
from targets.gguf.general import ModelName
from targets.gguf.outline import outlines
from targets.gguf.plan import make_plan
from targets.gguf.reading import read_gguf_facts
from targets.gguf.target import GgufTarget

if TYPE_CHECKING:
    from pathlib import Path


def model(path: Path, *changed: list[Atom]) -> Path:
    """The small model with some keys other than they should be."""
    names = {entry[1].value for entry in changed}
    keys = [entry for entry in model_keys() if entry[1].value not in names]
    path.write_bytes(build([*keys, *changed], MODEL_TENSORS).encoded())
    return path


def test_the_model_itself_is_planned(tmp_path: Path) -> None:
    plan, problems = make_plan(read_gguf_facts(model(tmp_path / "x.gguf"), ""), EmitOptions("q8_0"))
    assert problems == []
    assert plan is not None


@pytest.mark.parametrize("layers", [0, 12, 2**31, 2**32 - 1])
def test_more_layers_than_tensors(layers: int, tmp_path: Path) -> None:
    facts = read_gguf_facts(model(tmp_path / "x.gguf", scalar("llama.block_count", 4, "<I", layers)), "")
    tracemalloc.start()
    try:
        refused = outlines(facts, ["q8_0"]).refused
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert f"says it has {layers} layers, with 11 tensors" in refused["q8_0"]
    with pytest.raises(UnsupportedError, match=f"says it has {layers} layers"):
        GgufTarget().plan(facts, EmitOptions("q8_0"))


@pytest.mark.parametrize(
    "changed",
    [
        string("llama.attention.head_count", "two"),
        scalar("llama.attention.head_count", 5, "<i", 0),
        scalar("llama.embedding_length", 7, "<?", False),
        string("llama.context_length", "long"),
        scalar("tokenizer.ggml.tokens", 4, "<I", 7),
    ],
)
def test_a_key_of_another_kind_is_a_model_error_or_none(changed: list[Atom], tmp_path: Path) -> None:
    facts = read_gguf_facts(model(tmp_path / "x.gguf", changed), "")
    for ask in (lambda: outlines(facts, ["q8_0"]), lambda: make_plan(facts, EmitOptions("q8_0"))):
        try:
            ask()
        except ModelError as error:
            assert "an entry is not what it should be" in str(error)  # noqa: PT017  either is right


@pytest.mark.parametrize(
    ("metadata", "eos"),
    [
        ({"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.eos_token_id": 1}, "b"),
        ({"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.eos_token_id": -3}, None),
        ({"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.eos_token_id": -1}, None),
        ({"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.eos_token_id": 2}, None),
        ({"tokenizer.ggml.tokens": ["a", b"\xff"], "tokenizer.ggml.eos_token_id": 1}, None),
        ({"tokenizer.chat_template": 7}, None),
        ({"tokenizer.chat_template": b"\xff"}, None),
    ],
)
def test_what_a_chat_is_made_of(metadata: dict[str, object], eos: str | None) -> None:
    chat = Chat.of_gguf(metadata)
    assert (chat.template, chat.eos) == (None, eos)
    assert modelfile("x.gguf", 64, chat).startswith("FROM ./x.gguf\n")


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("Tiny", "Tiny-1M-Q8_0.gguf"),
        ("../../etc/x", "-..-etc-x-1M-Q8_0.gguf"),
        ("a\0b\nc", "a-b-c-1M-Q8_0.gguf"),
        ("é" * 150, "é" * 100 + ".gguf"),
        ("x" * 100_000, "x" * 200 + ".gguf"),
    ],
)
def test_a_file_can_be_called_so(base: str, name: str) -> None:
    assert ModelName(base, base, "1M", None, None).file_name("q8_0") == name


def test_a_text_of_a_number_of_bytes_is_the_same_everywhere() -> None:
    """The fields that these tests are built of: a key, its type and a number, by hand."""
    raw = b"".join(atom.encoded() for atom in scalar("k", 4, "<I", 7))
    assert raw == struct.pack("<Q", 1) + b"k" + struct.pack("<II", 4, 7)
