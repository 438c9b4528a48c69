"""Types by measured sensitivity: sums by hand, brute force, and what the estimate says of the truth."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from exporter.compress.quantize.allocate import Choice, Sensitivity, allocate, losses, sensitivity
from targets.gguf.grids import GRIDS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GRID = GRIDS["Q4_0"]
IDS = np.random.default_rng(0).integers(5, 500, (6, 64)).tolist()


def no_progress(_what: str, _done: int, _total: int) -> None:
    """Nothing."""


def test_the_best_choices_within_the_budget_are_found() -> None:
    generator = np.random.default_rng(0)
    choices = {
        str(number): [
            Choice(GRID, int(size), float(weight * 4.0 ** (-size / 8)))
            for size in sorted(generator.choice(np.arange(4, 40), 4, replace=False))
        ]
        for number, weight in enumerate(generator.uniform(0.1, 50, 5))
    }
    combinations = [dict(zip(choices, found, strict=True)) for found in itertools.product(*choices.values())]
    for budget in range(60, 160, 5):
        allowed = [one for one in combinations if sum(choice.n_bytes for choice in one.values()) <= budget]
        if not allowed:
            with pytest.raises(ValueError, match=f"the budget is {budget}"):
                allocate(choices, budget)
            continue
        best = min(sum(choice.loss for choice in one.values()) for one in allowed)
        found = allocate(choices, budget)
        assert sum(choice.n_bytes for choice in found.values()) <= budget
        assert sum(choice.loss for choice in found.values()) <= 1.6 * best


def test_a_budget_for_everything_gets_everything() -> None:
    choices = {"a": [Choice(GRID, 1, 1.0), Choice(GRID, 9, 0.0)], "b": [Choice(GRID, 2, 5.0), Choice(GRID, 7, 4.0)]}
    assert [one.n_bytes for one in allocate(choices, 100).values()] == [9, 7]


def test_losses_are_the_sums_that_they_are_said_to_be() -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((8, 64)).astype(np.float32)
    x, g = generator.uniform(0.1, 2, 64).astype(np.float32), generator.uniform(0.1, 2, 8).astype(np.float32)
    table = generator.uniform(0.1, 2, 64).astype(np.float32)
    seen = Sensitivity({"w": x, "head": x, "": np.ones(1)}, {"w": g, "head": g, "": table})
    from targets.gguf.kernels import quantize_rows

    error = GRID.dequantize(quantize_rows(weight, GRID.kind, x)) - weight
    product = sum(g[i] * error[i, j] ** 2 * x[j] for i in range(8) for j in range(64)) / 2
    lookup = (error**2).mean(0) @ table / 2
    assert losses(weight, seen, "w", [GRID])[0] == pytest.approx(product, rel=1e-4)
    assert losses(weight, seen, "head", [GRID], tied=True)[0] == pytest.approx(product + lookup, rel=1e-4)
    plain = GRID.dequantize(quantize_rows(weight, GRID.kind)) - weight
    assert losses(weight, seen, "", [GRID])[0] == pytest.approx((plain**2).mean(0) @ table / 2, rel=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_the_estimate_is_near_the_divergence_that_noise_costs(tied: bool, tiny_model_dir: Callable[..., Path]) -> None:
    from transformers import AutoModelForCausalLM

    source = tiny_model_dir("llama", tied=tied, dtype="f32")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    seen = sensitivity(model, IDS, no_progress)
    with torch.no_grad():
        before = [torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], -1) for ids in IDS]
    torch.manual_seed(1)
    for name in ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.o_proj", "lm_head"):
        module = model.get_submodule(name)
        key = "head" if name == "lm_head" else f"{name}.weight"
        kept = module.weight.detach().clone()
        noise = 0.01 * torch.randn_like(kept)
        expected = float(torch.from_numpy(seen.outputs[key]) @ noise.square() @ torch.from_numpy(seen.inputs[key])) / 2
        with torch.no_grad():
            if tied and name == "lm_head":  # the head alone, not the table of tokens
                model.lm_head = torch.nn.Linear(*reversed(kept.shape), bias=False)
                module = model.lm_head
            module.weight.data = kept + noise
            after = [torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], -1) for ids in IDS]
            module.weight.data = kept
        pairs = zip(before, after, strict=True)
        true = float(torch.stack([(one.exp() * (one - two)).sum(-1).mean() for one, two in pairs]).mean())
        assert 0.5 * true < expected < 2 * true
