"""What `tokenizer_metadata` writes for each family, key by key, and its errors."""

from __future__ import annotations

import json
import shutil
import struct
from typing import TYPE_CHECKING, Any

import pytest
from support.tiny_models import embedding_rows, write_tokenizer
from support.tiny_tokenizers import tiny_tokenizer

from runtime.errors import ModelError, UnsupportedError
from targets.gguf.tokenizer import TokenizerMetadata, tokenizer_metadata

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def _read(family: str, directory: Path, change: Callable[[dict[str, Any]], None] | None = None) -> TokenizerMetadata:
    """Write the tiny tokenizer of a family, change its tokenizer.json, and read it."""
    write_tokenizer(family, directory)
    tiny = tiny_tokenizer(family, 600)
    (directory / "generation_config.json").write_text(json.dumps(tiny.generation), encoding="utf-8")
    if change is not None:
        path = directory / "tokenizer.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        path.write_text(json.dumps(content), encoding="utf-8")
    return tokenizer_metadata(directory, tiny.ids, embedding_rows(family, tiny.n_tokens))


def _values(metadata: TokenizerMetadata) -> dict[str, Any]:
    """Values by key without the common prefix."""
    return {entry.key.removeprefix("tokenizer.").removeprefix("ggml."): entry.value for entry in metadata.entries}


def _id(values: dict[str, Any], text: str) -> int:
    return int(values["tokens"].index(text))


