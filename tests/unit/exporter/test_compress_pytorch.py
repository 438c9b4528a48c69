"""Codes chosen for TorchScript and ExecuTorch, and what an export makes of the directory."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.parity import emit, no_progress, worst_difference
from support.recipes import weights_of
from support.torchscript_weights import by_nibbles, by_rows, loaded

from exporter.checkpoint import resolve
from exporter.compress.job import CompressRequest, compress
from exporter.progress import SilentReporter
from exporter.recipe import Recipe
from runtime.errors import ModelError, UnsupportedError
from targets import get_target
from targets.base import EmitOptions
from targets.ongrid import EXECUTORCH, RECIPE, TORCHSCRIPT
from targets.weights import WeightReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exporter.compress.job import CompressReport

SHORT = {"source": "help", "chunks": 4, "tokens": 64}
LONG = {"source": "help", "chunks": 32, "tokens": 128}
GATE, UP = (f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up"))
TABLE = "model.embed_tokens.weight"


def quantized(
    source: Path, out: Path, format_name: str, preset: str, method: str = "gptq", steps: tuple[object, ...] = (),
    text: dict[str, object] = SHORT, **options: object,
) -> CompressReport:  # fmt: skip
    step = {"step": "quantize", "preset": preset, "method": method, **options}
    content = {"format": format_name, "calibration": text, "steps": [*steps, step]}
    return compress(CompressRequest(str(source), out, Recipe.model_validate(content), "test", 2), SilentReporter())


@pytest.fixture(scope="module")
def for_torchscript(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("torchscript") / "out"
    quantized(tiny_llama, out, "torchscript", "int4")
    return out


@pytest.mark.parametrize("preset", ["int4", "int8"])
def test_torchscript_holds_the_codes_that_were_chosen(preset: str, tiny_any: Path, tmp_path: Path) -> None:
    directory, out = tmp_path / "compressed", tmp_path / "out"
    report = quantized(tiny_any, directory, "torchscript", preset)
    assert 0 < report.steps[0].mean_kl < 1
    assert get_target("torchscript").default_quant(resolve(str(directory))) == preset
    out.mkdir()
    artifact = emit(directory, out, "torchscript", preset)
    # Inputs of the products are bfloat16; weights are exactly those of the directory.
    assert worst_difference(directory, artifact) < 0.05
    buffers = loaded(artifact)
    weights = weights_of(directory)
    found = by_nibbles if preset == "int4" else by_rows
    both = np.concatenate([weights[GATE], weights[UP]])
    np.testing.assert_array_equal(found(buffers, "layers.1.feed_forward.gate_up"), both)
    np.testing.assert_array_equal(by_rows(buffers, "table"), weights[TABLE])
    assert not np.array_equal(weights[UP], weights_of(tiny_any)[UP])
    # All but the rotary tables are weights.
    assert report.steps[0].n_bytes == sum(part.nbytes for name, part in buffers.items() if "." in name)


def test_the_lite_interpreter_takes_what_was_compressed_for_torchscript(for_torchscript: Path, tmp_path: Path) -> None:
    assert get_target("ptl").default_quant(resolve(str(for_torchscript))) == "int4"
    for name in ("torchscript", "ptl"):
        (tmp_path / name).mkdir()
        assert worst_difference(for_torchscript, emit(for_torchscript, tmp_path / name, name, "int4")) < 0.05


@pytest.mark.parametrize("preset", ["8da4w", "int8"])
def test_executorch_holds_the_codes_that_were_chosen(preset: str, tiny_any: Path, tmp_path: Path) -> None:
    from targets.executorch.build import Builder
    from targets.executorch.lower import quiet, register_operators
    from targets.executorch.target import ExecuTorchTarget

    directory = tmp_path / "compressed"
    report = quantized(tiny_any, directory, "executorch", preset)
    facts, target, options = resolve(str(directory)), ExecuTorchTarget(), EmitOptions(preset)
    assert target.default_quant(facts) == preset
    plan, problems = target.make_plan(facts, options)
    assert plan is not None, problems
    with WeightReader() as reader, torch.no_grad(), quiet():
        register_operators()
        builder = Builder(plan, reader, no_progress, 64)
        buffers = dict(builder.build().named_buffers())
    weights = weights_of(directory)
    for name, short in ((GATE, "gate"), (UP, "up")):
        codes, scales = (buffers[f"layers.1.feed_forward.{short}.{part}"] for part in ("codes", "scales"))
        scales = scales.view(len(scales), -1)
        assert (int(codes.min()) >= -8) == (preset == "8da4w")
        values = (codes.view(*scales.shape, -1).float() * scales[..., None]).reshape(codes.shape)
        np.testing.assert_array_equal(values.numpy(), weights[name])
    table = buffers["table.values"].float() * buffers["table.scales"]
    np.testing.assert_array_equal(table.numpy(), weights[TABLE])
    vectors = 4 * sum(values.size for values in weights.values() if len(values) == 1)
    assert report.steps[0].n_bytes == builder.stored + vectors


def test_the_program_computes_what_the_directory_says(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    directory, out = tmp_path / "compressed", tmp_path / "out"
    # One layer: ExecuTorch's export takes seconds for each.
    quantized(tiny_model_dir("llama", layers=1), directory, "executorch", "8da4w")
    out.mkdir()
    # The engine's own 8-bit inputs are what is left.
    assert worst_difference(directory, emit(directory, out, "executorch", "8da4w")) < 0.1


@pytest.mark.parametrize(("format_name", "preset"), [("executorch", "8da4w"), ("torchscript", "int4")])
def test_gptq_drifts_less_than_rounding(
    format_name: str, preset: str, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    source, kl = tiny_model_dir("llama", hidden=256), {}
    for method in ("rtn", "gptq"):
        report = quantized(source, tmp_path / method, format_name, preset, method, text=LONG)
        kl[method] = report.steps[0].mean_kl
    assert kl["gptq"] < 0.9 * kl["rtn"]


def test_plain_rounding_is_that_of_the_export(tiny_llama: Path, tmp_path: Path) -> None:
    """Where no inputs are known a scale is that of the export alone: both choose the same codes of the table's rows."""
    step = {"step": "quantize", "preset": "int8", "method": "rtn"}
    recipe = Recipe.model_validate({"format": "torchscript", "calibration": SHORT, "steps": [step]})
    compress(CompressRequest(str(tiny_llama), tmp_path / "compressed", recipe, "test", 2), SilentReporter())
    buffers = []
    for number, source in enumerate((tiny_llama, tmp_path / "compressed")):
        (tmp_path / str(number)).mkdir()
        artifact = emit(source, tmp_path / str(number), "torchscript", "int8")
        buffers.append(loaded(artifact))
    assert buffers[0].keys() == buffers[1].keys()
    for name, values in buffers[0].items():
        assert torch.equal(values, buffers[1][name]), name


