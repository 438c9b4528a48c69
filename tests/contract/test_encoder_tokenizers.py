"""llama.cpp's tokenizers of encoders on what `tokenizer_metadata` writes, against tokenizer.json itself."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest
from support.hard_strings import HARD_STRINGS
from support.tiny_gguf_encoders import charsmap_of, sentencepiece_ids, write_encoder_tokenizer
from support.tiny_tokenizers import corpus
from support.vocab_gguf import LlamaVocab, write_vocab
from tokenizers import Tokenizer

from exporter.verify.parity import HARD_STRINGS as VERIFIED
from exporter.verify.parity import shorten
from runtime.errors import ModelError, UnsupportedError
from targets.gguf.tokenizer import TokenizerMetadata, tokenizer_metadata

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_ALPHABET = "aAsStT'  \t\n\r019.,!-_/()éÉ你あ한👍\u0301ǅßʰªΩѣ\u00a0\u3000²½…“”$+<>|~\u0001\u200b\ufffd\u007f"


def fuzz(count: int) -> list[str]:
    source = random.Random(0)
    return ["".join(source.choice(_ALPHABET) for _ in range(source.randint(1, 30))) for _ in range(count)]


def read(kind: str, directory: Path, change: Callable[[dict[str, Any]], None] | None = None) -> TokenizerMetadata:
    """Write the tokenizer, change its tokenizer.json, and read it."""
    rows = write_encoder_tokenizer(kind, directory)
    if change is not None:
        path = directory / "tokenizer.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        path.write_text(json.dumps(content), encoding="utf-8")
    return tokenizer_metadata(directory, {}, rows + 3)


def values(metadata: TokenizerMetadata) -> dict[str, Any]:
    """Values by key without the common prefix."""
    return {entry.key.removeprefix("tokenizer.ggml."): entry.value for entry in metadata.entries}


def differing(kind: str, directory: Path, strings: list[str]) -> list[str]:
    """The strings whose ids, special ones included, differ."""
    metadata = read(kind, directory)
    ours = LlamaVocab(write_vocab(metadata.entries, directory / "vocab.gguf"))
    theirs = Tokenizer.from_file(str(directory / "tokenizer.json"))
    found = [text for text in strings if ours.tokenize(text) != theirs.encode(text).ids]
    found += [
        text
        for text in strings
        if ours.tokenize(text, add_special=False) != theirs.encode(text, add_special_tokens=False).ids
    ]
    ours.close()
    return list(dict.fromkeys(found))


def strings(kind: str) -> list[str]:
    mask = "[MASK]" if kind.startswith("wordpiece") else "<mask>"
    around = [f"a{mask}b {mask} c{mask}{mask}\n{mask}", mask, f"{mask} x"]
    return [*HARD_STRINGS, *VERIFIED, *around, *corpus()[::20], *fuzz(500)]


@pytest.mark.parametrize("kind", ["wordpiece-cased", "byte-level"])
def test_same_ids(kind: str, tmp_path: Path) -> None:
    # A word's beginning is a ▁ in the file: one that stands in a text begins a word.
    assert [text for text in differing(kind, tmp_path, strings(kind)) if kind == "byte-level" or "▁" not in text] == []


def test_a_capital_that_becomes_two_letters_is_the_one_that_differs(tmp_path: Path) -> None:
    found = differing("wordpiece-accents", tmp_path, strings("wordpiece"))
    assert [text for text in found if "▁" not in text and "İ" not in text] == []


def test_unigram_is_sentencepiece_where_tokenizer_json_is_not(tmp_path: Path) -> None:
    """tokenizers drops a combining mark behind a character that it maps, and takes a C1 control for a space."""
    found = differing("unigram", tmp_path, strings("unigram"))
    assert [text for text in found if not {"\u0301", "\x85"} & {*text}] == []
    assert not {*found} & {*VERIFIED}
    ours = LlamaVocab(tmp_path / "vocab.gguf")
    assert [text for text in [*found, *fuzz(100)] if ours.tokenize(text) != sentencepiece_ids(text)] == []
    ours.close()


def test_same_ids_but_where_llama_cpp_takes_more_than_accents_away(tmp_path: Path) -> None:
    found = [text for text in differing("wordpiece", tmp_path, strings("wordpiece")) if "▁" not in text]
    assert {
        "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4",
        "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e",
    } <= {*found}
    assert any("first letter of a Korean syllable" in note for note in read("wordpiece", tmp_path).notes)
    ours = LlamaVocab(tmp_path / "vocab.gguf")
    theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [text for text in found if ours.tokenize(text) != theirs.encode(shorten(text)).ids] == []
    ours.close()


def test_a_word_that_bert_takes_for_unknown_for_its_length_is_noted(tmp_path: Path) -> None:
    assert differing("wordpiece", tmp_path, ["a" * 100, "a" * 101]) == ["a" * 101]
    assert any("more than 100 characters" in note for note in read("wordpiece", tmp_path).notes)


def test_word_pieces_as_llama_cpp_looks_them_up(tmp_path: Path) -> None:
    found = values(read("wordpiece-cased", tmp_path))
    vocab = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    assert found["model"] == "bert"
    assert found["tokens"][:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert found["tokens"][-1] == f"[PAD{len(vocab) + 2}]"
    for text in ("the", "##s"):
        assert found["tokens"][vocab[text]] == {"the": "▁the", "##s": "s"}[text]
    names = ("padding", "unknown", "bos", "seperator", "mask")
    assert [found[f"{name}_token_id"] for name in names] == [0, 1, 2, 3, 4]
    assert (found["normalizer.lowercase"], found["normalizer.strip_accents"]) == (False, False)
    # [CLS] first [SEP] second [SEP], as llama.cpp's server puts two texts together
    assert [found[f"add_{name}_token"] for name in ("bos", "eos", "sep")] == [True, True, False]


@pytest.mark.parametrize("kind", ["unigram", "byte-level"])
def test_roberta_puts_two_separators_between_texts(kind: str, tmp_path: Path) -> None:
    found = values(read(kind, tmp_path))
    assert [found[f"add_{name}_token"] for name in ("bos", "eos", "sep")] == [True, True, True]
    assert [found[f"{name}_token_id"] for name in ("bos", "eos", "seperator", "padding", "unknown")] == [0, 2, 2, 1, 3]


def test_pieces_keep_their_scores_and_the_map_of_characters(tmp_path: Path) -> None:
    found = values(read("unigram", tmp_path))
    text = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    pieces = json.loads(text)["model"]["vocab"]
    assert (found["model"], found["tokens"][:4]) == ("t5", ["<s>", "<pad>", "</s>", "<unk>"])
    assert list(zip(found["tokens"], found["scores"], strict=True))[: len(pieces)] == [tuple(p) for p in pieces]
    assert bytes(found["precompiled_charsmap"]) == charsmap_of(text)
    assert found["token_type"][:5] == [3, 3, 3, 2, 1]


def _set(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("wordpiece", _set("normalizer", "clean_text", to=False), "clean_text=False"),
        ("wordpiece", _set("normalizer", to=None), "not by None"),
        ("wordpiece", _set("pre_tokenizer", to={"type": "Whitespace"}), "not by Whitespace"),
        ("wordpiece", _set("model", "continuing_subword_prefix", to="@@"), "continuing_subword_prefix='@@'"),
        ("wordpiece", _set("post_processor", to=None), "adds no token before and after"),
        ("unigram", _set("normalizer", to={"type": "NFKC"}), "does not apply the normalizer NFKC"),
        ("unigram", _set("normalizer", to=None), "no precompiled map"),
        ("unigram", _set("pre_tokenizer", to={"type": "ByteLevel"}), "cannot split words for Unigram by ByteLevel"),
        (
            "unigram",
            _set("pre_tokenizer", to={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}),
            "keeps spaces at the ends",
        ),
        ("unigram", _set("model", "byte_fallback", to=True), "byte_fallback"),
        ("unigram", _set("model", "unk_id", to=None), "names no unknown token"),
        ("unigram", _set("normalizer", "precompiled_charsmap", to="!"), "precompiled_charsmap is damaged"),
        ("unigram", _set("model", "vocab", to=[["a"]]), "no piece with a score"),
    ],
)
def test_what_llama_cpp_does_not_do_is_refused(
    kind: str, change: Callable[[dict[str, Any]], None], says: str, tmp_path: Path
) -> None:
    with pytest.raises((UnsupportedError, ModelError), match=says):
        read(kind, tmp_path, change)


def test_tokens_that_would_be_one_are_refused(tmp_path: Path) -> None:
    """llama.cpp ends the process where two ids have one text."""

    def twice(content: dict[str, Any]) -> None:
        vocab = content["model"]["vocab"]
        vocab["##▁the"] = len(vocab)

    with pytest.raises(UnsupportedError, match="cannot tell the tokens 'the' and '##▁the' apart"):
        read("wordpiece", tmp_path, twice)
