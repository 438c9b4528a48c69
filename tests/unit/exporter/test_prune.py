"""Pruning: how much goes, which weights, and what those that stay do for the others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from support.recipes import opened_subject

from exporter.compress.job import CompressRequest, compress
from exporter.compress.prune.magnitude import smallest, smallest_of_all
from exporter.compress.prune.masks import lowest, lowest_of_groups, lowest_of_rows
from exporter.compress.prune.schedule import sparsity_at
from exporter.compress.prune.sparsegpt import sparsegpt
from exporter.compress.prune.wanda import wanda
from exporter.compress.quantize.gptq import GptqOptions, gptq
from exporter.progress import SilentReporter
from exporter.recipe import Recipe
from runtime.errors import UserError
from targets.gguf.grids import GRIDS
from targets.ongrid import GGML, RECIPE
from targets.safetensors import read_facts
from targets.weights import WeightReader

if TYPE_CHECKING:
    from pathlib import Path

TEXT = {"source": "help", "chunks": 4, "tokens": 64}
METHODS = ["magnitude", "wanda", "sparsegpt"]


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


def by_elimination(
    weight: np.ndarray, hessian: np.ndarray, mask: np.ndarray | None = None, *,
    sparsity: float = 0.0, pattern: tuple[int, int] | None = None,
) -> np.ndarray:  # fmt: skip
    """Optimal Brain Surgeon in the order of columns: the inverse Hessian shrinks by a column with every step.

    mask: True where a weight goes; None: chosen every 128 columns, or every group, by what each weight there would cost
    """
    columns = len(hessian)
    damped = hessian.astype(np.float64) + 0.01 * hessian.diagonal().mean() * np.eye(columns)
    left = weight.astype(np.float64)
    inverses = [np.linalg.inv(damped)]
    for column in range(columns):
        last = inverses[-1]
        inverses.append(last - np.outer(last[:, column], last[column]) / last[column, column])
    together = pattern[1] if pattern else 128
    for start in range(0, columns, together):
        batch = range(start, min(start + together, columns))
        costs = np.stack([left[:, column] ** 2 / inverses[column][column, column] for column in batch], axis=1)
        if mask is not None:
            gone = mask[:, batch.start : batch.stop]
        elif pattern:
            gone = costs < np.sort(costs, axis=1)[:, together - pattern[0]][:, None]
        else:
            gone = costs < np.sort(costs, axis=None)[round(sparsity * costs.size)]
        for column in batch:
            inverse = inverses[column]
            error = np.where(gone[:, column - start], left[:, column], 0) / inverse[column, column]
            left -= error[:, None] * inverse[column]
    return left


def test_sparsegpt_is_optimal_brain_surgery_column_by_column() -> None:
    weight, hessian = problem(8, 300)
    mask = np.random.default_rng(1).random(weight.shape) < 0.5
    found = sparsegpt(weight, hessian, mask=mask)
    np.testing.assert_allclose(found, by_elimination(weight, hessian, mask), rtol=1e-4, atol=1e-4)
    assert not found[mask].any()
    assert found[~mask].all()


@pytest.mark.parametrize("how", [{"sparsity": 0.5}, {"sparsity": 0.7}, {"pattern": (2, 4)}, {"pattern": (3, 5)}])
def test_sparsegpt_chooses_where_the_columns_are_reached(how: dict[str, Any]) -> None:
    weight, hessian = problem(8, 256 if "sparsity" in how else 320)
    found, expected = sparsegpt(weight, hessian, **how), by_elimination(weight, hessian, **how)
    # Two costs that are nearly one may go either way, and take what follows in their row with them.
    same = np.isclose(found, expected, rtol=1e-3, atol=1e-3).all(axis=1)
    assert same.sum() >= 7


@pytest.mark.parametrize("pattern", [None, (2, 4), (3, 5), (100, 200)])
def test_the_better_the_method_the_nearer_the_outputs(pattern: tuple[int, int] | None) -> None:
    weight, hessian = problem(32, 400)
    pruned = {
        "magnitude": np.where(smallest(weight, 0.5, pattern), 0, weight),
        "wanda": np.where(wanda(weight, hessian, 0.5, pattern), 0, weight),
        "sparsegpt": sparsegpt(weight, hessian, 0.5, pattern),
    }
    costs = {name: loss(weight, found, hessian) for name, found in pruned.items()}
    assert costs["sparsegpt"] < 0.8 * costs["wanda"] < 0.8 * 0.95 * costs["magnitude"]
    if pattern:
        for found in pruned.values():
            assert (np.count_nonzero(found.reshape(32, -1, pattern[1]), axis=2) == pattern[0]).all()


@pytest.mark.parametrize("sparsity", [0.001, 0.137, 0.5, 0.995])
def test_counts_are_exact(sparsity: float) -> None:
    weight, hessian = problem(7, 900)
    assert smallest(weight, sparsity).sum() == round(sparsity * weight.size)
    assert (wanda(weight, hessian, sparsity).sum(axis=1) == round(sparsity * 900)).all()
    assert np.count_nonzero(sparsegpt(weight, hessian, sparsity) == 0) == round(sparsity * weight.size)


def test_sparsegpt_drops_what_no_input_reaches_first() -> None:
    weight, hessian = problem(8, 64)
    dead = [3, 7, 8, 9, 10]
    hessian[:, dead] = hessian[dead] = 0
    weight[:, dead] *= 1e4
    found = sparsegpt(weight, hessian, 0.25)
    assert not found[:, dead].any()
    assert np.isfinite(found).all()
    assert np.count_nonzero(found == 0) == weight.size // 4
    # Three dead of four: one of them is left, for the pattern wants two.
    found = sparsegpt(weight, hessian, pattern=(2, 4))
    assert (np.count_nonzero(found.reshape(8, -1, 4), axis=2) == 2).all()
    assert found[:, 11].all()


def test_equal_scores_go_in_order() -> None:
    scores = np.array([[2, 1, 1, 1], [1, 3, 3, 3]], np.float32)
    np.testing.assert_array_equal(lowest(scores, 2), [[0, 1, 1, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(lowest(scores, 0), np.zeros((2, 4)))
    np.testing.assert_array_equal(lowest_of_rows(scores, 2), [[0, 1, 1, 0], [1, 1, 0, 0]])
    np.testing.assert_array_equal(lowest_of_rows(scores, 0), np.zeros((2, 4)))
    np.testing.assert_array_equal(lowest_of_groups(scores, 1, 2), [[0, 1, 1, 0], [1, 0, 1, 0]])


def test_masks_are_those_of_sorting() -> None:
    scores = np.random.default_rng(3).integers(0, 9, (50, 40)).astype(np.float32)
    expected = np.zeros(2000, bool)
    expected[np.argsort(scores, axis=None, kind="stable")[:700]] = True
    np.testing.assert_array_equal(lowest(scores, 700), expected.reshape(50, 40))
    for row, mask in zip(scores, lowest_of_rows(scores, 17), strict=True):
        np.testing.assert_array_equal(np.flatnonzero(mask), np.sort(np.argsort(row, kind="stable")[:17]))


def test_wanda_weighs_by_the_norm_of_the_input_within_a_row() -> None:
    x = np.array([[3.0, 0.1], [4.0, 0.1]], np.float32)
    weight = np.array([[1.0, -20.0], [1.0, 100.0], [-0.01, -0.01]], np.float32)
    # Norms 5 and 0.14: 5 over 2.8; 5 under 14; 0.05 over 0.0014, and so small that other rows are no matter.
    np.testing.assert_array_equal(wanda(weight, x.T @ x, 0.5), [[0, 1], [1, 0], [0, 1]])


def test_magnitude_has_no_sign() -> None:
    weight = np.array([[1, -2, 0.5, -0.1], [-3, -4, 5, 6]], np.float32)
    np.testing.assert_array_equal(smallest(weight, 0.5), [[1, 1, 1, 1], [0, 0, 0, 0]])
    np.testing.assert_array_equal(smallest(weight, 0.0, (1, 2)), [[1, 0, 0, 1], [1, 0, 1, 0]])


def test_all_matrices_under_one_threshold() -> None:
    weights = {"a": np.array([[1, -2], [3, -4]], np.float32), "b": np.array([[0.5, -5, 0.1]], np.float32)}
    masks = smallest_of_all(weights, 3 / 7)
    np.testing.assert_array_equal(masks["a"], [[1, 0], [0, 0]])
    np.testing.assert_array_equal(masks["b"], [[1, 0, 1]])


def test_the_cubic_schedule() -> None:
    found = [sparsity_at(step, 10, 20, initial=0.0, final=0.8) for step in (0, 10, 12, 20, 99)]
    assert found == pytest.approx([0, 0, 0.8 * (1 - 0.8**3), 0.8, 0.8])
    assert sparsity_at(15, 10, 20, 0.4, 0.8) == pytest.approx(0.8 - 0.4 / 8)
    with pytest.raises(ValueError, match="begins at 3 and ends at 3"):
        sparsity_at(0, 3, 3, 0.0, 0.5)


def pruned(source: Path, out: Path, *steps: dict[str, Any], **more: Any) -> tuple[dict[str, np.ndarray], list[Any]]:
    """The weights of the matrices of the layers after a recipe, and the reports of its steps."""
    recipe = Recipe.model_validate({"calibration": TEXT, "steps": steps, **more})
    compress(CompressRequest(str(source), out, recipe, "test", 2), SilentReporter())
    return matrices(out), json.loads((out / RECIPE).read_text(encoding="utf-8"))["steps"]


def matrices(directory: Path) -> dict[str, np.ndarray]:
    facts = read_facts(directory, str(directory), "x")
    with WeightReader() as reader:
        return {
            name: reader.read_rows(fact, 0, fact.shape[0])
            for name, fact in facts.tensors.items()
            if len(fact.shape) == 2 and ".layers." in name
        }


@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_every_family(method: str, tiny_any: Path, tmp_path: Path) -> None:
    weights, (report,) = pruned(tiny_any, tmp_path / "out", {"step": "prune", "method": method, "pattern": "2:4"})
    for weight in weights.values():
        assert (np.count_nonzero(weight.reshape(-1, 4), axis=1) == 2).all()
    assert report["sparsity"] == 0.5
    assert report["mean_kl"] > 0
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("method", METHODS)
def test_every_matrix_loses_its_share_and_nothing_else_changes(method: str, tiny_llama: Path, tmp_path: Path) -> None:
    weights, _ = pruned(tiny_llama, tmp_path / "out", {"step": "prune", "method": method, "sparsity": 0.3})
    before = matrices(tiny_llama)
    for name, weight in weights.items():
        zeros = np.count_nonzero(weight == 0, axis=1)
        assert (
            zeros.sum() == round(0.3 * weight.size)
            if method != "wanda"
            else (zeros == round(0.3 * len(weight.T))).all()
        )
        stays = weight != 0
        assert np.array_equal(weight[stays], before[name][stays]) == (method != "sparsegpt")
    with WeightReader() as reader:
        tables = [read_facts(path, str(path), "x").tensors for path in (tiny_llama, tmp_path / "out")]
        for name in tables[0].keys() - weights.keys():
            found = [
                reader.read_rows(facts[name], 0, facts[name].n_elements // facts[name].shape[-1]) for facts in tables
            ]
            np.testing.assert_array_equal(*found)


def test_a_layer_sees_the_pruned_ones_before_it(tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    by_wanda = {"step": "prune", "method": "wanda", "sparsity": 0.5}
    weights, _ = pruned(tiny_llama, tmp_path / "out", by_wanda)
    subject = opened_subject(tiny_llama, tmp_path, by_wanda, calibration=TEXT)
    chunks = subject.chunks
    subject.source.close()
    name = "model.layers.1.self_attn.q_proj.weight"
    masks = []
    for source in (tmp_path / "out", tiny_llama):
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        seen: list[torch.Tensor] = []
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
            lambda _module, args, seen=seen: seen.append(args[0][0])
        )
        with torch.no_grad():
            for ids in chunks:
                model(torch.tensor([ids]))
        scores = np.abs(matrices(tiny_llama)[name]) * torch.cat(seen).norm(dim=0).numpy()
        masks.append(scores <= np.sort(scores, axis=1)[:, [scores.shape[1] // 2 - 1]])
    np.testing.assert_array_equal(weights[name] == 0, masks[0])
    assert (masks[0] != masks[1]).any()


def test_scopes_and_exclusion(tiny_llama: Path, tmp_path: Path) -> None:
    step = {"step": "prune", "method": "magnitude", "sparsity": 0.3, "scope": "global", "exclude": ["*.down_proj.*"]}
    weights, (report,) = pruned(tiny_llama, tmp_path / "global", step)
    before = matrices(tiny_llama)
    down = [name for name in weights if "down_proj" in name]
    rest = [name for name in weights if "down_proj" not in name]
    for name in down:
        np.testing.assert_array_equal(weights[name], before[name])
    shares = [(weights[name] == 0).mean() for name in rest]
    total = sum(weights[name].size for name in rest)
    assert sum(np.count_nonzero(weights[name] == 0) for name in rest) == round(0.3 * total)
    assert max(shares) - min(shares) > 1e-3
    gone = max(np.abs(before[name])[weights[name] == 0].max() for name in rest)
    stays = min(np.abs(weights[name])[weights[name] != 0].min() for name in rest)
    assert gone <= stays
    assert 0 < report["sparsity"] < 0.3


@pytest.mark.parametrize(
    ("format_name", "preset", "method", "lossy"),
    [
        ("gguf", "q8_0", "gptq", None),
        ("gguf", "q4_0", "gptq", None),
        ("gguf", "q4_0", "gptq-natural", None),
        ("gguf", "q4_0", "rtn", None),
        ("gguf", "q4_0", "autoround", None),
        ("onnx", "int4", "gptq", None),
        ("gguf", "q4_1", "gptq", "Q4_1"),
        ("gguf", "iq4_nl", "rtn", "IQ4_NL"),
    ],
)
def test_quantizing_keeps_the_zeros_that_its_grid_has(
    format_name: str, preset: str, method: str, lossy: str | None, tiny_llama: Path, tmp_path: Path
) -> None:
    prune = {"step": "prune", "method": "sparsegpt", "sparsity": 0.5, "exclude": ["*.v_proj.*"]}
    quantize = {"step": "quantize", "preset": preset, "method": method}
    sparse, _ = pruned(tiny_llama, tmp_path / "sparse", prune)
    weights, (_, report) = pruned(tiny_llama, tmp_path / "both", prune, quantize, format=format_name)
    kept = {name: not weights[name][weight == 0].any() for name, weight in sparse.items() if "v_proj" not in name}
    assert any(weights[name].any() for name in weights)
    if lossy is None:
        assert all(kept.values())
        assert report["notes"] == []
    else:
        assert not any(kept.values())
        (note,) = report["notes"]
        assert note.startswith("zeros: ")
        assert note.endswith(f"no exact zero in {lossy}")


def test_the_blocks_of_the_file_have_the_zeros(tiny_llama: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    prune = {"step": "prune", "method": "wanda", "pattern": "2:4"}
    quantize = {"step": "quantize", "preset": "q4_0", "method": "gptq"}
    sparse, _ = pruned(tiny_llama, tmp_path / "sparse", prune)
    pruned(tiny_llama, tmp_path / "both", prune, quantize, format="gguf")
    blocks = load_file(tmp_path / "both" / GGML)
    for name, weight in sparse.items():
        found = GRIDS["Q4_0"].dequantize(blocks[f"{name}.Q4_0"])
        assert not found[weight == 0].any()
        assert found.any()


@pytest.mark.parametrize("options", [GptqOptions(), GptqOptions(activation_order=False)], ids=["ordered", "natural"])
@pytest.mark.parametrize("name", ["Q8_0", "Q5_0", "Q4_0", "Q3_K", "Q6_K"])
def test_the_rest_of_the_row_makes_up_for_zeros_that_stay(name: str, options: GptqOptions) -> None:
    """Without the mask errors would fill the zeros; emptied again afterwards, nothing would make up for that."""
    grid, (weight, hessian) = GRIDS[name], problem(16, 256)
    sparse = sparsegpt(weight, hessian, 0.5)
    found = grid.dequantize(gptq(sparse, hessian, grid, options))
    assert not found[sparse == 0].any()
    filled = grid.dequantize(gptq(np.where(sparse == 0, np.float32(1e-9), sparse), hessian, grid, options))
    assert filled[sparse == 0].any()
    emptied = np.where(sparse == 0, np.float32(0), filled)
    assert loss(sparse, found, hessian) < loss(sparse, emptied, hessian)


def test_a_few_zeros_are_no_pruning() -> None:
    """Trained weights that happen to be zero may take errors up as any other."""
    grid, (weight, hessian) = GRIDS["Q4_0"], problem(16, 256)
    few = np.random.default_rng(2).random(weight.shape) < 0.03
    found = grid.dequantize(gptq(np.where(few, np.float32(0), weight), hessian, grid))
    assert found[few].any()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"exclude": ["nothing*"]}, "--recipe: exclude 'nothing\\*' matches no matrix; they are called model.layers"),
        (
            {"exclude": ["model.layers.*.mlp.down.weight"]},
            r"matches no matrix; they are called \S*mlp.down_proj.weight",
        ),
        ({"exclude": ["*"]}, "--recipe: exclude leaves no matrix; take"),
        ({"sparsity": None, "pattern": "2:7"}, r"self_attn.q_proj.weight: rows of 64 weights are no whole groups of 7"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_mistakes_are_one_line(
    method: str, more: dict[str, Any], message: str, tiny_llama: Path, tmp_path: Path
) -> None:
    step = {"step": "prune", "method": method, "sparsity": 0.5, **more}
    with pytest.raises(UserError, match=message):
        pruned(tiny_llama, tmp_path / "out", step)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"method": "wanda", "pattern": "4:4"}, "pattern 4:4 keeps every weight"),
        ({"method": "wanda", "pattern": "2:4", "sparsity": 0.5}, "needs either sparsity or pattern"),
        ({"method": "wanda", "sparsity": 0.5, "scope": "global"}, "scope global goes with method magnitude"),
        ({"method": "magnitude", "pattern": "2:4", "scope": "global"}, "scope global goes with method magnitude"),
        ({"method": "obd", "sparsity": 0.5}, "'magnitude', 'wanda' or 'sparsegpt'"),
        ({"method": "wanda", "sparsity": 1}, "less than 1"),
    ],
)
def test_recipes_that_say_nothing_possible(step: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate({"steps": [{"step": "prune", **step}]})
