"""The tokenizer and the chat template beside an ONNX graph."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support.tiny_encoders import make_tiny_encoder

from runtime.errors import ArtifactError
from runtime.sessions.onnx_tokenizer import DirectoryTokenizer

if TYPE_CHECKING:
    from pathlib import Path

CLS, SEP, UNKNOWN = 2, 3, 1
H, I = 5 + ord("h") - 33, 5 + 94 + ord("i") - 33  # noqa: E741 - a letter at a word's beginning, and one behind it


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_encoder(tmp_path_factory.mktemp("tokenizer"))


def write_config(directory: Path, **config: object) -> DirectoryTokenizer:
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return DirectoryTokenizer(directory)


def test_special_tokens_only_where_they_are_asked_for(files: Path) -> None:
    tokenizer = DirectoryTokenizer(files)
    assert tokenizer.tokenize("Hi", add_special=True) == [CLS, H, I, SEP]
    assert tokenizer.tokenize("Hi", add_special=False) == [H, I]
    assert tokenizer.tokenize("", add_special=True) == [CLS, SEP]


def test_truncation_and_padding_of_the_file_are_turned_off(files: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(files / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = DirectoryTokenizer(tmp_path)
    assert len(found.tokenize("h" * 30, add_special=True)) == 32
    assert found.tokenize("hi", add_special=True) == [CLS, H, I, SEP]


def test_half_a_surrogate_pair_is_replaced_and_a_whole_one_kept(files: Path) -> None:
    tokenizer = DirectoryTokenizer(files)
    # a lone one becomes U+FFFD, which BERT's normalizer removes
    assert tokenizer.tokenize("hi \ud83d", add_special=False) == [H, I]
    assert tokenizer.tokenize("\ud83d\ude42", add_special=False) == tokenizer.tokenize("🙂", add_special=False)
    assert tokenizer.tokenize("🙂", add_special=False) == [UNKNOWN]


def test_a_missing_tokenizer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: is missing") as caught:
        DirectoryTokenizer(tmp_path).tokenize("hi", add_special=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", '{"version": "1.0"}'])
def test_a_damaged_tokenizer_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"tokenizer\.json") as caught:
        DirectoryTokenizer(tmp_path).tokenize("hi", add_special=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ messages }}", "{{ messages }}"),
        ([{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        ([{"name": "tool", "template": "t"}], None),
        (None, None),
    ],
)
def test_chat_templates(template: object, expected: str | None, tmp_path: Path) -> None:
    assert write_config(tmp_path, chat_template=template).chat_template() == expected


def test_special_texts(tmp_path: Path) -> None:
    tokenizer = write_config(tmp_path, bos_token="<s>", eos_token={"content": "</s>", "lstrip": False}, pad_token=None)
    assert (tokenizer.special_text("bos"), tokenizer.special_text("eos")) == ("<s>", "</s>")
    assert (tokenizer.special_text("pad"), tokenizer.special_text("cls")) == (None, None)


def test_without_settings_there_is_nothing(tmp_path: Path) -> None:
    tokenizer = DirectoryTokenizer(tmp_path)
    assert (tokenizer.chat_template(), tokenizer.special_text("bos")) == (None, None)


def test_damaged_settings_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"tokenizer_config\.json: is not JSON") as caught:
        DirectoryTokenizer(tmp_path).chat_template()
    assert "\n" not in str(caught.value)
