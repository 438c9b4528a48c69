"""llama.cpp's tokenizer on what `tokenizer_metadata` writes, against tokenizer.json itself, on hard strings.

The reference is the `tokenizers` library on the file. transformers 5 rebuilds some tokenizers from their class and
then splits text in another way than their tokenizer.json: `test_auto_tokenizer` pins where.
"""

from __future__ import annotations

import json
import random
import unicodedata
from typing import TYPE_CHECKING

import pytest
from support.hard_strings import HARD_STRINGS
from support.parity import emit
from support.tiny_models import FAMILIES, embedding_rows, write_tokenizer
from support.tiny_tokenizers import corpus, tiny_tokenizer
from support.vocab_gguf import LlamaVocab, write_vocab
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from runtime.measurement import RunOptions
from runtime.sessions import open_session
from targets.gguf.tokenizer import tokenizer_metadata
from targets.gguf.tokenizer.pretokenizers import KNOWN, PreTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_ALPHABET = "aAsStT'  \t\n\r019.,!-_/()éÉ你あ한👍\u0301ǅßʰªΩѣ\u00a0\u3000²½…“”$+<>|~"
_ASCII = "aAbBsStT'  \t\n\r0129.,!-_/()$+<>|~"


def _fuzz(count: int, alphabet: str = _ALPHABET) -> list[str]:
    source = random.Random(0)
    return ["".join(source.choice(alphabet) for _ in range(source.randint(1, 30))) for _ in range(count)]


def _strings(tokenizer: Tokenizer) -> list[str]:
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if "image" not in token.content]
    around = [f"a{text}b {text} c{text}{text}\n{text}" for text in special]
    return [*HARD_STRINGS, *around, "".join(special), *corpus()[::20], *_fuzz(300)]


def _differing(family: str, directory: Path) -> tuple[list[str], list[str]]:
    """Strings whose ids differ, and the notes that tokenizer_metadata made."""
    write_tokenizer(family, directory)
    tiny = tiny_tokenizer(family, 600)
    metadata = tokenizer_metadata(directory, tiny.ids, embedding_rows(family, tiny.n_tokens))
    ours = LlamaVocab(write_vocab(metadata.entries, directory / "vocab.gguf"))
    theirs = Tokenizer.from_file(str(directory / "tokenizer.json"))
    differing = [text for text in _strings(theirs) if ours.tokenize(text) != theirs.encode(text).ids]
    ours.close()
    return differing, metadata.notes


@pytest.mark.parametrize("family", ["llama", "llama3", "llama2", "gemma3"])
def test_same_ids(family: str, tmp_path: Path) -> None:
    assert _differing(family, tmp_path)[0] == []


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_same_ids_but_for_text_that_is_not_composed(family: str, tmp_path: Path) -> None:
    differing, notes = _differing(family, tmp_path)
    assert differing
    assert all(unicodedata.normalize("NFC", text) != text for text in differing)
    assert any("NFC" in note for note in notes)


@pytest.mark.parametrize("family", ["llama", "llama3", "llama2", "gemma3"])
def test_same_ids_from_an_exported_file(family: str, tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    directory = tiny_model_dir(family)
    session = open_session(emit(directory, tmp_path), RunOptions(context=64))
    theirs = Tokenizer.from_file(str(directory / "tokenizer.json"))
    differing = [text for text in HARD_STRINGS if session.tokenize(text, add_special=True) != theirs.encode(text).ids]
    session.close()
    assert differing == []


def test_mistral_differs_only_where_llamacpp_adds_a_space(tmp_path: Path) -> None:
    differing, notes = _differing("mistral", tmp_path)
    special = tuple(token["content"] for token in json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"])
    assert all(text.startswith((" ", "▁")) or any(token in text for token in special) for text in differing)
    assert " a" in differing
    assert "a b" not in differing
    assert sum("puts a space" in note for note in notes) == 2


def _pre_tokenizer(steps: tuple[str, ...]) -> pre_tokenizers.PreTokenizer:
    parts = {
        "byte-level": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        "gpt2+byte-level": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "digit by digit": pre_tokenizers.Digits(individual_digits=True),
        "runs of digits": pre_tokenizers.Digits(individual_digits=False),
        "runs of punctuation": pre_tokenizers.Punctuation("contiguous"),
    }
    splits = [parts[step] if step in parts else pre_tokenizers.Split(Regex(step), "isolated") for step in steps]
    return pre_tokenizers.Sequence(splits)


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
def test_every_known_pre_tokenizer(known: PreTokenizer, tmp_path: Path) -> None:
    """A tokenizer of the structure is found under the name, and llama.cpp splits text as it does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer(known.steps)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*corpus()[::3], *_fuzz(1000)], trainer)
    content = json.loads(tokenizer.to_str())
    content["model"]["ignore_merges"] = known.ignore_merges
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"clean_up_tokenization_spaces": known.cleans}))
    rows = tokenizer.get_vocab_size()
    metadata = tokenizer_metadata(tmp_path, {"bos_token_id": 0, "eos_token_id": 0}, rows)
    assert {entry.key: entry.value for entry in metadata.entries}["tokenizer.ggml.pre"] == known.name
    ours = LlamaVocab(write_vocab(metadata.entries, tmp_path / "vocab.gguf"))
    theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    strings = [*HARD_STRINGS, *corpus()[::20], *_fuzz(1000), *_fuzz(300, _ASCII)]
    differing = [text for text in strings if ours.tokenize(text) != theirs.encode(text).ids]
    ours.close()
    if known.inexact:
        assert not any(text.isascii() for text in differing)
        assert any(known.inexact in note for note in metadata.notes)
    else:
        assert differing == []


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_tokenizer(family: str, tmp_path: Path) -> None:
    """Where transformers' AutoTokenizer is not the tokenizer of the file; `verify` has to know."""
    transformers = pytest.importorskip("transformers")
    write_tokenizer(family, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": _MODEL_TYPES[family]}), encoding="utf-8")
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    file = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    differing = [text for text in HARD_STRINGS if auto(text)["input_ids"] != file.encode(text).ids]
    if family == "llama":  # GPT2Tokenizer is rebuilt without the step that splits digits
        assert "a   12 3" in differing
        assert all(any(character.isdigit() for character in text) for text in differing)
    elif family == "llama2":  # LlamaTokenizer is rebuilt with a Metaspace, which does not double a leading space
        assert " a" in differing
        assert all(text.startswith((" ", "▁")) or "<unk>" in text or not text for text in differing)
    else:
        assert differing == []


_MODEL_TYPES = {
    "llama": "llama", "llama3": "llama", "llama2": "llama", "mistral": "mistral", "qwen2": "qwen2", "qwen3": "qwen3",
    "gemma3": "gemma3_text",
}  # fmt: skip