def test_smollm(tmp_path: Path) -> None:
    values = _values(_read("llama", tmp_path))
    assert values["model"] == "gpt2"
    assert values["pre"] == "smollm"
    assert values["tokens"][:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert values["token_type"] == [CONTROL] * 17 + [NORMAL] * 583
    assert len(values["merges"]) == 600 - 17 - 256
    assert all(merge.count(" ") == 1 for merge in values["merges"])
    assert (values["bos_token_id"], values["eos_token_id"], values["unknown_token_id"]) == (1, 2, 0)
    assert values["padding_token_id"] == 2
    assert values["add_bos_token"] is False
    assert values["chat_template"].startswith("{% for message in messages %}")
    assert "eot_token_id" not in values


def test_types_are_spelled_out(tmp_path: Path) -> None:
    types = {entry.key: (entry.type, entry.subtype) for entry in _read("llama2", tmp_path).entries}
    assert types["tokenizer.ggml.tokens"] == ("ARRAY", "STRING")
    assert types["tokenizer.ggml.scores"] == ("ARRAY", "FLOAT32")
    assert types["tokenizer.ggml.token_type"] == ("ARRAY", "INT32")
    assert types["tokenizer.ggml.bos_token_id"] == ("UINT32", None)
    assert types["tokenizer.ggml.add_bos_token"] == ("BOOL", None)


def test_llama3_list_of_end_tokens(tmp_path: Path) -> None:
    values = _values(_read("llama3", tmp_path))
    assert values["pre"] == "llama-bpe"
    assert values["bos_token_id"] == _id(values, "<|begin_of_text|>")
    # config.json lists <|end_of_text|> first; the tokenizer's own end token goes before it
    assert values["eos_token_id"] == _id(values, "<|eot_id|>")
    assert values["eom_token_id"] == _id(values, "<|eom_id|>")
    assert "eot_token_id" not in values
    assert values["add_bos_token"] is True


def test_qwen_pads_and_keeps_plain_added_tokens(tmp_path: Path) -> None:
    values = _values(_read("qwen2", tmp_path))
    assert values["pre"] == "qwen2"
    assert values["tokens"][599:] == ["<|file_sep|>", *(f"[PAD{i}]" for i in range(600, 640))]
    assert values["token_type"][600:] == [UNUSED] * 40
    assert values["token_type"][_id(values, "<tool_call>")] == USER_DEFINED
    assert values["token_type"][_id(values, "<|im_end|>")] == CONTROL
    # not flagged as special, but written as control tokens are
    assert values["token_type"][_id(values, "<|fim_prefix|>")] == CONTROL
    # the tokenizer has no BOS; the id comes from config.json and nothing is added
    assert values["bos_token_id"] == _id(values, "<|endoftext|>")
    assert values["add_bos_token"] is False


def test_llama2_scores_and_types(tmp_path: Path) -> None:
    values = _values(_read("llama2", tmp_path))
    assert values["model"] == "llama"
    assert values["token_type"][:4] == [UNKNOWN, CONTROL, CONTROL, BYTE]
    assert values["token_type"].count(BYTE) == 256
    # SentencePiece numbers its merges downwards from zero
    assert values["scores"][259:263] == [0.0, -1.0, -2.0, -3.0]
    assert (values["add_space_prefix"], values["add_bos_token"], values["add_eos_token"]) == (True, True, False)
    assert "merges" not in values


def test_scores_from_merges_rank_as_those_of_the_model(tmp_path: Path) -> None:
    with_model = _values(_read("llama2", tmp_path / "a"))
    write_tokenizer("llama2", tmp_path / "b")
    (tmp_path / "b" / "tokenizer.model").unlink()
    without = _values(tokenizer_metadata(tmp_path / "b", {}, 600))
    made = [i for i, kind in enumerate(with_model["token_type"]) if kind == NORMAL and len(with_model["tokens"][i]) > 1]
    by_model = sorted(made, key=lambda i: -with_model["scores"][i])
    assert by_model == sorted(made, key=lambda i: -without["scores"][i])
    assert without["scores"][by_model[0]] == 0.0
    assert without["token_type"] == with_model["token_type"]


def test_tokenizer_model_alone(tmp_path: Path) -> None:
    write_tokenizer("llama2", tmp_path)
    both = _values(tokenizer_metadata(tmp_path, {}, 600))
    (tmp_path / "tokenizer.json").unlink()
    alone = _values(tokenizer_metadata(tmp_path, {}, 600))
    for key in ("tokens", "scores", "token_type", "add_space_prefix", "add_bos_token"):
        assert alone[key] == both[key], key


def test_mistral_named_templates(tmp_path: Path) -> None:
    values = _values(_read("mistral", tmp_path))
    assert values["chat_template"].startswith("{{ bos_token }}")
    assert "AVAILABLE_TOOLS" in values["chat_template.tool_use"]
    assert values["chat_templates"] == ["tool_use"]


def test_gemma_turn_end_and_missing_row(tmp_path: Path) -> None:
    metadata = _read("gemma3", tmp_path)
    values = _values(metadata)
    assert len(values["tokens"]) == 599
    assert any("<image_soft_token>" in note for note in metadata.notes)
    assert values["eos_token_id"] == 1
    assert values["eot_token_id"] == _id(values, "<end_of_turn>")
    assert (values["add_space_prefix"], values["add_bos_token"]) == (False, True)
    assert values["token_type"][_id(values, "\n\n")] == USER_DEFINED


def test_template_decides_on_bos_and_the_flag_is_named(tmp_path: Path) -> None:
    write_tokenizer("llama3", tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_bos_token": False}), encoding="utf-8")
    metadata = tokenizer_metadata(tmp_path, {}, 600)
    assert _values(metadata)["add_bos_token"] is True
    assert any("add_bos_token=False" in note for note in metadata.notes)


def test_flag_decides_where_there_is_no_template(tmp_path: Path) -> None:
    write_tokenizer("llama", tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_bos_token": True}), encoding="utf-8")
    assert _values(tokenizer_metadata(tmp_path, {}, 600))["add_bos_token"] is True


def test_generation_config_names_a_stop_token_that_config_lacks(tmp_path: Path) -> None:
    """A stop token that llama.cpp does not know by its text takes the key of the end of a turn."""
    write_tokenizer("llama", tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5]}), encoding="utf-8")
    values = _values(tokenizer_metadata(tmp_path, {"eos_token_id": 2}, 600))
    assert values["tokens"][5] == "<file_sep>"
    assert values["eot_token_id"] == 5


def test_files_win_over_the_template_in_the_config(tmp_path: Path) -> None:
    write_tokenizer("llama", tmp_path)
    (tmp_path / "chat_template.jinja").write_text("from the file", encoding="utf-8")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("for search", encoding="utf-8")
    values = _values(tokenizer_metadata(tmp_path, {}, 600))
    assert values["chat_template"] == "from the file"
    assert values["chat_template.rag"] == "for search"


def test_merges_as_text_and_as_pairs_are_the_same(tmp_path: Path) -> None:
    def as_text(content: dict[str, Any]) -> None:
        content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]

    assert _values(_read("llama", tmp_path / "a", as_text)) == _values(_read("llama", tmp_path / "b"))


def _unknown_regex(content: dict[str, Any]) -> None:
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] += "|x{7}"