def test_factors_lie_on_groups_of_their_own(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny_model_dir("llama", hidden=256)
    factorize = {"step": "factorize", "method": "svd-llm", "keep": 0.5}
    directory, out = tmp_path / "compressed", tmp_path / "out"
    quantized(source, directory, "torchscript", "int4", steps=(factorize,))
    out.mkdir()
    artifact = emit(directory, out, "torchscript", "int4")
    assert any("each is a product of two here" in note for note in artifact.contract["notes"])
    assert worst_difference(directory, artifact) < 0.05
    program = tmp_path / "program"
    report = quantized(source, program, "executorch", "8da4w", steps=(factorize,))
    assert any("were multiplied out first" in note for note in report.steps[-1].notes)
    assert get_target("executorch").check(resolve(str(program)), EmitOptions("8da4w")) == []


def test_what_does_not_belong_together_is_refused(for_torchscript: Path) -> None:
    facts = resolve(str(for_torchscript))
    for format_name, quant in (("onnx", "int4"), ("executorch", "8da4w"), ("gguf", "q4_0")):
        (problem,) = get_target(format_name).check(facts, EmitOptions(quant))
        assert "was compressed for the grid of TorchScript" in str(problem)
        assert "use --format torchscript" in str(problem)
    for format_name in ("torchscript", "ptl"):
        (problem,) = get_target(format_name).check(facts, EmitOptions("int8"))
        expected = "--quant int8: the model's weights lie on the grids of int4 already; leave it out, or"
        assert str(problem).startswith(expected)


@pytest.mark.parametrize("row", [0, -1])
def test_codes_of_weights_that_have_changed_are_refused(row: int, for_torchscript: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(for_torchscript, changed)
    fact = resolve(str(changed)).tensors[UP]
    with fact.file.open("r+b") as file:
        file.seek(fact.offset + (row % fact.shape[0]) * 4 * fact.shape[1])
        file.write(np.float32(0.5).tobytes())
    (problem,) = get_target("torchscript").check(resolve(str(changed)), EmitOptions("int4"))
    assert str(problem).startswith(f"{TORCHSCRIPT}: {UP}: holds other values than the weights beside it")


@pytest.mark.parametrize(
    ("part", "change", "reason"),
    [
        ("scales", lambda scales: scales[:, :1], "does not hold what int4 group 32 has for weights of [128, 64]"),
        ("scales", lambda scales: scales.astype(np.float16), "does not hold what int4 group 32 has"),
        ("shifts", None, "does not hold what int4 group 32 has"),
        ("codes4", lambda codes: codes[:-1], "does not hold what int4 group 32 has"),
    ],
    ids=["groups", "dtype", "missing", "rows"],
)
def test_damaged_parts_are_refused(
    part: str, change: Callable[[np.ndarray], np.ndarray] | None, reason: str, for_torchscript: Path, tmp_path: Path
) -> None:
    problem = str(problem_of(with_part(for_torchscript, tmp_path / "damaged", part, change)))
    assert problem.startswith(f"{TORCHSCRIPT}: {UP}: ")
    assert reason in problem


def with_part(
    directory: Path, out: Path, part: str, change: Callable[[np.ndarray], np.ndarray] | None
) -> Path:  # fmt: skip
    """A copy whose side file has something else for a part of a matrix, or has it not."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(directory, out)
    tensors = load_file(out / TORCHSCRIPT)
    found = tensors.pop(f"{UP}.{part}")
    if change is not None:
        tensors[f"{UP}.{part}"] = np.ascontiguousarray(change(found))
    save_file(tensors, out / TORCHSCRIPT)
    return out


def problem_of(directory: Path) -> object:
    (problem,) = get_target("torchscript").check(resolve(str(directory)), EmitOptions("int4"))
    return problem


def test_a_code_with_more_bits_than_its_grid_is_refused(for_torchscript: Path, tmp_path: Path) -> None:
    def change(codes: np.ndarray) -> np.ndarray:
        codes[5, 7] = 16
        return codes

    damaged = with_part(for_torchscript, tmp_path / "damaged", "codes4", change)
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=f"{UP} holds a code of 16, its grid ends at 15"):
        emit(damaged, tmp_path / "out", "torchscript", "int4")


def test_what_presets_cannot_do_is_said(tiny_llama: Path, tmp_path: Path) -> None:
    for format_name, preset, known in (
        ("torchscript", "dynamic-int8", "int8, int4"),
        ("torchscript", "bf16", "int8, int4"),
        ("executorch", "fp32", "int8, 8da4w"),
    ):
        with pytest.raises(UnsupportedError, match=f"preset {preset} has no codes that could be chosen; use {known}"):
            quantized(tiny_llama, tmp_path / "out", format_name, preset)
    for format_name, preset in (("torchscript", "int4"), ("executorch", "8da4w")):
        for key, value in (("types", "measured"), ("rules", [{"tensors": "*", "type": "q8_0"}])):
            with pytest.raises(ValidationError, match=f"{key}.* for format gguf"):
                quantized(tiny_llama, tmp_path / "out", format_name, preset, **{key: value})
    assert list(tmp_path.iterdir()) == []


def test_the_report_names_the_format_and_the_preset(for_torchscript: Path) -> None:
    report = json.loads((for_torchscript / RECIPE).read_text(encoding="utf-8"))
    assert (report["format"], report["preset"]) == ("torchscript", "int4")
    assert not (for_torchscript / EXECUTORCH).exists()
