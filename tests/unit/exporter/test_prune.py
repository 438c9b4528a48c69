"""Pruning: how much goes, which weights, and what those that stay do for the others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from exporter.compress.job import CompressRequest, compress
from exporter.compress.prune.masks import lowest, lowest_of_groups, lowest_of_rows
from exporter.compress.prune.schedule import sparsity_at
from exporter.compress.prune.sparsegpt import sparsegpt
from exporter.compress.prune.wanda import wanda_scores
from exporter.progress import SilentReporter
from exporter.recipe import Recipe
from runtime.errors import UserError
from targets.ongrid import RECIPE
from targets.safetensors import read_facts
from targets.weights import WeightReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXT = {"source": "help", "chunks": 4, "tokens": 64}


def problem(rows: int, columns: int, tokens: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and the Hessian of inputs whose features go together and differ in size."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((rows, columns)).astype(np.float32)
    mixed = generator.standard_normal((columns // 4, columns))
    x = generator.standard_normal((tokens, columns // 4)) @ mixed + generator.standard_normal((tokens, columns))
    x *= np.exp(0.5 * generator.standard_normal(columns))
    return weight, (x.T @ x).astype(np.float32)


def loss(weight: np.ndarray, pruned: np.ndarray, hessian: np.ndarray) -> float:
    error = (pruned - weight).astype(np.float64)
    return float(np.einsum("ij,jk,ik->", error, hessian.astype(np.float64), error))


def by_elimination(weight: np.ndarray, hessian: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Optimal Brain Surgeon in the order of columns: the inverse Hessian shrinks by a column with every step."""
    damped = hessian.astype(np.float64) + 0.01 * hessian.diagonal().mean() * np.eye(len(hessian))
    inverse, left = np.linalg.inv(damped), weight.astype(np.float64)
    for column in range(weight.shape[1]):
        error = np.where(mask[:, column], left[:, column], 0) / inverse[column, column]
        left -= error[:, None] * inverse[column]
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return left


def test_sparsegpt_is_optimal_brain_surgery_column_by_column() -> None:
    weight, hessian = problem(8, 300)
    mask = np.random.default_rng(1).random(weight.shape) < 0.5
    found = sparsegpt(weight, hessian, mask=mask)
    np.testing.assert_allclose(found, by_elimination(weight, hessian, mask), rtol=2e-3, atol=2e-3)
    assert not found[mask].any()


@pytest.mark.parametrize("pattern", [None, (2, 4), (3, 5), (100, 200)])
def test_the_better_the_method_the_nearer_the_outputs(pattern: tuple[int, int] | None) -> None:
    weight, hessian = problem(32, 400)
    groups = (lambda scores: lowest_of_groups(scores, *pattern)) if pattern else (lambda scores: lowest(scores, 0.5))
    rows = groups if pattern else (lambda scores: lowest_of_rows(scores, 0.5))
    pruned = {
        "magnitude": np.where(groups(np.abs(weight)), 0, weight),
        "wanda": np.where(rows(wanda_scores(weight, hessian)), 0, weight),
        "sparsegpt": sparsegpt(weight, hessian, 0.5, pattern),
    }
    costs = {name: loss(weight, found, hessian) for name, found in pruned.items()}
    assert costs["sparsegpt"] < 0.8 * costs["wanda"] < 0.8 * 0.95 * costs["magnitude"]
    kept, of = pattern or (1, 2)
    for found in pruned.values():
        assert abs((found == 0).mean() - (1 - kept / of)) < 1e-3
        if pattern:
            assert (np.count_nonzero(found.reshape(32, -1, of), axis=2) == kept).all()


def test_sparsegpt_drops_what_no_input_reaches() -> None:
    weight, hessian = problem(4, 64)
    hessian[:, 7] = hessian[7] = 0
    found = sparsegpt(weight, hessian, 0.25)
    assert not found[:, 7].any()
    assert np.isfinite(found).all()


