"""Layers of different widths: the same function as with units masked, in transformers and in every engine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from support.parity import emit, worst_difference
from support.removal import kept_rows, logits, opened, removed

from exporter.checkpoint import resolve
from exporter.compress.remove.parts import neurons
from exporter.compress.remove.repair import repaired
from exporter.compress.remove.shares import curve
from runtime.errors import UserError
from targets import get_target
from targets.base import EmitOptions
from targets.widths import KV_HEADS, NEURONS, WIDTHS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

QUANTIZE = {"step": "quantize", "preset": "q4_k_m", "method": "gptq"}


def weigh_first_layer(model: Any) -> None:
    """Make what the second layer adds small, so that most of its units go."""
    second = model.base_model.layers[1]
    for module in (second.mlp.down_proj, second.self_attn.o_proj):
        module.weight.data *= 0.05


@pytest.fixture
def lopsided(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    """A family's tiny model whose second layer matters little."""

    def make(family: str, **options: Any) -> Path:
        source, out = tiny_model_dir(family, **options), tmp_path / "lopsided"
        model = opened(source)
        weigh_first_layer(model)
        model.save_pretrained(out)
        for path in source.iterdir():
            if not (out / path.name).exists():
                (out / path.name).write_bytes(path.read_bytes())
        return out

    return make


