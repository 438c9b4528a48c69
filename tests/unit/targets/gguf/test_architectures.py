"""What config.json says, in every form that it takes, and what is refused before a weight is read."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from support.golden_model import write_golden_model

from exporter.checkpoint import resolve
from runtime.errors import ModelError, UnsupportedError
from targets.base import EmitOptions
from targets.gguf.architectures import ARCHITECTURES, UNSUPPORTED, architecture_of
from targets.gguf.architectures.rope import llama3_factors, parameters
from targets.gguf.plan import make_plan
from targets.gguf.target import GgufTarget

if TYPE_CHECKING:
    from pathlib import Path

LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_golden_model(tmp_path / "golden")


def edit(model: Path, name: str = "config.json", **changes: Any) -> None:
    path = model / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def problems(model: Path) -> list[str]:
    return [str(problem) for problem in GgufTarget().check(resolve(str(model)), EmitOptions("q8_0"))]


def metadata(model: Path) -> dict[str, Any]:
    plan, found = make_plan(resolve(str(model)), EmitOptions("q8_0"))
    assert not found
    assert plan is not None
    return {entry.key: entry.value for entry in plan.metadata}


@pytest.mark.parametrize(
    ("config", "attention", "expected"),
    [
        ({}, "full_attention", ("default", 10000.0)),
        ({"rope_theta": 5e5, "rope_scaling": None}, "full_attention", ("default", 5e5)),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}}, "full_attention", ("linear", 5e5)),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 7.0}}, "full_attention", ("yarn", 7.0)),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear", "rope_theta": 3.0}}}, "full_attention",
         ("linear", 3.0)),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 7.0}}, "sliding_attention", ("default", 10000.0)),
        ({"rope_local_base_freq": 99.0}, "sliding_attention", ("default", 99.0)),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 5.0}}}, "sliding_attention",
         ("default", 5.0)),
    ],
)  # fmt: skip
def test_rope_settings_in_every_form(config: dict[str, Any], attention: str, expected: tuple[str, float]) -> None:
    found = parameters(config, attention)
    assert (found["rope_type"], found["rope_theta"]) == expected


def test_llama_3s_rope_scaling_is_refused_where_nothing_would_apply_it() -> None:
    base = {
        "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 96,
        "num_experts": 4, "rope_parameters": LLAMA3,
    }  # fmt: skip
    refused = {
        name: any("llama3" in str(problem) for problem in entry.refuse(entry.read({**entry.defaults, **base})))
        for name, entry in ARCHITECTURES.items()
    }
    takes = {name for name, entry in ARCHITECTURES.items() if entry.extra is llama3_factors}
    assert {name for name in refused if not refused[name]} == takes
    assert takes == {"LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "Exaone4ForCausalLM"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}}, "mscale"),
        ({"rope_parameters": {"rope_type": "linear"}}, "has no factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5, "rope_type": "default"}}, "partial_rotary_factor"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"quantization_config": "gptq"}, "already gptq"),
        ({"rope_parameters": {"rope_type": ["x"]}}, "is not supported"),
    ],
)
def test_what_cannot_be_expressed_is_named(change: dict[str, Any], says: str, model: Path) -> None:
    edit(model, **change)
    assert any(says in problem for problem in problems(model))


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": "linear"}, {"rope_parameters": [1]},
        {"num_attention_heads": "8"}, {"hidden_size": -1}, {"rms_norm_eps": "small"}, {"max_position_embeddings": 1.5},
        {"vocab_size": None}, {"architectures": "LlamaForCausalLM"},
    ],
)  # fmt: skip
def test_an_entry_of_the_wrong_kind_is_one_error(change: dict[str, Any], model: Path) -> None:
    edit(model, **change)
    with pytest.raises((ModelError, UnsupportedError), match=r"config\.json"):
        problems(model)


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": [1]}, {"normalizer": "NFC"}, {"added_tokens": [{"id": 0}]},
        {"added_tokens": [{"id": "3", "content": "x"}]},
        {"post_processor": {"type": "TemplateProcessing", "single": [5]}},
    ],
)  # fmt: skip
def test_a_damaged_tokenizer_is_one_error(change: dict[str, Any], model: Path) -> None:
    edit(model, "tokenizer.json", **change)
    with pytest.raises((ModelError, UnsupportedError), match=r"tokenizer\.json"):
        problems(model)


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "num_experts"])
def test_a_count_without_end_is_refused_at_once(key: str, model: Path) -> None:
    edit(model, **{key: 10**12})
    with pytest.raises(ModelError, match=f"'{key}' is 1000000000000, more than"):
        problems(model)


def test_defaults_are_for_what_is_missing(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    del config["rms_norm_eps"]
    del config["max_position_embeddings"]
    (model / "config.json").write_text(json.dumps(config))
    assert metadata(model)["llama.attention.layer_norm_rms_epsilon"] == 1e-6
    assert metadata(model)["llama.context_length"] == 2048


def test_an_older_checkpoints_added_tokens_are_read(model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    last = max(vocab, key=vocab.get)
    del vocab[last]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    (model / "added_tokens.json").write_text(json.dumps({"<|tool|>": 63}))
    assert metadata(model)["tokenizer.ggml.tokens"][63] == "<|tool|>"


def test_an_unknown_architecture_names_the_nearest() -> None:
    with pytest.raises(UnsupportedError, match=r"'Qwen4ForCausalLM' cannot be written .*Qwen2ForCausalLM"):
        architecture_of("Qwen4ForCausalLM")


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_known_architecture_that_cannot_be_written_says_why(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"'{name}' cannot be written as GGUF: {re.escape(UNSUPPORTED[name])}"):
        architecture_of(name)


def test_an_architecture_is_either_written_or_refused() -> None:
    assert not ARCHITECTURES.keys() & UNSUPPORTED.keys()
