"""Shared weights: few values, chosen well; like layers made one."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.parity import no_progress

from exporter.archive.pack import pack
from exporter.compress.job import CompressRequest, compress
from exporter.compress.share.codebook import kmeans, nearest_centres, shared
from exporter.progress import SilentReporter
from exporter.recipe import Recipe
from runtime.errors import UserError
from targets.ongrid import RECIPE

if TYPE_CHECKING:
    from pathlib import Path

TEXT = {"source": "help", "chunks": 4, "tokens": 64}


def cost(values: np.ndarray, centres: np.ndarray, weights: np.ndarray) -> float:
    return float((weights * np.square(values - nearest_centres(values, centres))).sum())


def best(values: np.ndarray, weights: np.ndarray, k: int) -> float:
    """The least cost of k clusters of values on a line, by dynamic programming over where ranges end."""
    order = np.argsort(values)
    v, w = values[order].astype(np.float64), weights[order].astype(np.float64)
    n = len(v)

    def within(i: int, j: int) -> float:
        mean = np.average(v[i:j], weights=w[i:j])
        return float((w[i:j] * (v[i:j] - mean) ** 2).sum())

    costs = [0.0] + [float("inf")] * n
    for _ in range(k):
        costs = [min([costs[j]] + [costs[i] + within(i, j) for i in range(j)]) for j in range(n + 1)]
    return costs[n]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_centres_are_where_no_step_improves_them(k: int) -> None:
    generator = np.random.default_rng(0)
    values, weights = generator.standard_normal(60).astype(np.float32), generator.random(60).astype(np.float32)
    centres = kmeans(values, k, weights)
    assert (np.diff(centres) >= 0).all()
    found = nearest_centres(values, centres)
    for centre in np.unique(found):  # the mean of what is nearest to it
        mine = found == centre
        assert centre == pytest.approx(np.average(values[mine], weights=weights[mine]), abs=1e-5)
    least = best(values, weights, k)
    assert least * 0.999 <= cost(values, centres, weights) < 1.6 * least + 1e-9
    if k > 1:  # and what counts more is nearer
        assert cost(values, centres, weights) < cost(values, kmeans(values, k), weights)


def test_a_matrix_of_few_values_keeps_its_zeros() -> None:
    weight = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)
    weight[::3] = 0
    found = shared(weight, 3)
    assert len(np.unique(found)) == 8
    np.testing.assert_array_equal(found == 0, weight == 0)
    assert len(np.unique(shared(np.abs(weight) + 1, 3))) == 8
    assert not shared(np.zeros((2, 2), np.float32), 3).any()
    few = np.array([[1.0, 2.0], [2.0, 1.0]], np.float32)
    np.testing.assert_array_equal(shared(few, 4), few)


def run(source: Path, out: Path, *steps: dict[str, Any]) -> list[Any]:
    recipe = Recipe.model_validate({"calibration": TEXT, "steps": steps})
    compress(CompressRequest(str(source), out, recipe, "test", 2), SilentReporter())
    found: list[Any] = json.loads((out / RECIPE).read_text(encoding="utf-8"))["steps"]
    return found


def matrices(directory: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return {
        name: value
        for name, value in load_file(directory / "model.safetensors").items()
        if value.ndim == 2 and ".layers." in name
    }


def test_every_family_gets_codebooks(tiny_any: Path, tmp_path: Path) -> None:
    (report,) = run(tiny_any, tmp_path / "out", {"step": "share", "method": "codebook", "bits": 4})
    assert all(8 < len(np.unique(weight)) <= 16 for weight in matrices(tmp_path / "out").values())
    assert 0 < report["mean_kl"] < 1
    assert "16 values a matrix; 'packlight pack' stores them once" in report["notes"][0]


def test_pruned_then_shared(tiny_llama: Path, tmp_path: Path) -> None:
    prune = {"step": "prune", "method": "wanda", "sparsity": 0.5}
    first, second = run(tiny_llama, tmp_path / "out", prune, {"step": "share", "method": "codebook", "bits": 5})
    assert first["sparsity"] == second["sparsity"] == 0.5
    assert all(len(np.unique(weight)) <= 32 for weight in matrices(tmp_path / "out").values())


def test_like_layers_are_found_and_made_one(tiny_any: Path, tmp_path: Path) -> None:
    """A model whose second layer is nearly its first: sharing them costs hardly anything."""
    from safetensors.numpy import load_file, save_file

    source = tmp_path / "source"
    shutil.copytree(tiny_any, source)
    file = source / "model.safetensors"
    try:
        weights = load_file(file)
    except (TypeError, ValueError, AttributeError, KeyError):  # bfloat16, which numpy has not
        import torch
        from safetensors.torch import load_file as load_torch

        weights = {name: value.to(torch.float32).numpy() for name, value in load_torch(file).items()}
    for name in list(weights):
        if ".layers.0." in name:
            other = name.replace(".layers.0.", ".layers.1.")
            weights[other] = weights[name] + (np.float32(1e-6) if weights[name].ndim == 2 else 0)
    save_file({name: value.astype(np.float32) for name, value in weights.items()}, file, {"format": "pt"})
    (report,) = run(source, tmp_path / "out", {"step": "share", "method": "layers", "count": 1})
    assert report["notes"][0] == "share: layers, counted from 0: 0 for 1"
    assert abs(report["mean_kl"]) < 1e-4
    found = matrices(tmp_path / "out")
    for name in found:
        if ".layers.1." in name:
            np.testing.assert_array_equal(found[name], found[name.replace(".layers.1.", ".layers.0.")])


def test_the_archive_stores_a_shared_layer_once(tiny_llama: Path, tmp_path: Path) -> None:
    from runtime.artifact import Artifact, record, write_manifest

    run(tiny_llama, tmp_path / "out", {"step": "share", "method": "layers", "count": 1})
    sizes = []
    for name, files in (("shared", tmp_path / "out" / "model.safetensors"), ("own", tiny_llama / "model.safetensors")):
        root = tmp_path / name
        root.mkdir()
        shutil.copyfile(files, root / "model.safetensors")
        recorded = {"model.safetensors": record(root / "model.safetensors")}
        write_manifest(Artifact(root, "floats", "model.safetensors", "x", "f32", 1, 32.0, 1, "x", {}, recorded))
        report = pack(root, tmp_path / f"{name}.pla", 1, no_progress)
        sizes.append(report.packed_bytes / report.n_bytes)
    assert sizes[0] < 0.9 * sizes[1]


def test_mistakes_are_one_line(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--recipe: share count 9: 2 layers are 1 pairs at most"):
        run(tiny_llama, tmp_path / "out", {"step": "share", "method": "layers", "count": 9})
    with pytest.raises(UserError, match="exclude 'x' matches no matrix"):
        run(tiny_llama, tmp_path / "out", {"step": "share", "method": "codebook", "exclude": ["x"]})
    assert list(tmp_path.iterdir()) == []
