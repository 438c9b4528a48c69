"""Attention between its matrices in float32, where a training computes in bfloat16 on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.recipes import TEXT, run
from support.tiny_encoders import make_tiny_encoder

from exporter.compress.training.student import attention_in_float32

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FAMILIES = ("llama", "gemma3", "Bert", "DistilBert", "ModernBert")
"""Groups of heads, windows, and masks of texts that are filled up."""


@pytest.fixture
def model(request: pytest.FixtureRequest, tiny_model_dir: Callable[..., Path], tmp_path: Path) -> Any:
    import transformers

    family = request.param
    if family[0].islower():
        path, kind = tiny_model_dir(family), transformers.AutoModelForCausalLM
    else:
        path, kind = make_tiny_encoder(tmp_path / "model", family), transformers.AutoModel
    return kind.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa").eval()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.dtype, bool]]:
    """In what torch's attention computed, and whether it will go back through it."""
    found: list[tuple[torch.dtype, bool]] = []
    whole = torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **more: Any) -> torch.Tensor:
        lower = torch.is_autocast_enabled("cpu") or torch.bfloat16 in (query.dtype, key.dtype, value.dtype)
        found.append((torch.bfloat16 if lower else torch.float32, torch.is_grad_enabled()))
        return whole(query, key, value, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    return found


def hidden(model: Any, *, bfloat16: bool) -> torch.Tensor:
    ids = torch.tensor([[2, 30, 40, 50, 60, 3], [2, 31, 41, 3, 0, 0]])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        found = model.base_model(ids, attention_mask=(ids != 0).long()).last_hidden_state
    return found.float()[(ids != 0)]


@pytest.mark.parametrize("model", FAMILIES, indirect=True)
def test_the_same_function_in_float32(model: Any, seen: list[tuple[torch.dtype, bool]]) -> None:
    before = hidden(model, bfloat16=False)
    with attention_in_float32(model, on=True):
        torch.testing.assert_close(hidden(model, bfloat16=False), before, atol=1e-6, rtol=1e-6)
        seen.clear()
        near = hidden(model, bfloat16=True)
        assert set(seen) == {(torch.float32, False)}
    seen.clear()
    hidden(model, bfloat16=True)
    assert set(seen) == {(torch.bfloat16, False)}
    assert model.config._attn_implementation == "sdpa"
    assert torch.linalg.norm(near - before) < 0.03 * torch.linalg.norm(before)


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_other_attention_is_left_alone(model: Any) -> None:
    model.set_attn_implementation("eager")
    with attention_in_float32(model, on=True):
        assert model.config._attn_implementation == "eager"
    model.set_attn_implementation("sdpa")
    with attention_in_float32(model, on=False):
        assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("precision", "train"), [("float32", "all"), ("bfloat16", "all"), ("bfloat16", "lora")])
def test_a_training_goes_back_through_it(
    precision: str, train: str, seen: list[tuple[torch.dtype, bool]], tiny_llama: Path, tmp_path: Path
) -> None:
    """What the teacher computes, which nothing goes back through, stays in the training's precision."""
    shorter = {"step": "remove", "units": "layers", "count": 1, "scores": "magnitude"}
    distill = {"step": "distill", "updates": 4, "batch": 4, "text": TEXT, "precision": precision, "learning_rate": 2e-3}
    run(tiny_llama, tmp_path / "out", shorter, {**distill, "train": train})
    assert {kind for kind, back in seen if back} == {torch.float32}
    assert {kind for kind, back in seen if not back} == {torch.float32, getattr(torch, precision)}
