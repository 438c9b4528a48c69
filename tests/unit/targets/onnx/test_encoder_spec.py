"""What keeps an encoder from being written: all of it at once, each with the place, before a weight is read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from support.tiny_encoders import make_tiny_encoder

from runtime.errors import ModelError, UnsupportedError
from targets.base import EmitOptions
from targets.facts import ModelFacts, TensorFact
from targets.onnx.encoder_spec import account, encoder_spec, family_of
from targets.onnx.target import OnnxTarget
from targets.safetensors import read_facts

OPTIONS = EmitOptions(quant="fp32")
LAYER = "encoder.layer.1."


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> ModelFacts:
    path = make_tiny_encoder(tmp_path_factory.mktemp("bert"))
    return read_facts(path, str(path))


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> ModelFacts:
    path = make_tiny_encoder(tmp_path_factory.mktemp("roberta"), "Roberta")
    return read_facts(path, str(path))


def changed(
    facts: ModelFacts, without: tuple[str, ...] = (), tensors: dict[str, TensorFact] | None = None, **config: Any
) -> ModelFacts:
    kept = {name: fact for name, fact in facts.tensors.items() if name not in without}
    return dataclasses.replace(facts, config=facts.config | config, tensors=kept | (tensors or {}))


def fact(name: str, *shape: int, dtype: str = "F32") -> dict[str, TensorFact]:
    return {name: TensorFact(name, shape, dtype, Path("nowhere"), 0, 0)}


def problems(facts: ModelFacts) -> dict[str, str]:
    """where -> the whole line."""
    return {problem.where: str(problem) for problem in OnnxTarget().check(facts, OPTIONS)}


def test_a_whole_model_has_no_problem(bert: ModelFacts, roberta: ModelFacts) -> None:
    assert problems(bert) == problems(roberta) == {}


@pytest.mark.parametrize(
    ("tensors", "without", "config", "where", "what"),
    [
        ({}, (f"{LAYER}output.dense.weight",), {}, f"{LAYER}output.dense.weight", "missing"),
        ({}, ("embeddings.LayerNorm.bias",), {}, "embeddings.LayerNorm.bias", "missing"),
        (fact(f"{LAYER}output.dense.weight", 48, 32), (), {}, f"{LAYER}output.dense.weight", "[48, 32]"),
        (fact(f"{LAYER}output.dense.bias", 48), (), {}, f"{LAYER}output.dense.bias", "[48]"),
        (fact("embeddings.word_embeddings.weight", 99, 31), (), {}, "embeddings.word_embeddings.weight", "[99, 31]"),
        (fact(f"{LAYER}extra.weight", 32), (), {}, f"{LAYER}extra.weight", "is not part of BertModel"),
        (
            fact("encoder.layer.2.output.dense.weight", 32, 48),
            (),
            {},
            "encoder.layer.2.output.dense.weight",
            "not part",
        ),
        (
            fact(f"{LAYER}output.dense.weight", 32, 48, dtype="I8"),
            (),
            {},
            f"{LAYER}output.dense.weight",
            "stored as I8",
        ),
        ({}, (), {"hidden_act": "silu"}, "config.json: hidden_act", "'silu'"),
        ({}, (), {"position_embedding_type": "relative_key"}, "config.json: position_embedding_type", "absolute"),
        ({}, (), {"num_attention_heads": 5}, "config.json: hidden_size", "does not divide"),
        ({}, (), {"is_decoder": True}, "config.json: is_decoder", "is on"),
        ({}, (), {"quantization_config": {"bits": 4}}, "config.json: quantization_config", "quantized already"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_problem_names_its_place(
    tensors: dict[str, TensorFact], without: tuple[str, ...], config: dict[str, Any], where: str, what: str,
    bert: ModelFacts,
) -> None:  # fmt: skip
    found = problems(changed(bert, without, tensors, **config))
    assert list(found) == [where]
    assert what in found[where]
    assert "\n" not in found[where]


def test_all_problems_come_at_once(bert: ModelFacts) -> None:
    broken = changed(
        bert, (f"{LAYER}output.dense.weight",), fact(f"{LAYER}extra.weight", 3) | fact("embeddings.LayerNorm.bias", 7),
        hidden_act="silu", num_attention_heads=5, position_embedding_type="relative_key",
    )  # fmt: skip
    assert set(problems(broken)) == {
        f"{LAYER}output.dense.weight", f"{LAYER}extra.weight", "embeddings.LayerNorm.bias",
        "config.json: hidden_act", "config.json: hidden_size", "config.json: position_embedding_type",
    }  # fmt: skip
    with pytest.raises(UnsupportedError) as caught:
        OnnxTarget().plan(broken, OPTIONS)
    assert len(str(caught.value).splitlines()) == 6


def test_a_missing_head_is_a_problem_of_its_task(tmp_path: Path) -> None:
    path = make_tiny_encoder(tmp_path, "Bert", "text-classification")
    facts = read_facts(path, str(path))
    assert set(problems(changed(facts, ("classifier.weight", "bert.pooler.dense.bias")))) == {
        "classifier.weight", "pooler.dense.bias",
    }  # fmt: skip


def test_rows_that_do_not_divide_into_blocks(tmp_path: Path) -> None:
    path = make_tiny_encoder(tmp_path, hidden_size=40)
    facts = read_facts(path, str(path))
    assert problems(facts) == {}
    (problem,) = OnnxTarget().check(facts, EmitOptions(quant="int8"))
    assert str(problem).startswith("config.json: hidden_size: rows of 40")


@pytest.mark.parametrize("name", ["DebertaV2Model", "ElectraModel", "BertweetModel", "Model", "NotABertModel"])
def test_an_unknown_family_is_refused(name: str, bert: ModelFacts) -> None:
    with pytest.raises(UnsupportedError, match=name) as caught:
        family_of(name)
    assert "Bert, Roberta, XLMRoberta, Camembert, DistilBert" in str(caught.value)


def test_deberta_is_refused_by_check(bert: ModelFacts) -> None:
    with pytest.raises(UnsupportedError, match="DebertaV2Model") as caught:
        OnnxTarget().check(changed(bert, architectures=["DebertaV2Model"]), OPTIONS)
    assert "\n" not in str(caught.value)


def test_t5_is_refused_by_its_task(bert: ModelFacts) -> None:
    with pytest.raises(UnsupportedError, match="text2text-generation cannot be written as ONNX") as caught:
        OnnxTarget().check(changed(bert, architectures=["T5ForConditionalGeneration"]), OPTIONS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("entry", ["hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads"])
@pytest.mark.parametrize("value", [0, -1, "32", None, 1.5])
def test_senseless_entries_are_one_line(entry: str, value: object, bert: ModelFacts) -> None:
    with pytest.raises(ModelError, match=entry) as caught:
        OnnxTarget().check(changed(bert, **{entry: value}), OPTIONS)
    assert "\n" not in str(caught.value)


def test_the_spec_has_what_config_and_weights_say(bert: ModelFacts, roberta: ModelFacts) -> None:
    tensors, found = account(bert, "feature-extraction")
    assert found == []
    spec = encoder_spec(bert, "feature-extraction", tensors)
    assert (spec.n_layers, spec.n_heads, spec.hidden, spec.ffn, spec.labels) == (2, 4, 32, 48, 0)
    assert (spec.eps, spec.activation, spec.pooling) == (1e-5, "gelu", None)
    assert (spec.positions, spec.first_position, spec.max_tokens) == (64, 0, 64)
    # 2 layers of 16 tensors, 3 tables, a norm; the pooler is left out
    assert len(tensors) == 2 * 16 + 3 + 2
    tensors, _ = account(roberta, "feature-extraction")
    spec = encoder_spec(roberta, "feature-extraction", tensors)
    assert (spec.positions, spec.first_position, spec.max_tokens) == (66, 2, 64)