def _hole(content: dict[str, Any]) -> None:
    model = content["model"]
    gone = next(text for text, token_id in model["vocab"].items() if token_id == 400)
    del model["vocab"][gone]
    model["merges"] = [pair for pair in model["merges"] if gone not in (*pair, "".join(pair))]


def _same_id(content: dict[str, Any]) -> None:
    content["model"]["vocab"]["zzzz"] = 300


def _merge_twice(content: dict[str, Any]) -> None:
    content["model"]["merges"].append(content["model"]["merges"][0])


def _merge_of_nothing(content: dict[str, Any]) -> None:
    content["model"]["merges"][3] = ["qqq", "www"]


def _too_many(content: dict[str, Any]) -> None:
    content["model"]["vocab"]["zzzz"] = 600


def _added_contradicts(content: dict[str, Any]) -> None:
    content["added_tokens"][0]["content"] = "<other>"


def _prefix_space(content: dict[str, Any]) -> None:
    content["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True


def _lowercase(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "Lowercase"}


def _unigram(content: dict[str, Any]) -> None:
    content["model"] = {"type": "Unigram", "vocab": [["a", 0.0]]}


@pytest.mark.parametrize(
    ("family", "change", "error", "message"),
    [
        ("llama3", _unknown_regex, UnsupportedError, r"x\{7\}.*nearest: llama-bpe"),
        ("llama", _hole, ModelError, "no token has the id 400, the highest is 599"),
        ("llama", _same_id, ModelError, "'zzzz' have the same id 300"),
        ("llama", _merge_twice, ModelError, "is there twice"),
        ("llama", _merge_of_nothing, ModelError, "merge 3 .* not in the vocabulary"),
        ("llama", _too_many, ModelError, r"'zzzz'\) has no row in the embedding of 600 rows"),
        ("llama", _added_contradicts, ModelError, "<other>"),
        ("llama", _prefix_space, UnsupportedError, "add_prefix_space=True"),
        ("llama", _lowercase, UnsupportedError, "normalizer Lowercase"),
        ("llama2", _lowercase, UnsupportedError, "as this does: Lowercase"),
        ("llama", _unigram, UnsupportedError, "no precompiled map of characters"),
    ],
)
def test_errors(family: str, change: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message) as caught:
        _read(family, tmp_path, change)
    assert "\n" not in str(caught.value)
    assert "tokenizer" in str(caught.value)


def test_key_twice_in_the_vocabulary(tmp_path: Path) -> None:
    write_tokenizer("llama", tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"vocab": {', '"vocab": {"!": 3, '), encoding="utf-8")
    with pytest.raises(ModelError, match="the key '!' is there twice"):
        tokenizer_metadata(tmp_path, {}, 600)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        tokenizer_metadata(tmp_path, {}, 600)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_damaged_json(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=r"tokenizer\.json: (is not|has no)"):
        tokenizer_metadata(tmp_path, {}, 600)


def test_cut_tokenizer_model(tmp_path: Path) -> None:
    write_tokenizer("llama2", tmp_path)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:1001])
    with pytest.raises(ModelError, match="is not a SentencePiece model"):
        tokenizer_metadata(tmp_path, {}, 600)


def test_unigram_model_is_refused(tmp_path: Path) -> None:
    # pieces {1: "a", 2: -1.0}, trainer {3: 1}
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x08\x0a\x01a\x15" + struct.pack("<f", -1.0) + b"\x12\x02\x18\x01")
    with pytest.raises(UnsupportedError, match="unigram"):
        tokenizer_metadata(tmp_path, {}, 1)


def test_embedding_smaller_than_the_base_vocabulary(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    write_tokenizer("llama2", tmp_path)
    with pytest.raises(ModelError, match="has no row in the embedding of 500 rows"):
        tokenizer_metadata(tmp_path, {}, 500)


def test_inside_read_once_a_directory_is_read_once(tiny_llama, monkeypatch):
    from targets.gguf.tokenizer import files

    read = []
    real = files._read
    monkeypatch.setattr(files, "_read", lambda directory: read.append(directory) or real(directory))
    with files.read_once():
        assert files.read_files(tiny_llama) is files.read_files(tiny_llama)
    assert read == [tiny_llama]
    assert files.read_files(tiny_llama) is not files.read_files(tiny_llama)
    assert len(read) == 3
