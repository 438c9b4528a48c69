"""Scales and rotations that leave the function as it is, and what they are for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from support.parity import emit, torch_logits, worst_difference

from exporter.compress.job import CompressRequest, compress
from exporter.compress.links import links
from exporter.compress.rotate.hadamard import hadamard, rotation
from exporter.compress.smooth.awq import Reader, awq_factors
from exporter.compress.smooth.smoothquant import smoothquant_factors
from exporter.progress import SilentReporter
from exporter.recipe import Recipe
from runtime.errors import UserError
from targets.gguf.grids import GRIDS
from targets.ongrid import RECIPE

if TYPE_CHECKING:
    from pathlib import Path

TEXT = {"source": "help", "chunks": 4, "tokens": 64}
IDS = [5, 9, 40, 7, 100, 33, 12, 60] * 5


def folded(
    source: Path, out: Path, *steps: dict[str, Any], format_name: str | None = None, text: Any = TEXT
) -> list[Any]:
    recipe = Recipe.model_validate({"calibration": text, "steps": steps, "format": format_name})
    compress(CompressRequest(str(source), out, recipe, "test", 2), SilentReporter())
    found: list[Any] = json.loads((out / RECIPE).read_text(encoding="utf-8"))["steps"]
    return found


def same_function(source: Path, out: Path) -> bool:
    before, after = torch_logits(source, IDS), torch_logits(out, IDS)
    return bool(np.abs(after - before).max() < 2e-5 * np.abs(before).max())


def changed(source: Path, out: Path, name: str) -> bool:
    from safetensors.torch import load_file

    return not torch.equal(*(load_file(path / "model.safetensors")[name].float() for path in (source, out)))


def test_smoothquant_is_exact_on_every_family(tiny_any: Path, tmp_path: Path) -> None:
    folded(tiny_any, tmp_path / "out", {"step": "smooth", "method": "smoothquant"})
    assert same_function(tiny_any, tmp_path / "out")
    for name in ("self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj", "self_attn.q_proj"):
        assert changed(tiny_any, tmp_path / "out", f"model.layers.1.{name}.weight")


def test_values_are_rotated_exactly_on_every_family(tiny_any: Path, tmp_path: Path) -> None:
    folded(tiny_any, tmp_path / "out", {"step": "rotate", "spaces": ["values"]})
    assert same_function(tiny_any, tmp_path / "out")
    assert changed(tiny_any, tmp_path / "out", "model.layers.1.self_attn.v_proj.weight")


def test_the_hidden_state_is_rotated_exactly(tiny_any: Path, tmp_path: Path) -> None:
    step = {"step": "rotate", "spaces": ["residual", "values"]}
    if "gemma" in tiny_any.name:
        with pytest.raises(
            UserError, match=r"rotate residual: the model norms what each layer adds; say spaces: \[values"
        ):
            folded(tiny_any, tmp_path / "out", step)
        return
    out = tmp_path / "out"
    (report,) = folded(tiny_any, out, step)
    assert same_function(tiny_any, out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    tied = json.loads((tiny_any / "config.json").read_text(encoding="utf-8"))["tie_word_embeddings"]
    assert config["tie_word_embeddings"] is False
    assert bool(report["notes"]) == tied
    # The format's writers take it as it is.
    (tmp_path / "artifact").mkdir()
    assert worst_difference(out, emit(out, tmp_path / "artifact", "gguf", "f32")) < 1e-3


def test_awq_is_exact_before_it_is_rounded(tiny_any: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    steps = [
        {"step": "smooth", "method": "awq"},
        {"step": "quantize", "preset": "q8_0", "method": "rtn", "rules": [{"tensors": "*", "type": "q8_0"}]},
    ]
    first, _ = folded(tiny_any, out, *steps, format_name="gguf")
    assert abs(first["mean_kl"]) < 1e-6
    assert "links are scaled" in first["notes"][0]


def test_awq_needs_a_grid(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--recipe: smooth awq needs to know the grid; end the recipe with a quantize"):
        folded(tiny_llama, tmp_path / "out", {"step": "smooth", "method": "awq"})
    assert list(tmp_path.iterdir()) == []


def problem(columns: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and the Hessian of inputs some of whose features are far larger than the others."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((64, columns)).astype(np.float32)
    x = generator.standard_normal((500, columns)) * np.where(np.arange(columns) % 16 == 0, 30, 1)
    return weight, (x.T @ x).astype(np.float32)


def test_awq_finds_less_error_than_no_scales() -> None:
    weight, hessian = problem()
    grid = GRIDS["Q4_0"]
    factors, power = awq_factors(
        torch.from_numpy(hessian.diagonal().copy()), [Reader(weight, hessian, grid)], lambda values: values
    )

    def loss(scales: np.ndarray) -> float:
        importance = (hessian.diagonal() / scales**2).astype(np.float32)
        error = grid.dequantize(grid.rounded(np.ascontiguousarray(weight * scales), importance)) / scales - weight
        return float(np.einsum("ij,jk,ik->", error, hessian, error))

    assert power > 0
    assert loss(factors.numpy()) < 0.7 * loss(np.ones(128, np.float32))


def test_awq_leaves_alone_what_is_all_alike() -> None:
    weight, _ = problem()
    factors, power = awq_factors(
        torch.full((128,), 7.0),
        [Reader(weight, 7 * np.eye(128, dtype=np.float32), GRIDS["Q4_0"])],
        lambda values: values,
    )
    assert power == 0
    assert torch.equal(factors, torch.ones(128))


def test_smoothquant_evens_peaks_out() -> None:
    peaks, weight = torch.tensor([100.0, 1.0]), torch.tensor([[1.0, 2.0], [-4.0, 1.0]])
    factors = smoothquant_factors(peaks, [weight], 0.5)
    torch.testing.assert_close(factors, torch.sqrt(peaks / torch.tensor([4.0, 2.0])))
    torch.testing.assert_close(peaks / factors, torch.tensor([4.0, 2.0]) * factors)


def test_links_cover_the_layer_and_share_a_channel_among_grouped_queries(tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    found = list(links(model.base_model.layers[0], model.config))
    assert [sorted(link.consumers) for link in found] == [
        ["self_attn.k_proj", "self_attn.q_proj", "self_attn.v_proj"], ["self_attn.o_proj"],
        ["mlp.gate_proj", "mlp.up_proj"], ["mlp.down_proj"],
    ]  # fmt: skip
    values = found[1]
    assert values.repeated == model.config.num_attention_heads // model.config.num_key_value_heads == 2
    spread = values.read(torch.arange(values.channels))
    assert spread[: values.head].tolist() == spread[values.head : 2 * values.head].tolist()
    assert values.gathered(spread).tolist() == list(range(values.channels))


@pytest.mark.parametrize("size", [1, 2, 12, 20, 28, 36, 60, 64, 128, 576, 768, 896, 960, 1536, 2048])
def test_hadamard_matrices(size: int) -> None:
    made = hadamard(size)
    assert made is not None
    assert set(np.unique(made)) <= {-1.0, 1.0}
    np.testing.assert_array_equal(made @ made.T, size * np.eye(size))


@pytest.mark.parametrize("size", [64, 576, 50, 3])
def test_a_rotation_is_orthogonal_and_drawn_by_the_seed(size: int) -> None:
    made = rotation(size, 0)
    np.testing.assert_allclose(made @ made.T, np.eye(size), atol=1e-10)
    np.testing.assert_array_equal(made, rotation(size, 0))
    assert not np.array_equal(made, rotation(size, 1))


def test_a_rotation_spreads_what_stands_out() -> None:
    """Channels that are far larger than the others: four bits cannot hold both in a block."""
    weight = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    weight[:, ::32] *= 12
    turn = rotation(256, 0)
    turned = (weight @ turn).astype(np.float32)
    quiet = np.arange(256) % 32 != 0

    def error(rows: np.ndarray, back: np.ndarray) -> float:
        grid = GRIDS["Q4_0"]
        return float(np.square(((grid.dequantize(grid.rounded(rows)) - rows) @ back)[:, quiet]).mean())

    assert np.abs(turned).max() < 0.5 * np.abs(weight).max()
    assert error(turned, turn.T) < 0.7 * error(weight, np.eye(256))
