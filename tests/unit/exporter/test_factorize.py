"""Two thin matrices in place of one: how near they are, what is written, and who runs them as two."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from support.parity import emit, torch_logits, worst_difference

from exporter.checkpoint import resolve
from exporter.compress.factored import Factored, merge
from exporter.compress.factorize.svd import svd
from exporter.compress.factorize.svd_llm import svd_llm
from exporter.compress.job import CompressRequest, compress
from exporter.progress import SilentReporter
from exporter.recipe import Recipe
from runtime.errors import ModelError, UserError
from targets import get_target
from targets.base import EmitOptions
from targets.factors import FACTORS, stored_factors
from targets.ongrid import RECIPE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXT = {"source": "help", "chunks": 4, "tokens": 64}


def problem(rows: int, columns: int, tokens: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and inputs whose features go together and differ in size."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((rows, columns)).astype(np.float32)
    x = generator.standard_normal((tokens, columns // 4)) @ generator.standard_normal((columns // 4, columns))
    x += 0.3 * generator.standard_normal((tokens, columns))
    return weight, (x * np.exp(generator.standard_normal(columns))).astype(np.float32)


def product(factors: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return factors[0].astype(np.float64) @ factors[1]


def test_svd_is_the_nearest_matrix_of_its_rank() -> None:
    weight, _ = problem(24, 40)
    values = np.linalg.svd(weight.astype(np.float64), compute_uv=False)
    for rank in (1, 7, 23):
        error = np.square(product(svd(weight).factors(rank)) - weight).sum()
        assert error == pytest.approx(np.square(values[rank:]).sum(), rel=1e-4)
    shares = np.cumsum(values**2) / np.sum(values**2)
    rank = svd(weight).rank_for(0.9)
    assert shares[rank - 2] < 0.9 <= shares[rank - 1]


def test_svd_llm_loses_what_its_singular_values_say_of_the_outputs() -> None:
    weight, x = problem(24, 40)
    spectrum = svd_llm(weight, x.T @ x)
    for rank in (3, 12):
        error = np.square(x @ (product(spectrum.factors(rank)) - weight).T).sum()
        assert error == pytest.approx(np.square(spectrum.values[rank:]).sum(), rel=5e-3)
        # The best that any matrix of that rank can do: the outputs' own truncation.
        outputs = np.linalg.svd((x @ weight.T).astype(np.float64), compute_uv=False)
        assert error == pytest.approx(np.square(outputs[rank:]).sum(), rel=5e-3)
        assert error < 0.7 * np.square(x @ (product(svd(weight).factors(rank)) - weight).T).sum()


def test_inputs_that_span_too_little_still_have_a_root() -> None:
    weight, x = problem(24, 40)
    few = x[:8]
    found = product(svd_llm(weight, few.T @ few).factors(8))
    np.testing.assert_allclose(few @ found.T, few @ weight.T, rtol=1e-3, atol=1e-3 * np.abs(few @ weight.T).max())
    assert np.isfinite(product(svd_llm(weight, np.zeros((40, 40), np.float32)).factors(8))).all()
    with pytest.raises(ModelError, match="inputs that are no numbers or infinite"):
        svd_llm(weight, np.full((40, 40), np.nan, np.float32))


def test_a_second_step_takes_what_is_whole(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    source, again = tiny_model_dir("qwen2", hidden=256), {"step": "factorize", "keep": 0.5}
    first, second = factorized(source, tmp_path / "out", again, matrices=["*.mlp.*"], keep=0.9)
    assert second["n_params"] < first["n_params"]
    assert all(name.count(".weight") == 1 for name in stored_factors(tmp_path / "out"))
    assert len(stored_factors(tmp_path / "out")) == 14
    assert get_target("onnx").check(resolve(str(tmp_path / "out")), EmitOptions("fp32")) == []
    with pytest.raises(UserError, match="every matrix is two already"):
        factorized(source, tmp_path / "no", again)


def test_the_module_is_the_product_and_keeps_the_bias() -> None:
    weight, x = problem(24, 40)
    bias = torch.arange(24.0)
    module = Factored(*svd(weight).factors(24), bias)
    inputs = torch.from_numpy(x[:3])
    expected = inputs @ torch.from_numpy(weight).T + bias
    assert torch.allclose(module(inputs), expected, atol=1e-3)
    holder = torch.nn.Sequential(module)
    assert merge(holder) == 1
    assert isinstance(holder[0], torch.nn.Linear)
    assert torch.allclose(holder(inputs), expected, atol=1e-3)


def factorized(source: Path, out: Path, *more: dict[str, Any], format_name: str | None = None, **how: Any) -> list[Any]:
    """The reports of the steps."""
    step = {"step": "factorize", "method": "svd-llm", **({"keep": 0.5} if "energy" not in how else {}), **how}
    recipe = Recipe.model_validate({"calibration": TEXT, "steps": [step, *more], "format": format_name})
    compress(CompressRequest(str(source), out, recipe, "test", 2), SilentReporter())
    found: list[Any] = json.loads((out / RECIPE).read_text(encoding="utf-8"))["steps"]
    return found


@pytest.mark.parametrize("method", ["svd", "svd-llm"])
def test_every_family_is_written_whole_and_in_factors(method: str, tiny_any: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (report,) = factorized(tiny_any, out, method=method, keep=0.99)
    assert "GGUF and ExecuTorch multiply them out" in report["notes"][-1]
    facts, pairs = resolve(str(out)), stored_factors(out)
    assert pairs
    before = resolve(str(tiny_any))
    assert {name: fact.shape for name, fact in facts.tensors.items()} == {
        name: fact.shape for name, fact in before.tensors.items()
    }
    saved = sum(
        before.tensors[name].n_elements - pair.left.n_elements - pair.right.n_elements for name, pair in pairs.items()
    )
    assert saved > 0
    assert report["n_params"] == before.n_stored_params - saved
    assert all(pair.left.shape[1] % 32 == 0 for pair in pairs.values())
    with pytest.raises(UserError, match="was factorized already, and its factors would be lost; name the original"):
        factorized(out, tmp_path / "again")
    ids = [5, 9, 40, 7, 100, 33]
    assert np.abs(torch_logits(out, ids) - torch_logits(tiny_any, ids)).max() > 1e-3


@pytest.mark.parametrize("preset", ["fp32", "int8"])
def test_onnx_runs_them_as_two_and_is_smaller(preset: str, tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    source, out = tiny_model_dir("qwen2", hidden=256), tmp_path / "out"
    factorized(source, out)
    (tmp_path / "whole").mkdir()
    (tmp_path / "two").mkdir()
    whole, two = (
        emit(directory, tmp_path / name, "onnx", preset) for directory, name in ((source, "whole"), (out, "two"))
    )
    assert "each is a product of two here" in two.contract["notes"][-1]
    assert two.total_bytes < 0.85 * whole.total_bytes
    assert two.n_params < whole.n_params
    assert worst_difference(out, two) < (1e-3 if preset == "fp32" else 0.2)
    # And it is the factorized model, not the source, that is inside.
    assert worst_difference(source, two) > 10 * worst_difference(out, two)


@pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("preset", "limit"), [("fp32", 1e-4), ("int8", 0.2), ("int4", 0.6), ("dynamic-int8", 0.3)])
@pytest.mark.parametrize("matrices", [["*"], ["*.q_proj.weight", "*.down_proj.weight"]], ids=["all", "some"])
def test_torchscript_runs_them_as_two_and_is_smaller(
    preset: str, limit: float, matrices: list[str], tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    source, out = tiny_model_dir("qwen2", hidden=256), tmp_path / "out"
    (report,) = factorized(source, out, matrices=matrices)
    (tmp_path / "whole").mkdir()
    (tmp_path / "two").mkdir()
    whole, two = (
        emit(directory, tmp_path / name, "torchscript", preset) for directory, name in ((source, "whole"), (out, "two"))
    )
    assert any("each is a product of two here" in note for note in two.contract["notes"])
    assert two.n_params == report["n_params"] < whole.n_params
    assert two.total_bytes < 0.97 * whole.total_bytes
    if preset == "dynamic-int8" and not torch.cpu._is_vnni_supported():
        limit *= 2  # activations have 7 bits there: steps of twice the width
    assert worst_difference(out, two) < limit
    if preset == "fp32":
        assert worst_difference(source, two) > 100 * worst_difference(out, two)


@pytest.mark.parametrize(("format_name", "quant"), [("gguf", "f32"), ("executorch", "fp32")])
def test_other_formats_have_the_product_and_say_so(
    format_name: str, quant: str, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    out, artifact = tmp_path / "out", tmp_path / "artifact"
    factorized(tiny_model_dir("llama", layers=1), out)
    artifact.mkdir()
    made = emit(out, artifact, format_name, quant)
    assert "the file is no smaller for it" in made.contract["notes"][-1]
    assert worst_difference(out, made) < 1e-3


def test_a_gguf_recipe_multiplies_out_before_it_quantizes(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    quantize = {"step": "quantize", "preset": "q4_0", "method": "gptq"}
    first, second = factorized(tiny_llama, out, quantize, format_name="gguf")
    assert "pairs were multiplied out first" in second["notes"][0]
    assert first["n_params"] < second["n_params"]
    assert not (out / FACTORS).exists()
    assert get_target("gguf").check(resolve(str(out)), EmitOptions("q4_0")) == []


def test_pruned_factors_stay_pruned(tiny_llama: Path, tmp_path: Path) -> None:
    prune = {"step": "prune", "method": "sparsegpt", "sparsity": 0.5}
    _, report = factorized(tiny_llama, tmp_path / "out", prune, keep=0.9)
    assert report["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert get_target("onnx").check(resolve(str(tmp_path / "out")), EmitOptions("fp32")) == []


def test_what_would_not_be_smaller_is_left_whole(tiny_llama: Path, tmp_path: Path) -> None:
    (report,) = factorized(tiny_llama, tmp_path / "out", energy=0.999999)
    assert "matrices are whole, two would not be smaller" in report["notes"][0]
    with pytest.raises(UserError, match="--recipe: matrices 'lm_head' matches no matrix"):
        factorized(tiny_llama, tmp_path / "no", matrices=["lm_head"])


def test_factors_of_other_weights_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    factorized(tiny_llama, out)
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    shutil.copyfile(out / FACTORS, other / FACTORS)
    for name in ("onnx", "torchscript"):
        problems = [str(one) for one in get_target(name).check(resolve(str(other)), EmitOptions("fp32"))]
        assert "have changed since; compress the model again, or delete that file" in problems[0]
    (other / FACTORS).write_bytes((out / FACTORS).read_bytes().replace(b".left.", b".lost."))
    with pytest.raises(ModelError, match="is not one of two factors"):
        get_target("onnx").check(resolve(str(other)), EmitOptions("fp32"))