def widths(directory: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = json.loads((directory / "config.json").read_text(encoding="utf-8"))[WIDTHS]
    return found


@pytest.mark.parametrize("scores", ["magnitude", "activation", "gradient"])
def test_neurons_go_where_they_matter_least(scores: str, lopsided: Callable[[str], Path], tmp_path: Path) -> None:
    source, out = lopsided("llama"), tmp_path / "out"
    (report,) = removed(source, out, units="neurons", share=0.375, scores=scores, repair=False, widths="uneven")
    assert widths(out) == {NEURONS: [128, 32]}
    small, whole = opened(out), opened(source)
    assert small.config.intermediate_size == 128
    for number, (after, before) in enumerate(zip(small.base_model.layers, whole.base_model.layers, strict=True)):
        own = widths(out)[NEURONS][number]
        gone = torch.ones(128, dtype=torch.bool)
        gone[kept_rows(before.mlp.up_proj.weight, after.mlp.up_proj.weight[:own])] = False
        before.mlp.down_proj.weight.data[:, gone] = 0
        assert not after.mlp.gate_proj.weight[own:].any()
        assert not after.mlp.down_proj.weight[:, own:].any()
    np.testing.assert_allclose(logits(small), logits(whole), atol=2e-5 * np.abs(logits(whole)).max())
    assert report["n_params"] == resolve(str(out)).n_stored_params == resolve(str(source)).n_stored_params - 3 * 64 * 96
    assert report["notes"] == ["160 of 256 neurons are left, 32 to 128 in a layer"]


@pytest.mark.parametrize("scores", ["magnitude", "activation", "gradient"])
def test_heads_go_where_they_matter_least(scores: str, lopsided: Callable[[str], Path], tmp_path: Path) -> None:
    source, out = lopsided("llama"), tmp_path / "out"
    removed(source, out, units="heads", share=0.25, scores=scores, repair=False, widths="uneven")
    assert widths(out) == {KV_HEADS: [2, 1]}
    small, whole = opened(out), opened(source)
    after, before = (model.base_model.layers[1].self_attn for model in (small, whole))
    gone = torch.ones(len(before.q_proj.weight), dtype=torch.bool)
    gone[kept_rows(before.q_proj.weight, after.q_proj.weight[: len(gone) // 2])] = False
    before.o_proj.weight.data[:, gone] = 0
    np.testing.assert_allclose(logits(small), logits(whole), atol=2e-5 * np.abs(logits(whole)).max())


ENGINES = [("gguf", "f32"), ("onnx", "fp32"), ("torchscript", "fp32"), ("executorch", "fp32")]


@pytest.mark.parametrize(("family", "format_name", "quant"), [
    (family, *engine) for family in ("llama", "qwen2", "gemma3") for engine in ENGINES
    # The slowest export; what is Qwen's own, biases of q, k and v, has no neurons.
    if (family, engine[0]) != ("qwen2", "executorch")
])  # fmt: skip
def test_every_engine_runs_uneven_neurons(
    family: str, format_name: str, quant: str, lopsided: Callable[..., Path], tmp_path: Path
) -> None:
    # ExecuTorch's export takes two minutes for Gemma's six layers.
    fewer = {"layers": 3, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
    out, artifact = tmp_path / "out", tmp_path / "artifact"
    source = lopsided(family, **(fewer if (family, format_name) == ("gemma3", "executorch") else {}))
    removed(source, out, units="neurons", share=0.25, widths="uneven")
    assert len(set(widths(out)[NEURONS])) > 1
    if format_name == "gguf" and family != "llama":
        (problem,) = get_target("gguf").check(resolve(str(out)), EmitOptions(quant))
        assert problem.what.startswith("llama.cpp has one width for all layers of ")
        return
    artifact.mkdir()
    made = emit(out, artifact, format_name, quant)
    assert made.n_params == resolve(str(out)).n_stored_params
    assert worst_difference(out, made) < 1e-3


@pytest.mark.parametrize("family", ["llama", "llama3", "mistral"])
def test_llama_cpp_runs_uneven_heads_and_neurons(family: str, lopsided: Callable[[str], Path], tmp_path: Path) -> None:
    out, artifact = tmp_path / "out", tmp_path / "artifact"
    neurons = {"step": "remove", "units": "neurons", "share": 0.25, "widths": "uneven"}
    removed(lopsided(family), out, neurons, units="heads", share=0.25, widths="uneven")
    assert set(widths(out)) == {NEURONS, KV_HEADS}
    artifact.mkdir()
    made = emit(out, artifact, "gguf", "f32")
    assert made.n_params == resolve(str(out)).n_stored_params
    assert worst_difference(out, made) < 1e-3
    for format_name in ("onnx", "torchscript", "executorch"):
        (problem,) = get_target(format_name).check(resolve(str(out)), EmitOptions("fp32"))
        assert problem.fix == "export it as gguf"


def test_what_is_uneven_is_quantized_and_compressed_again(lopsided: Callable[..., Path], tmp_path: Path) -> None:
    source, first, second = lopsided("llama", hidden=256), tmp_path / "first", tmp_path / "second"
    removed(source, first, units="neurons", share=0.25, widths="uneven")
    step, _ = removed(
        first, second, {**QUANTIZE, "preset": "q4_0"}, units="heads", share=0.25, widths="uneven", format_name="gguf"
    )
    assert widths(second) == {NEURONS: widths(first)[NEURONS], KV_HEADS: [2, 1]}
    assert step["n_params"] == resolve(str(second)).n_stored_params < resolve(str(first)).n_stored_params
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    made = emit(second, artifact, "gguf", "q4_0")
    # The blocks are those of the matrices without padding, and nothing was rounded again: llama.cpp computes the
    # products with 8-bit activations.
    assert worst_difference(second, made) < 0.1


def test_steps_that_follow_see_narrow_layers(lopsided: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    steps = [
        {"step": "rotate"},
        {"step": "smooth", "method": "smoothquant"},
        {"step": "prune", "method": "wanda", "sparsity": 0.2},
        {"step": "factorize", "keep": 0.9},
    ]
    heads = {"step": "remove", "units": "heads", "share": 0.25, "widths": "uneven"}
    reports = removed(lopsided("llama"), out, heads, *steps, units="neurons", share=0.25, widths="uneven")
    # Of rotations and of moved scales nothing is seen but rounding.
    assert reports[3]["mean_kl"] == pytest.approx(reports[1]["mean_kl"], rel=1e-3)
    assert 0.15 < reports[4]["sparsity"] < 0.25
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    assert worst_difference(out, emit(out, artifact, "gguf", "f32")) < 1e-3


def test_layers_go_with_their_widths(lopsided: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    layers = {"step": "remove", "units": "layers", "count": 1, "scores": "magnitude"}
    removed(lopsided("llama"), out, layers, units="neurons", share=0.375, widths="uneven")
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert WIDTHS not in config
    assert config["intermediate_size"] == 128  # the first layer's, which has the larger weights


@pytest.mark.parametrize(
    ("family", "format_name", "even"),
    [("llama", "gguf", False), ("qwen2", "gguf", True), ("qwen2", "onnx", False), ("llama", None, True)],
)
def test_auto_is_uneven_where_the_format_can(
    family: str, format_name: str | None, even: bool, lopsided: Callable[[str], Path], tmp_path: Path
) -> None:
    quantize = [{**QUANTIZE, "preset": "int4" if format_name == "onnx" else "q4_0"}] if format_name else []
    out = tmp_path / "out"
    reports = removed(
        lopsided(family), out, *quantize, units="neurons", share=0.5, format_name=format_name, widths="auto"
    )
    assert (" in every layer" in reports[0]["notes"][0]) == even
    assert (WIDTHS not in json.loads((out / "config.json").read_text(encoding="utf-8"))) == even


@pytest.mark.parametrize(
    ("family", "format_name", "how", "message"),
    [
        ("qwen2", "gguf", {"units": "neurons", "share": 0.5}, "llama.cpp has one width for all layers of 'qwen2'; say"),
        ("llama", "onnx", {"units": "heads", "share": 0.25}, "clients give all layers' caches one shape; say"),
        (
            "llama",
            None,
            {"units": "neurons", "share": 0.9},
            "230 of 256 neurons in whole blocks of 32 leaves none",
        ),
    ],
)
def test_mistakes_are_one_line(
    family: str, format_name: str | None, how: dict[str, Any], message: str, lopsided: Callable[[str], Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    quantize = [{**QUANTIZE, "preset": "int4" if format_name == "onnx" else "q4_0"}] if format_name else []
    with pytest.raises(UserError, match=message):
        removed(lopsided(family), tmp_path / "out", *quantize, **how, format_name=format_name, widths="uneven")
    assert not (tmp_path / "out").exists()


def test_even_after_uneven_is_refused(lopsided: Callable[[str], Path], tmp_path: Path) -> None:
    again = {"step": "remove", "units": "neurons", "share": 0.5, "widths": "even"}
    with pytest.raises(UserError, match="the layers have 32 to 128 neurons already; say widths: uneven"):
        removed(lopsided("llama"), tmp_path / "out", again, units="neurons", share=0.375, widths="uneven")


@pytest.mark.parametrize("repair", [False, True])
def test_the_curve_is_what_the_outputs_lose(repair: bool, tiny_llama: Path) -> None:
    part = neurons(opened(tiny_llama).base_model.layers[0])
    generator = np.random.default_rng(0)
    mixed = generator.standard_normal((900, 40)) @ generator.standard_normal((40, part.units))
    x = (mixed + 0.1 * generator.standard_normal((900, part.units))).astype(np.float32)
    felt = generator.random(64).astype(np.float32)
    ranks = generator.random(part.units).astype(np.float32)
    moments = x.T @ x / np.float32(900)
    found = curve(part, ranks, moments, felt, 32, repair=repair)
    assert [one.grid for one in found] == [one.n_bytes for one in found] == [32, 64, 96, 128]
    weight = part.reader.weight.detach().numpy()
    for one in found:
        kept = np.sort(np.argsort(-ranks)[: one.grid])
        left = repaired(weight, moments, kept) if repair else weight[:, kept]
        lost = np.square(x[:, kept] @ left.T - x @ weight.T).mean(0)
        assert one.loss == pytest.approx(float(felt @ lost) / 2, rel=1e-2, abs=1e-6)
    losses = [one.loss for one in found]
    assert losses == sorted(losses, reverse=True)
    if repair:
        plain = curve(part, ranks, moments, felt, 32, repair=False)
        assert all(one.loss < 0.5 * other.loss for one, other in zip(found[:-1], plain[:-1], strict=True))
