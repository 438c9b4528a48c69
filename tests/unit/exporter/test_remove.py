"""Units that are taken out: the same function as with them masked, everywhere; and which ones go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.parity import emit, worst_difference
from support.removal import IDS, TEXT, kept_rows, logits, opened, removed

from exporter.checkpoint import resolve
from exporter.compress.job import CompressRequest, compress
from exporter.compress.remove.layers import _looked_at
from exporter.compress.remove.parts import heads, neurons
from exporter.compress.remove.repair import repaired
from exporter.compress.remove.scores import felt, given
from exporter.compress.walk import skipped
from exporter.progress import SilentReporter
from exporter.recipe import Recipe
from runtime.errors import UserError
from targets import get_target
from targets.base import Calibration, EmitOptions
from targets.onnx.calibration import token_chunks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("scores", ["magnitude", "activation", "gradient"])
def test_neurons_removed_are_neurons_masked(scores: str, tiny_any: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (report,) = removed(tiny_any, out, units="neurons", share=0.5, scores=scores, repair=False)
    small, whole = opened(out), opened(tiny_any)
    for after, before in zip(small.base_model.layers, whole.base_model.layers, strict=True):
        assert len(after.mlp.up_proj.weight) == whole.config.intermediate_size // 2
        gone = torch.ones(whole.config.intermediate_size, dtype=torch.bool)
        gone[kept_rows(before.mlp.up_proj.weight, after.mlp.up_proj.weight)] = False
        before.mlp.down_proj.weight.data[:, gone] = 0
    np.testing.assert_allclose(logits(small), logits(whole), atol=2e-5 * np.abs(logits(whole)).max())
    assert report["n_params"] == resolve(str(out)).n_stored_params < resolve(str(tiny_any)).n_stored_params


@pytest.mark.parametrize("scores", ["magnitude", "activation", "gradient"])
def test_heads_removed_are_heads_masked(scores: str, tiny_any: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", opened(tiny_any)
    groups = whole.config.num_key_value_heads
    if groups == 1:
        with pytest.raises(UserError, match="remove 1 of 1 heads leaves none"):
            removed(tiny_any, out, units="heads", count=1)
        return
    if whole.config.model_type == "llama" and groups == 4:
        with pytest.raises(UserError, match=r"3 heads cannot be loaded \(The hidden size \(64\) is not a multiple"):
            removed(tiny_any, out, units="heads", count=1)
        return
    removed(tiny_any, out, units="heads", count=1, scores=scores, repair=False)
    small = opened(out)
    for after, before in zip(small.base_model.layers, whole.base_model.layers, strict=True):
        a, b = after.self_attn, before.self_attn
        assert len(a.v_proj.weight) == len(b.v_proj.weight) // groups * (groups - 1)
        gone = torch.ones(len(b.q_proj.weight), dtype=torch.bool)
        gone[kept_rows(b.q_proj.weight, a.q_proj.weight)] = False
        b.o_proj.weight.data[:, gone] = 0
    np.testing.assert_allclose(logits(small), logits(whole), atol=2e-5 * np.abs(logits(whole)).max())


def test_layers_that_stay_lie_evenly_apart(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    """Every other one, with the first and the last."""
    source = tiny_model_dir("llama", layers=7)
    (report,) = removed(source, tmp_path / "out", units="layers", count=3, scores="spaced")
    assert report["notes"][0] == "removed layers, counted from 0: 1, 3, 5"
    with pytest.raises(ValidationError, match="scores spaced goes with units layers only"):
        Recipe.model_validate({"steps": [{"step": "remove", "units": "heads", "count": 1, "scores": "spaced"}]})


def test_layers_go_one_after_the_other_where_they_are_missed_least(
    tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    """By the divergence of what is left from the whole, looked at here with all of the vocabulary and on all text."""
    source = tiny_model_dir("llama", layers=6)
    (report,) = removed(source, tmp_path / "out", units="layers", count=2, scores="greedy")
    model = opened(source)
    layers = model.base_model.layers
    texts, _ = token_chunks(source / "tokenizer.json", Calibration(chunks=TEXT["chunks"], tokens=TEXT["tokens"]))

    def predicted() -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([model(torch.tensor([ids])).logits[0].log_softmax(-1) for ids in texts])

    whole, gone = predicted(), []
    for _ in range(2):
        far = {}
        for number in set(range(6)) - set(gone):
            with skipped([layers[one] for one in (*gone, number)]):
                far[number] = float((whole.exp() * (whole - predicted())).sum(-1).mean())
        gone.append(min(far, key=far.__getitem__))
    assert report["notes"][0] == f"removed layers, counted from 0: {', '.join(map(str, sorted(gone)))}"
    # Nothing of it is left behind.
    assert torch.equal(predicted(), whole)


def test_what_is_looked_at_is_bounded() -> None:
    """Of long text the first pieces; one at least."""
    assert [len(ids) for ids in _looked_at([[0] * 512] * 16)] == [512] * 4
    assert [len(ids) for ids in _looked_at([[0] * 3000, [0]])] == [3000]
    assert [len(ids) for ids in _looked_at([[0] * 8] * 3)] == [8] * 3


@pytest.mark.parametrize("scores", ["influence", "greedy", "magnitude", "activation", "gradient", "spaced"])
def test_layers_removed_are_layers_skipped(scores: str, tiny_any: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", opened(tiny_any)
    (report,) = removed(tiny_any, out, units="layers", count=1, scores=scores)
    gone = int(report["notes"][0].rpartition(" ")[2])
    small = opened(out)
    assert small.config.num_hidden_layers == whole.config.num_hidden_layers - 1
    whole.base_model.layers[gone].forward = lambda hidden, *_rest, **_keywords: hidden
    np.testing.assert_allclose(logits(small), logits(whole), atol=2e-5 * np.abs(logits(whole)).max())


@pytest.mark.parametrize(("format_name", "quant"), [("gguf", "f32"), ("onnx", "fp32"), ("torchscript", "fp32")])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_every_engine_runs_what_is_left(
    family: str, format_name: str, quant: str, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    source, out, artifact = tiny_model_dir(family), tmp_path / "out", tmp_path / "artifact"
    steps = [{"step": "remove", "units": "neurons", "share": 0.5}, {"step": "remove", "units": "layers", "count": 1}]
    if opened(source).config.num_key_value_heads > 1:
        steps.append({"step": "remove", "units": "heads", "count": 1})
    recipe = Recipe.model_validate({"calibration": TEXT, "steps": steps})
    compress(CompressRequest(str(source), out, recipe, "test", 2), SilentReporter())
    artifact.mkdir()
    made = emit(out, artifact, format_name, quant)
    assert made.n_params == resolve(str(out)).n_stored_params
    assert worst_difference(out, made) < 1e-3
    # With its cache too: layers know their new numbers.
    model = opened(out)
    generated = model.generate(torch.tensor([IDS[:8]]), max_new_tokens=6, do_sample=False, use_cache=True)
    with torch.no_grad():
        again = [int(model(generated[:, :n]).logits[0, -1].argmax()) for n in range(8, generated.shape[1])]
    assert generated[0, 8:].tolist() == again


def test_what_is_left_is_quantized(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny_model_dir("llama", hidden=256)
    quantize = {"step": "quantize", "preset": "q4_k_m", "method": "gptq"}
    first, second = removed(source, tmp_path / "out", quantize, units="layers", count=1, format_name="gguf")
    assert second["n_bytes"] < first["n_bytes"] / 4
    assert get_target("gguf").check(resolve(str(tmp_path / "out")), EmitOptions("q4_k_m")) == []


def test_repair_is_the_least_squares_of_the_outputs() -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((6, 40)).astype(np.float32)
    x = generator.standard_normal((900, 10)) @ generator.standard_normal((10, 40)) + 0.3 * generator.standard_normal(
        (900, 40)
    )
    x = x.astype(np.float32)
    kept = np.sort(generator.permutation(40)[:25])
    found = repaired(weight, x.T @ x, kept)
    # Ridge towards the weights as they were, by lstsq on stacked equations.
    damping = 0.01 * np.square(x.astype(np.float64)).sum(0).mean()
    stacked = np.vstack([x[:, kept], np.sqrt(damping) * np.eye(25)])
    wanted = np.vstack([x @ weight.T, np.sqrt(damping) * weight[:, kept].T])
    expected = np.linalg.lstsq(stacked.astype(np.float64), wanted.astype(np.float64), rcond=None)[0].T
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    plain = np.square(x[:, kept] @ weight[:, kept].T - x @ weight.T).sum()
    assert np.square(x[:, kept] @ found.T - x @ weight.T).sum() < 0.5 * plain


def test_repair_drifts_less(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    source, kl = tiny_model_dir("llama", hidden=256), {}
    for repair in (False, True):
        step = {"step": "remove", "units": "neurons", "share": 0.5, "repair": repair}
        recipe = Recipe.model_validate(
            {"calibration": {"source": "help", "chunks": 32, "tokens": 128}, "steps": [step]}
        )
        out = tmp_path / str(repair)
        report = compress(CompressRequest(str(source), out, recipe, "test", 2), SilentReporter())
        kl[repair] = report.steps[0].mean_kl
    assert kl[True] < 0.95 * kl[False]


def test_activation_is_what_a_unit_adds(tiny_llama: Path) -> None:
    model = opened(tiny_llama)
    layer = model.base_model.layers[0]
    x = torch.randn(50, layer.self_attn.o_proj.weight.shape[1], generator=torch.Generator().manual_seed(0))
    part = heads(layer, model.config)
    found = part.activation((x.T @ x).numpy())
    for unit in range(part.units):
        columns = torch.from_numpy(part.columns(np.array([unit])))
        added = x[:, columns] @ layer.self_attn.o_proj.weight[:, columns].T
        assert found[unit] == pytest.approx(float(added.detach().square().sum()), rel=1e-3)
    part = neurons(layer)
    x = torch.randn(50, part.units, generator=torch.Generator().manual_seed(0))
    added = x[:, 3:4] @ layer.mlp.down_proj.weight[:, 3:4].T
    assert part.activation((x.T @ x).numpy())[3] == pytest.approx(float(added.detach().square().sum()), rel=1e-3)


def test_the_gradient_is_that_of_a_gate(tiny_llama: Path) -> None:
    """One token's loss, so that |sum over tokens| and sum of |…| agree; the gate is turned by hand."""
    model, ids = opened(tiny_llama), [5, 9]
    part = neurons(model.base_model.layers[0])
    (found,) = felt(model, [ids], [(part.reader, given, part.units)], lambda *_: None)
    unit, step = int(found.argmax()), 1e-2

    def loss(gate: float) -> float:
        def scale(_module: Any, args: Any) -> Any:
            x = args[0].clone()
            x[..., unit] *= gate
            return (x,)

        handle = part.reader.register_forward_pre_hook(scale)
        with torch.no_grad():
            tokens = torch.tensor([ids])
            value = float(model(input_ids=tokens, labels=tokens).loss.double())
        handle.remove()
        return value

    slope = abs(loss(1 + step) - loss(1 - step)) / (2 * step)
    assert float(found[unit]) >= 0.95 * slope > 0


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"units": "layers", "count": 99}, "--recipe: remove 99 of 2 layers leaves none"),
        ({"units": "neurons", "share": 0.01}, "--recipe: remove 1 of 128 neurons in whole blocks of 32 removes none"),
    ],
)
def test_mistakes_are_one_line(how: dict[str, Any], message: str, tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        removed(tiny_llama, tmp_path / "out", **how)
    assert list(tmp_path.iterdir()) == []
