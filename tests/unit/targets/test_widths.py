"""Tensors without their padding, and padding that is none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from runtime.errors import ModelError
from targets.safetensors import read_facts
from targets.weights import WeightReader
from targets.widths import KV_HEADS, NEURONS, WIDTHS, padded_shape, problems

if TYPE_CHECKING:
    from pathlib import Path

SAID = {NEURONS: [8, 4], KV_HEADS: [1, 2]}


@pytest.fixture
def padded(tmp_path: Path) -> Path:
    """Two layers of 8 and 4 neurons, 1 and 2 key and value heads of 3 features with two query heads each; hidden 5."""
    config = {
        "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 5, "intermediate_size": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 3, "vocab_size": 7, WIDTHS: SAID,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    generator, tensors = np.random.default_rng(0), {}
    for layer, (neurons, heads) in enumerate(zip(SAID[NEURONS], SAID[KV_HEADS], strict=True)):
        shapes = {
            "mlp.gate": ((8, 5), (neurons, 5)), "mlp.up": ((8, 5), (neurons, 5)), "mlp.down": ((5, 8), (5, neurons)),
            "self_attn.q": ((12, 5), (6 * heads, 5)), "self_attn.k": ((6, 5), (3 * heads, 5)),
            "self_attn.v": ((6, 5), (3 * heads, 5)), "self_attn.o": ((5, 12), (5, 6 * heads)),
        }  # fmt: skip
        for name, (whole, own) in shapes.items():
            values = np.zeros(whole, np.float32)
            values[: own[0], : own[1]] = generator.standard_normal(own)
            tensors[f"model.layers.{layer}.{name}_proj.weight"] = values
        bias = np.ones(3 * heads, np.float32)
        tensors[f"model.layers.{layer}.self_attn.v_proj.bias"] = np.pad(bias, (0, 6 - 3 * heads))
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def change(directory: Path, **tensors: Any) -> None:
    path = directory / "model.safetensors"
    save_file({**load_file(path), **tensors}, path)


def configure(directory: Path, said: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), WIDTHS: said}), encoding="utf-8")


def test_tensors_are_what_is_real(padded: Path) -> None:
    facts, whole = read_facts(padded, "x"), load_file(padded / "model.safetensors")
    assert facts.tensors["model.layers.1.mlp.down_proj.weight"].shape == (5, 4)
    assert facts.tensors["model.layers.0.self_attn.q_proj.weight"].shape == (6, 5)
    assert facts.tensors["model.layers.0.self_attn.v_proj.bias"].shape == (3,)
    with WeightReader() as reader:
        for name, fact in facts.tensors.items():
            rows = fact.shape[0] if len(fact.shape) > 1 else 1
            found = reader.read_rows(fact, 0, rows).reshape(fact.shape)
            np.testing.assert_array_equal(found, whole[name][tuple(slice(n) for n in fact.shape)])
            assert fact.n_bytes == found.nbytes
            if rows > 1:
                np.testing.assert_array_equal(reader.read_rows(fact, 1, 2), found[1:2])
            assert padded_shape(name, fact.shape, SAID) == whole[name].shape
    assert problems(facts.tensors) == []


@pytest.mark.parametrize(
    ("name", "place"),
    [("mlp.gate_proj.weight", (7, 2)), ("self_attn.v_proj.weight", (3, 0)), ("self_attn.v_proj.bias", 5)],
)
def test_padding_is_zero(name: str, place: Any, padded: Path) -> None:
    layer = 1 if name.startswith("mlp") else 0
    name = f"model.layers.{layer}.{name}"
    values = load_file(padded / "model.safetensors")[name]
    values[place] = 1e-6
    change(padded, **{name: values})
    (problem,) = problems(read_facts(padded, "x").tensors)
    assert problem.where == name
    assert problem.what == "is not zero where config.json's packlight_widths says that nothing is"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([8, 4], "'packlight_widths' is not an object of intermediate_size and num_key_value_heads"),
        ({"heads": [1, 2]}, "'packlight_widths' is not an object of intermediate_size and num_key_value_heads"),
        ({NEURONS: [8]}, "'packlight_widths.intermediate_size' is not 2 whole numbers up to 8"),
        ({NEURONS: [8, 0]}, "'packlight_widths.intermediate_size' is not 2 whole numbers up to 8"),
        ({NEURONS: [8, True]}, "'packlight_widths.intermediate_size' is not 2 whole numbers up to 8"),
        ({NEURONS: [4, 4]}, "'packlight_widths.intermediate_size' is not 2 whole numbers up to 8"),
        ({KV_HEADS: [3, 2]}, "'packlight_widths.num_key_value_heads' is not 2 whole numbers up to 2"),
    ],
)
def test_nonsense_is_refused(said: Any, message: str, padded: Path) -> None:
    configure(padded, said)
    with pytest.raises(ModelError, match=message):
        read_facts(padded, "x")
