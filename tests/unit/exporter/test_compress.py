"""Compression of whole models: what the directory holds, and what `export` makes of it."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Literal

import gguf
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.onnx_weights import initializers, weights_in
from support.parity import emit, no_progress, worst_difference
from support.recipes import weights_of

from exporter.checkpoint import resolve
from exporter.compress.job import CompressRequest, compress
from exporter.compress.walk import Walk
from exporter.progress import SilentReporter
from exporter.recipe import Recipe
from exporter.steps import Quantize, Rule, Text
from runtime.errors import UnsupportedError, UserError
from targets import get_target
from targets.base import EmitOptions
from targets.ongrid import GGML, ONNX_GRIDS, RECIPE
from targets.safetensors import read_header

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Method = Literal["rtn", "gptq", "gptq-natural", "autoround"]
TEXT = Text(source="help", chunks=4, tokens=64)
LONGER = Text(source="help", chunks=32, tokens=128)


def compressed(
    source: Path, out: Path, preset: str = "q4_k_m", method: Method = "gptq", rules: tuple[Rule, ...] = (),
    text: Text = TEXT,
) -> Path:  # fmt: skip
    step = Quantize(step="quantize", preset=preset, method=method, iterations=40, rules=rules)
    recipe = Recipe(format="gguf", calibration=text, steps=(step,))
    compress(CompressRequest(str(source), out, recipe, "test", 2), SilentReporter())
    return out


def test_the_walk_ends_where_the_model_does(tiny_any: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_any, dtype=torch.float32).eval()
    ids = [[5, 9, 40, 7, 100, 33] * 5, [8, 80, 12, 200] * 5]
    with torch.no_grad():
        expected = [model.base_model(input_ids=torch.tensor([row])).last_hidden_state for row in ids]
    walk = Walk(model, ids)
    inputs = walk.observe(0)
    assert inputs.hessians["self_attn.q_proj"] is inputs.hessians["self_attn.k_proj"]
    assert inputs.hessians["mlp.gate_proj"] is inputs.hessians["mlp.up_proj"]
    for number in range(len(walk.layers)):
        walk.advance(number)
    for hidden, states in zip(walk.hidden, expected, strict=True):
        assert torch.allclose(model.base_model.norm(hidden), states, atol=1e-5)
    rows = torch.cat([states[0] for states in expected])
    assert torch.allclose(walk.observe_head().hessians[""], rows.T @ rows, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("hidden", "preset"), [(64, "q4_k_m"), (256, "q3_k_m"), (256, "iq4_xs"), (256, "q5_1")])
def test_export_writes_the_blocks_that_were_chosen(
    hidden: int, preset: str, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    source = tiny_model_dir("llama", hidden=hidden)
    directory = compressed(source, tmp_path / "compressed", preset)
    (tmp_path / "out").mkdir()
    target = get_target("gguf")
    facts = resolve(str(directory))
    quant = target.default_quant(facts)
    assert quant == preset
    artifact = target.emit(facts, EmitOptions(quant), tmp_path / "out", no_progress)
    assert "compressed before" in artifact.contract["notes"][-1]
    assert artifact.entry_path.stat().st_size == json.loads((directory / RECIPE).read_text())["steps"][0]["n_bytes"]
    weights = weights_of(directory)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(artifact.entry_path).tensors}
    before = weights_of(source)
    for ours, theirs in (("mlp.down_proj", "ffn_down"), ("self_attn.o_proj", "attn_output"), ("mlp.up_proj", "ffn_up")):
        tensor = tensors[f"blk.1.{theirs}.weight"]
        name = f"model.layers.1.{ours}.weight"
        np.testing.assert_array_equal(gguf.quants.dequantize(tensor.data, tensor.tensor_type), weights[name])
        assert not np.array_equal(weights[name], before[name])
    # Rows of q are in another order in the file.
    q = gguf.quants.dequantize(tensors["blk.0.attn_q.weight"].data, tensors["blk.0.attn_q.weight"].tensor_type)
    expected = weights["model.layers.0.self_attn.q_proj.weight"]
    order = np.arange(hidden).reshape(4, 2, -1).transpose(0, 2, 1).reshape(-1)
    np.testing.assert_array_equal(q, expected[order])
    np.testing.assert_array_equal(weights["model.norm.weight"], before["model.norm.weight"])


@pytest.mark.parametrize("method", ["rtn", "gptq", "gptq-natural", "autoround"])
def test_every_method_runs_on_every_family(method: str, tiny_any: Path, tmp_path: Path) -> None:
    directory = compressed(tiny_any, tmp_path / "out", "q4_0", method)
    report = json.loads((directory / RECIPE).read_text(encoding="utf-8"))
    assert 0 < report["steps"][0]["mean_kl"] < 3
    blocks = {fact.name for fact in read_header(directory / GGML)}
    facts = resolve(str(directory))
    matrices = {name for name, fact in facts.tensors.items() if len(fact.shape) == 2}
    assert {name.rpartition(".")[0] for name in blocks} == matrices
    assert get_target("gguf").check(facts, EmitOptions("q4_0")) == []


def test_gptq_drifts_less_than_rounding(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny_model_dir("llama", hidden=256)
    kl = {}
    for method in ("rtn", "gptq", "autoround"):
        directory = compressed(
            source, tmp_path / method, "q3_k_s", method, text=Text(source="help", chunks=32, tokens=128)
        )
        kl[method] = json.loads((directory / RECIPE).read_text(encoding="utf-8"))["steps"][0]["mean_kl"]
    assert kl["gptq"] < 0.9 * kl["rtn"]
    assert kl["autoround"] < 0.95 * kl["rtn"]


def test_the_first_rule_that_matches_names_the_type(tiny_llama: Path, tmp_path: Path) -> None:
    rules = (Rule(tensors="blk.0.*", type="q8_0"), Rule(tensors="*ffn_down*", type="Q5_1"))
    directory = compressed(tiny_llama, tmp_path / "out", "q4_0", rules=rules)
    kinds = {fact.name.rpartition(".")[0]: fact.name.rpartition(".")[2] for fact in read_header(directory / GGML)}
    assert kinds["model.layers.0.mlp.down_proj.weight"] == "Q8_0"
    assert kinds["model.layers.1.mlp.down_proj.weight"] == "Q5_1"
    assert kinds["model.layers.1.mlp.up_proj.weight"] == "Q4_0"
    (tmp_path / "gguf").mkdir()
    artifact = get_target("gguf").emit(resolve(str(directory)), EmitOptions("q4_0"), tmp_path / "gguf", no_progress)
    assert artifact.contract["tensors"]["Q8_0"] == 7 + 1  # and the table, which presets keep there
    with pytest.raises(UserError, match=r"token_embd.weight: rows of 64 weights are no whole blocks of q4_k, 256"):
        compressed(tiny_llama, tmp_path / "bad", "q4_0", rules=(Rule(tensors="*", type="q4_k"),))
    with pytest.raises(UserError, match="type 'q9' is none of q4_0"):
        compressed(tiny_llama, tmp_path / "bad", "q4_0", rules=(Rule(tensors="*", type="q9"),))


def test_measured_types_take_no_more_bytes_and_cost_less(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    source, text = tiny_model_dir("llama", hidden=256), LONGER
    by_preset = compressed(source, tmp_path / "preset", "q3_k_m", "rtn", text=text)
    step = Quantize(step="quantize", preset="q3_k_m", types="measured", method="rtn")
    recipe = Recipe(format="gguf", calibration=text, steps=(step,))
    compress(CompressRequest(str(source), tmp_path / "measured", recipe, "test", 2), SilentReporter())
    reports = [
        json.loads((directory / RECIPE).read_text(encoding="utf-8"))["steps"][0]
        for directory in (by_preset, tmp_path / "measured")
    ]
    assert reports[1]["mean_kl"] < 0.9 * reports[0]["mean_kl"]
    sizes = [(directory / GGML).stat().st_size for directory in (by_preset, tmp_path / "measured")]
    assert sizes[1] <= sizes[0]
    assert reports[1]["n_bytes"] <= reports[0]["n_bytes"] + 100  # the name of the directory is in the file


def test_rules_stand_where_types_are_measured(tiny_llama: Path, tmp_path: Path) -> None:
    rule = Rule(tensors="blk.0.ffn_up.weight", type="q8_0")
    step = Quantize(step="quantize", preset="q4_0", types="measured", method="rtn", rules=(rule,))
    recipe = Recipe(format="gguf", calibration=TEXT, steps=(step,))
    compress(CompressRequest(str(tiny_llama), tmp_path / "out", recipe, "test", 2), SilentReporter())
    names = {fact.name for fact in read_header(tmp_path / "out" / GGML)}
    assert "model.layers.0.mlp.up_proj.weight.Q8_0" in names
    everything = (Rule(tensors="*", type="q8_0"),)
    step = step.model_copy(update={"rules": everything})
    request = CompressRequest(str(tiny_llama), tmp_path / "no", recipe.model_copy(update={"steps": (step,)}), "test", 2)
    with pytest.raises(UserError, match=r"--recipe: the smallest types take .* take rules out"):
        compress(request, SilentReporter())


def test_what_does_not_belong_together_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    directory = compressed(tiny_llama, tmp_path / "compressed", "q4_0")
    for format_name, quant in (("onnx", "int4"), ("torchscript", "int8")):
        (problem,) = get_target(format_name).check(resolve(str(directory)), EmitOptions(quant))
        assert "was compressed for the grid of ggml" in str(problem)
        assert "use --format gguf" in str(problem)
    (problem,) = get_target("gguf").check(resolve(str(directory)), EmitOptions("q8_0"))
    assert str(problem).startswith("--quant q8_0: the model's weights lie in the blocks of q4_0 already")
    changed = tmp_path / "changed"
    shutil.copytree(directory, changed)
    fact = resolve(str(changed)).tensors["model.layers.0.mlp.up_proj.weight"]
    with fact.file.open("r+b") as file:
        file.seek(fact.offset)
        file.write(np.float32(0.123).tobytes())
    (problem,) = get_target("gguf").check(resolve(str(changed)), EmitOptions("q4_0"))
    assert "up_proj.weight: holds other values than the weights beside it" in str(problem)


def test_a_users_mistakes_are_one_line_and_leave_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="preset f32 keeps floats"):
        compressed(tiny_llama, out, "f32")
    again = compressed(tiny_llama, tmp_path / "again", "q4_0")
    with pytest.raises(UserError, match="lies on a grid already, where nothing is changed; name the original model"):
        compressed(again, out)
    shutil.rmtree(again)
    with pytest.raises(UserError, match="unknown quantization 'q4_z': did you mean"):
        compressed(tiny_llama, out, "q4_z")
    broken = tmp_path / "broken"
    shutil.copytree(tiny_llama, broken)
    config = json.loads((broken / "config.json").read_text(encoding="utf-8")) | {"architectures": ["OddForCausalLM"]}
    (broken / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UnsupportedError):
        compressed(broken, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]
    out.mkdir()
    (out / "mine").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match="is not empty"):
        compressed(tiny_llama, out)


def quantized_for_onnx(source: Path, out: Path, preset: str, method: str = "gptq", *steps: dict[str, object]) -> Path:
    quantize = {"step": "quantize", "preset": preset, "method": method}
    content = {"format": "onnx", "calibration": TEXT.model_dump(exclude_none=True), "steps": [*steps, quantize]}
    compress(CompressRequest(str(source), out, Recipe.model_validate(content), "test", 2), SilentReporter())
    return out


CHANNELS = ("dynamic-int8", "static-int8")


@pytest.mark.parametrize("preset", ["int4", "int4-mixed", "int8", *CHANNELS])
def test_onnx_holds_the_codes_that_were_chosen(
    preset: str, tiny_any: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What static-int8 takes is told before ranges are known: as if one held every input.
    monkeypatch.setattr("targets.onnx.calibration.NOISIEST", 1.0)
    directory = quantized_for_onnx(tiny_any, tmp_path / "compressed", preset)
    facts = resolve(str(directory))
    target = get_target("onnx")
    assert target.default_quant(facts) == preset
    (tmp_path / "out").mkdir()
    artifact = emit(directory, tmp_path / "out", "onnx", preset)
    step = json.loads((directory / RECIPE).read_text(encoding="utf-8"))["steps"][0]
    graph = artifact.entry_path
    assert step["n_bytes"] == sum(path.stat().st_size for path in graph.parent.glob("*_data*"))
    # The engine computes with exactly the weights that the directory has; its own int8 inputs are what is left.
    assert worst_difference(directory, artifact) < (0.15 if preset in CHANNELS else 0.1)
    stored, weights = initializers(graph), weights_of(directory)
    products = {"ffn.down": ("mlp.down_proj",), "attn.qkv": [f"self_attn.{letter}_proj" for letter in "qkv"]}
    for title, members in products.items():
        whole = np.concatenate([weights[f"model.layers.1.{member}.weight"] for member in members])
        found = weights_in(stored, f"layers.1.{title}")
        np.testing.assert_array_equal(found[:, : whole.shape[1]], whole)
    (problem,) = target.check(facts, EmitOptions("fp32"))
    assert str(problem).startswith(f"--quant fp32: the model's weights lie on the grids of {preset} already")


@pytest.mark.parametrize(("preset", "most"), [("int4-mixed", 0.9), ("dynamic-int8", 0.95)])
def test_gptq_drifts_less_than_rounding_on_onnx_grids(
    preset: str, most: float, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    source, kl = tiny_model_dir("llama", hidden=256), {}
    for method in ("rtn", "gptq"):
        quantize = {"step": "quantize", "preset": preset, "method": method}
        content = {
            "format": "onnx",
            "calibration": {"source": "help", "chunks": 32, "tokens": 128},
            "steps": [quantize],
        }
        request = CompressRequest(str(source), tmp_path / method, Recipe.model_validate(content), "test", 2)
        kl[method] = compress(request, SilentReporter()).steps[0].mean_kl
    assert kl["gptq"] < most * kl["rtn"]


@pytest.mark.parametrize("method", ["rtn", "gptq", "gptq-natural", "autoround"])
def test_every_method_chooses_int8_rows(method: str, tiny_llama: Path, tmp_path: Path) -> None:
    smooth = {"step": "smooth", "method": "smoothquant"}
    directory = quantized_for_onnx(tiny_llama, tmp_path / "compressed", "static-int8", method, smooth)
    report = json.loads((directory / RECIPE).read_text(encoding="utf-8"))
    assert [step["mean_kl"] < 0.02 for step in report["steps"]] == [True, True]
    parts = {fact.name: (fact.dtype, fact.shape) for fact in read_header(directory / ONNX_GRIDS)}
    for name, fact in resolve(str(directory)).tensors.items():
        if name.startswith("model.layers.") and len(fact.shape) == 2:
            assert parts[f"{name}.codes8"] == ("U8", fact.shape)
            assert parts[f"{name}.scales"] == ("F32", (fact.shape[0], 1))
    assert parts["model.embed_tokens.weight.scales"] == ("F16", (600, 1))
    assert get_target("onnx").check(resolve(str(directory)), EmitOptions("static-int8")) == []


def test_plain_rounding_to_int8_rows_is_that_of_the_export(tiny_llama: Path, tmp_path: Path) -> None:
    directory = quantized_for_onnx(tiny_llama, tmp_path / "compressed", "dynamic-int8", "rtn")
    stored = []
    for number, source in enumerate((tiny_llama, directory)):
        (tmp_path / str(number)).mkdir()
        stored.append(initializers(emit(source, tmp_path / str(number), "onnx", "dynamic-int8").entry_path))
    assert stored[0].keys() == stored[1].keys()
    for name, values in stored[0].items():
        if name.startswith("layers."):  # the table's scales are searched, for the head's inputs
            np.testing.assert_array_equal(values, stored[1][name], name)


@pytest.mark.parametrize("preset", ["int8", *CHANNELS])
def test_factors_lie_on_their_own_grids(
    preset: str, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:  # fmt: skip
    source = tiny_model_dir("llama", hidden=256)
    factorize = {"step": "factorize", "method": "svd-llm", "keep": 0.5}
    directory = quantized_for_onnx(source, tmp_path / "compressed", preset, "gptq", factorize)
    for name in ("two", "whole"):
        (tmp_path / name).mkdir()
    two, whole = emit(directory, tmp_path / "two", "onnx", preset), emit(source, tmp_path / "whole", "onnx", preset)
    # Fixed ranges of activations cost what they cost without factors; how much is up to the processor's kernels.
    ranges = 1.25 * worst_difference(source, whole) if preset == "static-int8" else 0.0
    assert worst_difference(directory, two) < max(0.15, ranges)
    assert two.total_bytes < 0.9 * whole.total_bytes


def test_what_onnx_presets_cannot_do_is_said(tiny_llama: Path, tmp_path: Path) -> None:
    known = "int8, int4-mixed, int4, dynamic-int8, static-int8"
    with pytest.raises(UnsupportedError, match=f"preset fp16 has no codes that could be chosen; use {known}"):
        quantized_for_onnx(tiny_llama, tmp_path / "out", "fp16")
    step = {"step": "quantize", "preset": "int4", "types": "measured"}
    content = {"format": "onnx", "calibration": TEXT.model_dump(exclude_none=True), "steps": [step]}
    with pytest.raises(ValidationError, match="types: measured are for format gguf; other presets say themselves"):
        Recipe.model_validate(content)
    rule = {"tensors": "*", "type": "q5_1"}
    with pytest.raises(ValidationError, match="rules are for format gguf; other presets say themselves"):
        Recipe.model_validate({**content, "steps": [{"step": "quantize", "preset": "int4", "rules": [rule]}]})
