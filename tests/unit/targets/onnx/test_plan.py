"""What is found before a weight is read, all at once, and how weights are split into files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.golden_model import write_golden_model
from support.parity import emit, worst_difference

from exporter.checkpoint import resolve
from runtime.errors import ModelError, UnsupportedError
from targets.base import EmitOptions
from targets.onnx import plan
from targets.onnx.plan import make_plan
from targets.onnx.target import OnnxTarget
from targets.weights import WeightReader

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_golden_model(tmp_path / "golden")


@pytest.fixture
def no_weight_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(WeightReader, "read_bytes", refuse)


def edit(model: Path, **changes: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(model: Path, **tensors: np.ndarray | None) -> None:
    from safetensors.numpy import load_file, save_file

    content = {**load_file(model / "model.safetensors"), **tensors}
    save_file({name: value for name, value in content.items() if value is not None}, model / "model.safetensors")


def problems(model: Path, quant: str = "int4") -> list[str]:
    return [str(problem) for problem in OnnxTarget().check(resolve(str(model)), EmitOptions(quant))]


@pytest.mark.usefixtures("no_weight_is_read")
def test_a_good_model_has_none(model: Path) -> None:
    for quant in OnnxTarget().presets():
        assert problems(model, quant) == []


@pytest.mark.usefixtures("no_weight_is_read")
def test_everything_wrong_is_listed_at_once(model: Path) -> None:
    edit(
        model, rope_scaling={"rope_type": "spiral", "factor": 2.0}, head_dim=24, hidden_act="relu",
        quantization_config={"quant_method": "gptq"}, hidden_size=40,
    )  # fmt: skip
    rewrite(model, **{"model.norm.weight": None, "model.layers.0.self_attn.rotary": np.zeros(3, np.float32)})
    found = "\n".join(problems(model))
    for says in (
        "model.norm.weight: is missing from the weights",
        "model.layers.0.self_attn.rotary: is not part of LlamaForCausalLM",
        "model.embed_tokens.weight: has shape [64, 256], config.json says [64, 40]",
        "config.json: rope_type: 'spiral' is not supported",
        "config.json: head_dim: a head is 24 wide",
        "config.json: hidden_act: 'relu' is not supported",
        "config.json: quantization_config: the weights are quantized already",
        "config.json: hidden_size: rows of 40 do not divide into blocks of 16 or more; use --quant fp16 or fp32",
    ):
        assert says in found
    with pytest.raises(UnsupportedError, match="spiral") as caught:
        OnnxTarget().plan(resolve(str(model)), EmitOptions("int4"))
    assert str(caught.value) == found


@pytest.mark.parametrize("quant", ["int4", "int4-mixed", "int8"])
def test_a_width_that_is_no_blocks_can_be_floats(quant: str, tmp_path: Path) -> None:
    from support.tiny_models import make_tiny

    # four heads of 16 on a width of 72: 72 / 16 is no whole number
    directory = make_tiny("llama", tmp_path / "m", hidden=72, head_dim=16)
    (problem,) = problems(directory, quant)
    assert problem.startswith("config.json: hidden_size: rows of 72 do not divide")
    assert problems(directory, "fp32") == problems(directory, "fp16") == []


def test_a_weight_of_integers_is_refused(model: Path) -> None:
    rewrite(model, **{"model.layers.1.mlp.up_proj.weight": np.zeros((288, 256), np.int8)})
    (problem,) = problems(model)
    assert problem.startswith("model.layers.1.mlp.up_proj.weight: is stored as I8")


def test_a_gguf_is_no_source(tiny_llama: Path, tmp_path: Path) -> None:
    file = emit(tiny_llama, tmp_path).entry_path
    (problem,) = problems(file)
    assert problem == f"{file}: a .gguf file cannot be exported as ONNX; " \
                      "name the Hugging Face directory that it was converted from"  # fmt: skip


def test_t5_is_named_with_its_task(model: Path) -> None:
    edit(model, architectures=["T5ForConditionalGeneration"], model_type="t5")
    with pytest.raises(UnsupportedError, match="text2text-generation cannot be written as ONNX yet; known: text-gen"):
        problems(model)


def test_an_unknown_preset_lists_the_known_ones(model: Path) -> None:
    with pytest.raises(UnsupportedError, match="unknown quantization 'q4_k_m' for onnx; known: fp32, fp16"):
        problems(model, "q4_k_m")
    assert problems(model, "INT4") == []


@pytest.mark.parametrize(
    "change",
    [{"rope_scaling": "linear"}, {"rope_parameters": [1]}, {"num_attention_heads": "8"}, {"hidden_size": -1},
     {"rms_norm_eps": "small"}, {"max_position_embeddings": 1.5}, {"vocab_size": None}, {"layer_types": 7},
     {"final_logit_softcapping": "x"}, {"architectures": "LlamaForCausalLM"}],
)  # fmt: skip
def test_an_entry_of_the_wrong_kind_is_one_error(change: dict[str, Any], model: Path) -> None:
    edit(model, **change)
    with pytest.raises((ModelError, UnsupportedError), match=r"config\.json") as caught:
        problems(model)
    assert "\n" not in str(caught.value)


def test_a_matrix_over_a_files_limit_is_one_clear_error(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "LARGEST_DATA_FILE", 65000)
    with pytest.raises(UnsupportedError, match=r"takes \d+ bytes, a file holds 65000; use a smaller --quant"):
        problems(model, "fp32")


def test_sums_by_hand(model: Path) -> None:
    made, found = make_plan(resolve(str(model)), EmitOptions("int8"))
    assert made is not None
    assert found == []
    matrices = 64 * 256 + 3 * (2 * 256 * 256 + 2 * 64 * 256 + 3 * 288 * 256)
    norms = 7 * 256
    assert made.n_params == matrices + norms
    # a byte a weight and two bytes of scale for 32; norms stay float32
    assert made.bits_per_weight == pytest.approx((8.5 * matrices + 32 * norms) / (matrices + norms), rel=1e-12)
    assert made.counts == {"int8 block 32 symmetric": 1 + 3 * 7, "float32": 7}
    assert (made.task, made.context, made.file) == ("text-generation", 512, "onnx/model_int8.onnx")


def test_a_cut_context_is_said(model: Path) -> None:
    edit(model, max_position_embeddings=131072)
    made, _ = make_plan(resolve(str(model)), EmitOptions("int4"))
    assert made is not None
    assert made.context == 32768
    assert any("32768 tokens of context, the model was trained for 131072" in note for note in made.notes)


@pytest.mark.parametrize("quant", ["fp32", "int4"])
def test_weights_over_the_limit_are_split(
    quant: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "split").mkdir()
    whole = emit(tiny_llama, tmp_path / "whole", "onnx", quant)
    monkeypatch.setattr(plan, "LARGEST_DATA_FILE", 160_000)
    split = emit(tiny_llama, tmp_path / "split", "onnx", quant)
    data = [name for name in split.files if "_data" in name]
    assert data == [f"{split.entry}_data{f'_{number}' if number else ''}" for number in range(len(data))]
    assert len(data) > 1
    assert all(split.files[name].bytes <= 160_000 for name in data)
    assert split.contract["model_files"] == [split.entry, *data]
    web = json.loads((tmp_path / "split" / "config.json").read_text())["transformers.js_config"]
    assert web["use_external_data_format"] == {split.entry.removeprefix("onnx/"): len(data)}
    assert worst_difference(tiny_llama, split) == pytest.approx(worst_difference(tiny_llama, whole), abs=1e-7)
