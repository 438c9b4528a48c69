"""Quantization-aware training, a part of the quantize step: codes and scales that all layers learn together."""

from __future__ import annotations

import contextlib
import json
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from support.forked import killed
from support.removal import opened

from exporter.by_recipe import NamedRecipe
from exporter.compress.job import CompressRequest, compress
from exporter.compress.journal import work_of
from exporter.compress.quantize import fake
from exporter.compress.quantize import step as quantize_step
from exporter.compress.subject import Subject
from exporter.pipeline import ExportRequest, export
from exporter.progress import SilentReporter
from exporter.recipe import Recipe
from exporter.verify import VerifyOptions
from runtime.artifact import open_artifact
from runtime.errors import UserError
from runtime.measurement import RunOptions
from runtime.sessions import open_session
from targets.ongrid import RECIPE, SIDE_FILES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXT = {"source": "help", "chunks": 128, "tokens": 32}
TRAINING = {"updates": 40, "batch": 4, "learning_rate": 1e-4, "top": 1000, "text": TEXT}
"""Of every token: a model of random weights holds all of them possible."""
SHORT = {**TRAINING, "updates": 6, "text": {**TEXT, "chunks": 20}}
PRESETS = {"gguf": "q4_0", "onnx": "int4", "torchscript": "int4", "executorch": "8da4w"}


def recipe(training: dict[str, Any] | None, *before: dict[str, Any], format_name: str = "gguf", **more: Any) -> Recipe:
    quantize = {"step": "quantize", "preset": PRESETS[format_name], **more}
    if training is not None:
        quantize["training"] = training
    calibration = {**TEXT, "chunks": 8}
    return Recipe.model_validate({"format": format_name, "calibration": calibration, "steps": [*before, quantize]})


def run(source: Path, out: Path, made: Recipe, *, resume: bool = False) -> dict[str, Any]:
    """The report of the last step."""
    report = compress(CompressRequest(str(source), out, made, "test", 1, resume=resume), SilentReporter())
    found: dict[str, Any] = report.to_json()["steps"][-1]
    return found


def on_grid(out: Path, format_name: str) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(out / SIDE_FILES[format_name])


@pytest.fixture(scope="module")
def by_gptq(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[dict[str, Any], Path]]:
    """The report and the directory of a format's codes that no training has changed, made once each."""

    @cache
    def make(format_name: str) -> tuple[dict[str, Any], Path]:
        out = tmp_path_factory.mktemp("gptq") / "out"
        return run(tiny_llama, out, recipe(None, format_name=format_name)), out

    return make


