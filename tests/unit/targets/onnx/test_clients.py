"""The files of the clients, from hand-written configs."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest

from runtime.errors import ModelError
from targets.gguf.tokenizer.files import read_files
from targets.onnx.clients import Decoder, TokenIds, copy_side_files, genai_config, token_ids, web_config

if TYPE_CHECKING:
    from pathlib import Path

DECODER = Decoder(
    file="onnx/model_q4.onnx", n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, hidden=64, vocab=600,
    context_length=1024, ids=TokenIds(bos=1, eos=(2,), pad=0),
)  # fmt: skip
LLAMA: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 600}
TOKENIZER = '{"model": {"type": "BPE", "vocab": {}}}'


def source(directory: Path, **files: Any) -> Path:
    """A model directory: tokenizer.json, and every file given by its name without the ending, as JSON or as text."""
    (directory / "tokenizer.json").write_text(TOKENIZER)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (directory / f"{name}.json").write_text(text)
    return directory


def test_genai_config_is_what_the_engine_reads() -> None:
    assert genai_config(LLAMA, DECODER) == {
        "model": {
            "bos_token_id": 1,
            "pad_token_id": 0,
            "eos_token_id": 2,
            "context_length": 1024,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "onnx/model_q4.onnx",
                "head_size": 16,
                "hidden_size": 64,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": 4,
                "num_hidden_layers": 2,
                "num_key_value_heads": 2,
            },
            "type": "llama",
            "vocab_size": 600,
        },
        "search": {
            "do_sample": False,
            "no_repeat_ngram_size": 0,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
            "max_length": 1024,
            "past_present_share_buffer": True,
        },
    }


def test_genai_config_takes_the_makers_sampling_and_several_ends() -> None:
    decoder = dataclasses.replace(DECODER, context_length=32768, ids=TokenIds(None, (7, 3), 7))
    generation = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 1, "repetition_penalty": None, "x": 1}
    made = genai_config({"model_type": "qwen3"}, decoder, generation, {"intra_op_num_threads": 2})
    assert made["model"]["eos_token_id"] == [7, 3]
    # The engine refuses a null: what the model has not is left out.
    assert "bos_token_id" not in made["model"]
    assert made["model"]["decoder"]["session_options"]["intra_op_num_threads"] == 2
    assert made["search"] == {
        "do_sample": True, "no_repeat_ngram_size": 0, "repetition_penalty": 1.0, "temperature": 0.6, "top_k": 20,
        "top_p": 1.0, "past_present_share_buffer": True,
        # the cache of all 32768 tokens would be allocated at once
        "max_length": 2048,
    }  # fmt: skip
    assert made["model"]["context_length"] == 32768


def test_genai_calls_the_text_part_of_gemma_3_by_its_own_name() -> None:
    assert genai_config({"model_type": "gemma3"}, DECODER)["model"]["type"] == "gemma3_text"
    assert genai_config({"model_type": "gemma3_text"}, DECODER)["model"]["type"] == "gemma3_text"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"temperature": "0.6"}, "'temperature' is 0.6, not a number"),
        ({"do_sample": 1}, "'do_sample' is 1, not true or false"),
        ({"top_k": 2.5}, "'top_k' is 2.5, not an integer"),
        ({"top_k": True}, "'top_k' is True, not an integer"),
    ],
)
def test_a_setting_of_the_wrong_type_is_refused(setting: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=f"^generation_config.json: {said}; correct it or delete it$"):
        genai_config(LLAMA, DECODER, setting)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        # generation_config.json wins; a missing pad is the first end
        ({"eos_token_id": [9, 4]}, {"bos_token_id": 1, "eos_token_id": 2}, TokenIds(1, (9, 4), 9)),
        ({"pad_token_id": 0}, {"eos_token_id": 2, "pad_token_id": 5}, TokenIds(None, (2,), 0)),
        # a zero is an id, -1 is none
        ({"bos_token_id": 0, "eos_token_id": 0}, {"bos_token_id": 3, "pad_token_id": -1}, TokenIds(0, (0,), 0)),
        ({}, {"eos_token_id": None}, TokenIds(None, (), None)),
    ],
)
def test_token_ids(generation: dict[str, Any], config: dict[str, Any], expected: TokenIds, tmp_path: Path) -> None:
    files = read_files(source(tmp_path, generation_config=generation))
    assert token_ids(files, config) == expected


@pytest.mark.parametrize("value", ["</s>", True, [2, "x"], 2.0])
def test_what_is_no_token_id_is_refused(value: object, tmp_path: Path) -> None:
    files = read_files(source(tmp_path, generation_config={"eos_token_id": value}))
    with pytest.raises(ModelError, match=r"generation_config.json: 'eos_token_id' is .*, not a token id or a list"):
        token_ids(files, {})


def test_web_config_names_the_file_that_exists() -> None:
    config = {**LLAMA, "transformers.js_config": {"dtype": "fp32", "use_external_data_format": True}}
    made = web_config(config, "onnx/model_q4.onnx", data_files=1, decoder=DECODER)
    assert made == {
        **LLAMA,
        # a config of an old Llama has neither, and transformers.js 3 makes the empty cache from them
        "num_key_value_heads": 2,
        "head_dim": 16,
        "transformers.js_config": {"dtype": "q4", "use_external_data_format": {"model_q4.onnx": 1}},
    }
    assert config["transformers.js_config"] == {"dtype": "fp32", "use_external_data_format": True}


@pytest.mark.parametrize(
    ("file", "dtype"),
    [("model.onnx", "fp32"), ("model_fp16.onnx", "fp16"), ("model_int8.onnx", "int8"), ("model_quantized.onnx", "q8")],
)
def test_web_config_of_an_encoder_in_one_file(file: str, dtype: str) -> None:
    made = web_config({"model_type": "bert"}, f"onnx/{file}")
    assert made == {"model_type": "bert", "transformers.js_config": {"dtype": dtype}}


def test_web_config_tells_of_a_half_precision_cache() -> None:
    made = web_config(LLAMA, "onnx/model_fp16.onnx", data_files=2, decoder=DECODER, half_cache=True)
    assert made["transformers.js_config"] == {
        "dtype": "fp16", "use_external_data_format": {"model_fp16.onnx": 2}, "kv_cache_dtype": "float16",
    }  # fmt: skip


def test_web_config_of_a_text_model_that_had_a_vision_tower() -> None:
    config = {
        "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "hidden_size": 64,
        "vision_config": {"hidden_size": 1152},
    }  # fmt: skip
    made = web_config(config, "onnx/model_q4.onnx")
    del made["transformers.js_config"]
    assert made == {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "hidden_size": 64}


def test_side_files_are_copied_and_weights_are_not(tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    (model / "1_Pooling").mkdir(parents=True)
    out.mkdir()
    source(
        model, config={}, generation_config={"eos_token_id": 2}, tokenizer_config={"tokenizer_class": "LlamaTokenizer"}
    )
    for name in ("model.safetensors", "README.md", "vocab.txt", "1_Pooling/config.json"):
        (model / name).write_text(name)
    names = copy_side_files(model, out)
    assert names == [
        "1_Pooling/config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
    ]  # fmt: skip
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == names
    assert (out / "tokenizer.json").read_text() == TOKENIZER
    assert (out / "1_Pooling/config.json").read_text() == "1_Pooling/config.json"
    assert json.loads((out / "tokenizer_config.json").read_text()) == {"tokenizer_class": "LlamaTokenizer"}


def test_a_template_in_a_file_goes_where_the_web_reads_it(tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    source(model)
    (model / "chat_template.jinja").write_text("{{ 'é' }}", encoding="utf-8")
    assert copy_side_files(model, out) == ["tokenizer.json", "tokenizer_config.json"]
    assert json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8")) == {
        # GenAI loads no tokenizer without a class
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": "{{ 'é' }}",
    }


def test_named_templates_become_files(tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    source(model, tokenizer_config={"chat_template": named, "tokenizer_class": "LlamaTokenizer"})
    names = copy_side_files(model, out)
    assert names == [
        "additional_chat_templates/tool_use.jinja", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert (out / "additional_chat_templates/tool_use.jinja").read_text() == "T"
    assert (out / "chat_template.jinja").read_text() == "D"
    assert json.loads((out / "tokenizer_config.json").read_text())["chat_template"] == "D"


def test_a_template_cannot_leave_the_directory(tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    source(model, tokenizer_config={"chat_template": [{"name": "../../x", "template": "T"}]})
    with pytest.raises(ModelError, match=r"a chat template is named '\.\./\.\./x'; give it a plain name$"):
        copy_side_files(model, out)
    assert not out.exists()


def test_damaged_json_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    source(model, generation_config='{"eos_token_id": 2')
    with pytest.raises(ModelError, match=r"generation_config\.json: is not JSON .*; download or save it again") as said:
        copy_side_files(model, out)
    assert "\n" not in str(said.value)
    assert not out.exists()


def test_a_sentencepiece_file_alone_is_not_enough(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"has no tokenizer\.json, which every client reads; save it there"):
        copy_side_files(tmp_path, tmp_path / "out")
