from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.doubles import BOS, TEMPLATE, FakeSession

from exporter.verify.reference import GgufReference, TransformersReference, bos_of
from runtime.errors import ModelError
from runtime.measurement import RunOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TURNS = ({"role": "user", "content": "hi"},)


def test_bos_is_what_stands_before_a_text_with_special_tokens() -> None:
    assert bos_of(FakeSession(add_bos=True).tokenize) == BOS
    assert bos_of(FakeSession().tokenize) is None

    def only_eos(text: str, *, add_special: bool) -> list[int]:
        return [*text.encode(), *([257] if add_special else [])]

    assert bos_of(only_eos) is None


def test_logits_from_a_position_on_are_the_tail_of_all(tiny_llama: Path) -> None:
    import torch

    before = torch.get_num_threads()
    reference = TransformersReference(tiny_llama, threads=1)
    assert torch.get_num_threads() == 1
    ids = list(range(20, 44))
    whole, tail = reference.logits(ids), reference.logits(ids, 12)
    assert (whole.shape, tail.shape, whole.dtype) == ((24, reference.n_vocab), (12, reference.n_vocab), np.float32)
    np.testing.assert_allclose(tail, whole[12:], rtol=1e-4, atol=1e-5)
    reference._can_skip = False  # a model of the user's own need not know logits_to_keep
    np.testing.assert_allclose(reference.logits(ids, 12), whole[12:], rtol=1e-4, atol=1e-5)
    reference.close()
    assert torch.get_num_threads() == before


def test_token_ids_are_those_of_the_file_where_transformers_builds_another_tokenizer(
    tiny_llama: Path, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    path = tmp_path / "model"
    shutil.copytree(tiny_llama, path)
    config = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "GPT2Tokenizer"}))
    text = "a   12 3"
    of_file = Tokenizer.from_file(str(path / "tokenizer.json")).encode(text).ids
    assert AutoTokenizer.from_pretrained(path)(text)["input_ids"] != of_file  # the reason for this test
    reference = TransformersReference(path)
    assert reference.tokenize(text, add_special=True) == of_file
    reference.close()


def test_tokens_and_templates_are_those_of_transformers(tiny_llama: Path, tiny_llama2: Path) -> None:
    from transformers import AutoTokenizer

    for path in (tiny_llama, tiny_llama2):
        reference, tokenizer = TransformersReference(path), AutoTokenizer.from_pretrained(path)
        assert reference.tokenize("a b\n", add_special=True) == tokenizer("a b\n")["input_ids"]
        expected = tokenizer.apply_chat_template(list(TURNS), tokenize=False, add_generation_prompt=True)
        assert reference.render(TURNS, prompt=True) == expected
        assert reference.has_chat_template
        assert set(reference.special_tokens) <= set(tokenizer.all_special_tokens)
        reference.close()
    assert reference.bos_id == tokenizer.bos_token_id  # Llama 2 adds it


@pytest.fixture
def copy(tiny_llama: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_llama, tmp_path / "model")


def test_weights_that_are_missing_are_not_made_up(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing, the first is model\.layers\.1\.mlp\.up_proj"):
        TransformersReference(copy)


def test_what_transformers_refuses_is_one_line(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "no-such-model"}))
    with pytest.raises(ModelError) as caught:
        TransformersReference(copy)
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value)


def test_a_gguf_source_is_a_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s.gguf").write_bytes(b"GGUF")
    opened: list[FakeSession] = []

    def open_fake(template: str | None) -> Callable[..., FakeSession]:
        return lambda *_: opened.append(FakeSession(add_bos=True, template=template)) or opened[-1]

    monkeypatch.setattr("exporter.verify.reference.open_session", open_fake(TEMPLATE))
    reference = GgufReference(tmp_path / "s.gguf", RunOptions())
    assert (reference.bos_id, reference.special_tokens) == (BOS, ("<s>", "</s>"))
    assert reference.description == "s.gguf in fake engine 1"
    assert reference.logits([1, 2, 3], 1).shape == (2, reference.n_vocab)
    assert reference.render(TURNS, prompt=True) == "<s>user: hi</s>assistant:"
    reference.close()
    assert opened[0].closed
    monkeypatch.setattr("exporter.verify.reference.open_session", open_fake(None))
    without = GgufReference(tmp_path / "s.gguf", RunOptions())
    assert not without.has_chat_template
    with pytest.raises(ModelError, match="has no chat template"):
        without.render(TURNS, prompt=False)