@pytest.mark.parametrize("format_name", PRESETS)
@pytest.mark.parametrize("train", ["all", "scales"])
def test_more_is_kept_in_the_same_bytes(
    format_name: str, train: str, by_gptq: Callable[[str], tuple[dict[str, Any], Path]], tiny_llama: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    rate = 1e-4 if train == "all" else 1e-3
    gptq, untrained = by_gptq(format_name)
    training = {**TRAINING, "train": train, "learning_rate": rate}
    trained = run(tiny_llama, tmp_path / "out", recipe(training, format_name=format_name))
    (said,) = (note for note in trained["notes"] if note.startswith("training on the grid: loss on 8 held-out pieces "))
    lost, left = (float(word) for word in said.split() if "." in word)
    assert left < 0.98 * lost  # weights that are random leave little to learn
    assert format_name != "gguf" or trained["mean_kl"] < gptq["mean_kl"]
    assert trained["n_bytes"] == gptq["n_bytes"]
    before, after = (on_grid(directory, format_name) for directory in (untrained, tmp_path / "out"))
    assert {name: one.shape for name, one in before.items()} == {name: one.shape for name, one in after.items()}
    if format_name != "gguf":  # whose bytes hold both
        for name, one in before.items():
            same = np.array_equal(one, after[name])
            assert same == (train == "scales" or "zero_points" in name) or "scales" in name or "shifts" in name, name
    assert [path.name for path in tmp_path.glob("*.work")] == []


@pytest.mark.parametrize(("format_name", "train"), [("gguf", "all"), ("onnx", "scales"), ("gguf", "scales")])
def test_engines_compute_what_was_trained(format_name: str, train: str, tiny_llama: Path, tmp_path: Path) -> None:
    named = NamedRecipe(recipe({**TRAINING, "train": train}, format_name=format_name), "mine")
    verify = VerifyOptions(chunks=2, context=64)
    request = ExportRequest(
        str(tiny_llama), tmp_path / "out", format_name, None, verify=verify, measure=False, recipe=named
    )
    report = export(request, SilentReporter())
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    (quantized,) = manifest["contract"]["compression"]["steps"]
    drift = {line.name: line.value for line in report.lines}["KL divergence"]
    assert drift == pytest.approx(quantized["mean_kl"], rel=0.25)  # on other pieces of text


@pytest.mark.parametrize(("format_name", "preset"), [("onnx", "dynamic-int8"), ("executorch", "8da4w")])
def test_inputs_are_rounded_as_the_engine_rounds_them(
    format_name: str, preset: str, tiny_model_dir: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logits in training, at its end, are the engine's: nearer by far than those of the same weights in floats."""
    source, out = tiny_model_dir("llama", layers=1), tmp_path / "trained"
    ids = np.random.default_rng(0).integers(0, 500, 40).tolist()
    seen: list[np.ndarray] = []

    class Watched(fake.FakeQuantized):
        def __init__(self, model: Any, *arguments: Any, **options: Any) -> None:
            super().__init__(model, *arguments, **options)
            self.model = model

        def packed(self) -> Any:
            with torch.no_grad(), self.as_stored():
                seen.append(self.model(input_ids=torch.tensor([ids])).logits[0].numpy())
            return super().packed()

    monkeypatch.setattr(fake, "FakeQuantized", Watched)
    training = {**SHORT, "updates": 12, "learning_rate": 1e-3 if format_name == "executorch" else 1e-5}
    run(source, out, recipe(training, format_name=format_name, preset=preset, method="rtn"))
    request = ExportRequest(
        str(out), tmp_path / "file", format_name, None, verify=VerifyOptions(chunks=2, context=64), measure=False
    )
    export(request, SilentReporter())
    with contextlib.closing(
        open_session(open_artifact(tmp_path / "file"), RunOptions(threads=1, context=64))
    ) as session:
        engine = session.all_logits(ids)
    with torch.no_grad():
        floats = opened(out)(input_ids=torch.tensor([ids])).logits[0].numpy()
    # Of ONNX what is left is the head's: MatMulNBits rounds its inputs too, in blocks, by half a percent.
    share = 0.25 if format_name == "onnx" else 0.1
    assert np.abs(seen[0] - engine).mean() < share * np.abs(floats - engine).mean()


def test_fixed_ranges_are_not_guessed(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    """The export finds those of static-int8 later, and leaves products in floats that none holds."""
    given: list[Any] = []

    class Watched(fake.FakeQuantized):
        def __init__(self, *arguments: Any, inputs: Any, **options: Any) -> None:
            given.append(inputs)
            super().__init__(*arguments, inputs=inputs, **options)

    source = tiny_model_dir("llama", layers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake, "FakeQuantized", Watched)
        for preset in ("dynamic-int8", "static-int8"):
            training = {**SHORT, "updates": 12, "learning_rate": 1e-5}
            run(source, tmp_path / preset, recipe(training, format_name="onnx", preset=preset, method="rtn"))
    assert [set(one.values()) for one in given] == [{"text"}, set()]
    assert len(given[0]) == 7  # of one layer; the head's are rounded in blocks


@pytest.mark.parametrize("preset", ["tq2_0", "tq1_0"])
def test_a_ternary_model_is_trained_and_run(preset: str, tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    # As narrow as a block of 256 weights lets it be.
    source, out = tiny_model_dir("llama", hidden=256, intermediate_size=256), tmp_path / "ternary"
    rounded = run(source, tmp_path / "rounded", recipe(None, preset=preset))
    training = {**TRAINING, "updates": 60, "learning_rate": 1e-3}
    trained = run(source, out, recipe(training, preset=preset))
    assert trained["mean_kl"] < 0.75 * rounded["mean_kl"]
    weights = opened(out).state_dict()
    blocks = weights["model.layers.1.mlp.up_proj.weight"].reshape(-1, 256)
    scales = blocks.abs().amax(1, keepdim=True)
    assert torch.equal((blocks / scales).round() * scales, blocks)  # -1, 0 and 1 of a scale
    assert len(blocks.div(scales).unique()) == 3
    request = ExportRequest(
        str(out), tmp_path / "file", "gguf", None, verify=VerifyOptions(chunks=2, context=64), measure=False
    )
    report = export(request, SilentReporter())
    drift = {line.name: line.value for line in report.lines}["KL divergence"]
    assert drift is not None
    assert drift < 0.005  # llama.cpp against torch with the same weights: its products round activations to 8 bits


def test_gradient_checkpointing_computes_with_rounded_weights_too(tiny_llama: Path, tmp_path: Path) -> None:
    """Layers are computed again when the forward pass is over; with other weights their gradients would be wrong."""
    for name, on in (("without", False), ("with", True)):
        run(tiny_llama, tmp_path / name, recipe({**SHORT, "gradient_checkpointing": on}))
    before, after = (opened(tmp_path / name).state_dict() for name in ("without", "with"))
    for name, tensor in before.items():
        torch.testing.assert_close(tensor, after[name], rtol=0, atol=1e-5)


def test_a_batch_in_parts(tiny_llama: Path, tmp_path: Path) -> None:
    for name, accumulate in (("whole", 1), ("parts", 4)):
        run(tiny_llama, tmp_path / name, recipe({**SHORT, "accumulate": accumulate, "train": "scales"}))
    before, after = (opened(tmp_path / name).state_dict() for name in ("whole", "parts"))
    for name, tensor in before.items():
        torch.testing.assert_close(tensor, after[name], rtol=0, atol=2e-3 * float(tensor.abs().max()))


@pytest.mark.parametrize("train", ["all", "scales"])
def test_what_was_pruned_stays_zero(train: str, tiny_llama: Path, tmp_path: Path) -> None:
    prune = {"step": "prune", "method": "magnitude", "sparsity": 0.5}
    pruned = recipe(None, prune).model_copy(update={"steps": recipe(None, prune).steps[:1]})
    run(tiny_llama, tmp_path / "pruned", pruned)
    trained = run(
        tiny_llama, tmp_path / "out", recipe({**SHORT, "updates": 40, "learning_rate": 3e-3, "train": train}, prune)
    )
    before, after = (opened(tmp_path / name).state_dict() for name in ("pruned", "out"))
    assert not any(note.startswith("zeros:") for note in trained["notes"])
    for name, tensor in before.items():
        if ".layers." in name and tensor.dim() == 2:
            assert not after[name][tensor == 0].any(), name
            assert after[name][tensor != 0].any()


def test_what_was_pruned_and_stays_in_floats_keeps_its_zeros(tiny_llama: Path, tmp_path: Path) -> None:
    """Grids for some matrices alone; the others learn as they are."""
    prune = {"step": "prune", "method": "magnitude", "sparsity": 0.5}
    name = "model.layers.0.mlp.up_proj.weight"
    whole = quantize_step._GRIDS["gguf"]

    def without(step: Any, subject: Subject) -> Any:
        return {one: grid for one, grid in whole(step, subject).items() if one != name}

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(quantize_step._GRIDS, "gguf", without)
        run(tiny_llama, tmp_path / "out", recipe({**SHORT, "learning_rate": 3e-3}, prune))
    assert not any(one.startswith(name) for one in on_grid(tmp_path / "out", "gguf"))
    weight = opened(tmp_path / "out").state_dict()[name]
    assert float((weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)


def test_factors_are_trained_on_their_grids(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    factorize = {"step": "factorize", "method": "svd", "keep": 0.6}
    source = tiny_model_dir("llama", hidden=128)
    rtn = run(source, tmp_path / "rtn", recipe(None, factorize, format_name="onnx", method="rtn"))
    trained = run(source, tmp_path / "out", recipe(TRAINING, factorize, format_name="onnx", method="rtn"))
    assert trained["mean_kl"] < rtn["mean_kl"]
    assert trained["n_bytes"] == rtn["n_bytes"]


@pytest.mark.parametrize("train", ["all", "scales"])
def test_a_kill_changes_nothing_in_the_end(
    train: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe({**SHORT, "updates": 40, "train": train})
    whole = run(tiny_llama, tmp_path / "whole", made)
    file, out = tmp_path / "recipe.yaml", tmp_path / "out"
    file.write_text(made.model_dump_json(), encoding="utf-8")
    killed(15, tiny_llama, file, out)
    killed(25, tiny_llama, file, out, "--resume")
    checkpoints = work_of(out) / "work-0"
    assert "checkpoint-24" in [path.name for path in checkpoints.iterdir()]
    monkeypatch.setattr(Subject, "teacher", lambda _self, _name: pytest.fail("the teacher was opened"))
    assert {**run(tiny_llama, out, made, resume=True), "seconds": 0} == {**whole, "seconds": 0}
    for path in (tmp_path / "whole").iterdir():
        assert path.name == RECIPE or path.read_bytes() == (out / path.name).read_bytes(), path.name
    assert not work_of(out).exists()


def test_a_training_that_gains_nothing_is_an_error(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training made the loss on held-out text no better, .*; lower learning_rate"):
        run(tiny_llama, tmp_path / "out", recipe({**SHORT, "learning_rate": 50.0}))
    assert not (tmp_path / "out").exists()