def test_equal_scores_go_in_order() -> None:
    scores = np.array([[2, 1, 1, 1], [1, 3, 3, 3]], np.float32)
    np.testing.assert_array_equal(lowest(scores, 0.25), [[0, 1, 1, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(lowest_of_rows(scores, 0.5), [[0, 1, 1, 0], [1, 1, 0, 0]])
    np.testing.assert_array_equal(lowest_of_groups(scores, 1, 2), [[0, 1, 1, 0], [1, 0, 1, 0]])


def test_wanda_weighs_by_the_norm_of_the_input() -> None:
    x = np.array([[3.0, 0.1], [4.0, 0.1]], np.float32)
    weight = np.array([[1.0, -20.0]], np.float32)
    np.testing.assert_allclose(wanda_scores(weight, x.T @ x), [[5.0, 20 * np.sqrt(0.02)]], rtol=1e-6)


def test_the_cubic_schedule() -> None:
    assert [sparsity_at(step, 10, 20, 0.8) for step in (0, 10, 20, 99)] == pytest.approx([0, 0, 0.8, 0.8])
    assert sparsity_at(15, 10, 20, 0.8, initial=0.4) == pytest.approx(0.8 - 0.4 / 8)
    with pytest.raises(ValueError, match="begins at 3 and ends at 3"):
        sparsity_at(0, 3, 3, 0.5)


def pruned(source: Path, out: Path, *steps: dict[str, Any], **more: Any) -> tuple[dict[str, np.ndarray], list[Any]]:
    """The weights of the matrices of the layers after a recipe, and the reports of its steps."""
    recipe = Recipe.model_validate({"calibration": TEXT, "steps": steps, **more})
    compress(CompressRequest(str(source), out, recipe, "test", 2), SilentReporter())
    facts = read_facts(out, str(out), "x")
    with WeightReader() as reader:
        weights = {
            name: reader.read_rows(fact, 0, fact.shape[0])
            for name, fact in facts.tensors.items()
            if len(fact.shape) == 2 and ".layers." in name
        }
    return weights, json.loads((out / RECIPE).read_text(encoding="utf-8"))["steps"]


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_every_method_on_every_family(method: str, tiny_any: Path, tmp_path: Path) -> None:
    step = {"step": "prune", "method": method, "pattern": "2:4"}
    weights, (report,) = pruned(tiny_any, tmp_path / "out", step)
    for weight in weights.values():
        assert (np.count_nonzero(weight.reshape(-1, 4), axis=1) == 2).all()
    assert report["sparsity"] == 0.5
    assert report["mean_kl"] > 0
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_scopes_and_exclusion(tiny_llama: Path, tmp_path: Path) -> None:
    step = {"step": "prune", "method": "magnitude", "sparsity": 0.3}
    weights, _ = pruned(tiny_llama, tmp_path / "layer", step)
    assert all(np.count_nonzero(weight == 0) == round(0.3 * weight.size) for weight in weights.values())
    weights, (report,) = pruned(
        tiny_llama, tmp_path / "global", {**step, "scope": "global", "exclude": ["*.down_proj.*"]}
    )
    down = [weight for name, weight in weights.items() if "down_proj" in name]
    rest = [weight for name, weight in weights.items() if "down_proj" not in name]
    assert all(weight.all() for weight in down)
    shares = [(weight == 0).mean() for weight in rest]
    assert sum(np.count_nonzero(weight == 0) for weight in rest) == round(0.3 * sum(weight.size for weight in rest))
    assert max(shares) - min(shares) > 1e-3
    assert 0 < report["sparsity"] < 0.3


@pytest.mark.parametrize(("preset", "exact"), [("q8_0", True), ("q4_0", True), ("q4_1", False)])
def test_gptq_keeps_the_zeros_that_its_grid_has(preset: str, exact: bool, tiny_llama: Path, tmp_path: Path) -> None:
    steps = [
        {"step": "prune", "method": "sparsegpt", "sparsity": 0.5},
        {"step": "quantize", "preset": preset, "method": "gptq"},
    ]
    _, (first, second) = pruned(tiny_llama, tmp_path / "out", *steps, format="gguf")
    assert first["sparsity"] == pytest.approx(0.5, abs=1e-3)
    if exact:
        assert second["sparsity"] >= first["sparsity"]
        assert second["notes"] == []
    else:
        assert second["sparsity"] < 0.4
        assert "not every grid has a code for zero" in second["notes"][0]


def test_zeros_are_worth_keeping_in_gptq(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    """Without the mask, errors would fill the zeros; with it the rest of the row makes up for them."""
    from exporter.compress.quantize.gptq import gptq
    from targets.gguf.grids import GRIDS

    weight, hessian = problem(16, 256)
    sparse = sparsegpt(weight, hessian, 0.5)
    for name in ("Q8_0", "Q5_0"):
        found = GRIDS[name].dequantize(gptq(sparse, hessian, GRIDS[name]))
        assert not found[sparse == 0].any()
        naive = np.where(sparse == 0, 0, GRIDS[name].dequantize(gptq(sparse + 1e-9, hessian, GRIDS[name])))
        assert loss(sparse, found, hessian) < loss(sparse, naive.astype(np.float32), hessian)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"exclude": ["nothing*"]}, "--recipe: exclude 'nothing\\*' matches no matrix; they are called model.layers"),
        ({"exclude": ["*"]}, "--recipe: exclude leaves no matrix; take"),
        ({"sparsity": None, "pattern": "2:7"}, r"self_attn.q_proj.weight: rows of 64 weights are no whole groups of 7"),
    ],
)
def test_mistakes_are_one_line(more: dict[str, Any], message: str, tiny_llama: Path, tmp_path: Path) -> None:
    step = {"step": "prune", "method": "wanda", "sparsity": 0.5, **more}
    with pytest.raises(UserError, match=message):
        pruned(tiny_llama, tmp_path / "out", step)
    assert list(tmp_path.iterdir()) == []
