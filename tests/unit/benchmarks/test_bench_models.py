"""The benchmarks' models: weights written and read back, and the off-grid copy that computes the same function."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.models import LlamaShape, offgrid
from benchmarks.smollm2 import _hf_name, gguf_file, smollm2
from benchmarks.weights import from_bf16, plan_shards, read_model, to_bf16, write_model
from runtime.artifact import open_artifact
from runtime.measurement import RunOptions
from runtime.sessions import open_session

if TYPE_CHECKING:
    from pathlib import Path


def test_bf16_rounds_to_nearest_even():
    # bf16 keeps 7 fraction bits: above 1 the steps are 2**-7 = 0.0078125
    step = 2.0**-7
    values = np.array([1.0, 1 + 0.4 * step, 1 + 0.5 * step, 1 + 0.6 * step, 1 + 1.5 * step, -3.5], dtype=np.float32)
    rounded = from_bf16(to_bf16(values))
    np.testing.assert_array_equal(rounded, [1.0, 1.0, 1.0, 1 + step, 1 + 2 * step, -3.5])


def test_shards_are_cut_before_the_limit():
    shapes = {"a": (4,), "b": (4,), "c": (20,), "d": (1,)}
    assert plan_shards(shapes, "BF16", limit=16) == [{"a": (4,), "b": (4,)}, {"c": (20,)}, {"d": (1,)}]


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_written_model_reads_back_here_and_in_safetensors(tmp_path: Path, dtype: str):
    from safetensors import safe_open

    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([-0.5], dtype=np.float32)}
    write_model(tmp_path, {name: value.shape for name, value in tensors.items()}, tensors.values(), dtype)
    for name, value in read_model(tmp_path):
        np.testing.assert_array_equal(value, tensors[name])
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.get_tensor("a").float().tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_shape_that_was_not_planned_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="a: shape"):
        write_model(tmp_path, {"a": (2,)}, [np.zeros(3, dtype=np.float32)], "F32")


def test_names_of_gguf_tensors():
    assert _hf_name("blk.3.attn_q.weight") == "model.layers.3.self_attn.q_proj.weight"
    assert _hf_name("token_embd.weight") == "model.embed_tokens.weight"


@pytest.mark.parametrize(("params", "hidden"), [(1e9, 2048), (3e9, 3072)])
def test_random_llama_has_just_enough_layers(params: float, hidden: int):
    shape = LlamaShape.for_params(params, hidden)
    fewer = LlamaShape(**{**vars(shape), "layers": shape.layers - 1})
    assert fewer.params < params <= shape.params


def test_offgrid_copy_computes_the_same_function(tiny_llama: Path, tmp_path: Path):
    import torch
    from transformers import AutoModelForCausalLM

    copy = offgrid(tiny_llama, tmp_path / "offgrid")
    before, after = dict(read_model(tiny_llama)), dict(read_model(copy))
    changed = {name for name, value in before.items() if not np.allclose(value, after[name])}
    assert {name.split(".")[-2] for name in changed} == {
        "input_layernorm", "post_attention_layernorm", "q_proj", "k_proj", "v_proj", "o_proj",
        "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    ids = torch.arange(1, 20)[None]
    logits = []
    for directory in (tiny_llama, copy):
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        with torch.no_grad():
            logits.append(model(ids).logits)
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_smollm2_has_the_token_ids_of_its_gguf():
    from tokenizers import Tokenizer

    ours = Tokenizer.from_file(str(smollm2() / "tokenizer.json"))
    theirs = open_session(open_artifact(gguf_file()), RunOptions(context=64))
    for text in ("Hello  world", "2026-11-05 ²½ ١٢", "<|im_start|>user\nhi<|im_end|>", "naïve 漢字 👍🏽\r\n\tx"):
        assert ours.encode(text).ids == theirs.tokenize(text, add_special=False)
    theirs.close()
