"""Fake quantization: what a model in training computes with is what its file will hold, and what gradients reach."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.grids import ALL, COLUMNS
from torch import nn

from exporter.compress.quantize import fake as fake_module
from exporter.compress.quantize.fake import FakeQuantized, in_eight_bits, rounded
from targets.gguf.grids import GRIDS

ROWS = 6


class Tied(nn.Module):
    """A table, a linear layer beside it, and a head that is the table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, COLUMNS)
        self.norm = nn.Linear(2, 2)
        self.head = nn.Linear(COLUMNS, ROWS, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits."""
        found: torch.Tensor = self.head(self.table(ids))
        return found


@pytest.fixture(params=ALL)
def grid(request: pytest.FixtureRequest) -> Any:
    """Every grid in turn."""
    return ALL[request.param]


def started(grid: Any, *, weights: bool) -> tuple[Tied, FakeQuantized, torch.Tensor]:
    """A model on the grid; what it was before."""
    torch.manual_seed(0)
    model = Tied()
    before = torch.randn(ROWS, COLUMNS) * 0.1 + 0.02
    before[3] = 0
    packed = grid.rounded(before.numpy())
    model.table.weight.data.copy_(torch.from_numpy(grid.dequantize(packed)))
    return model, FakeQuantized(model, {"table.weight": (grid, packed)}, weights=weights), before


@pytest.mark.parametrize("weights", [True, False])
def test_the_model_computes_with_what_is_packed(grid: Any, weights: bool) -> None:
    model, fake, before = started(grid, weights=weights)
    weight, first = model.table.weight, model.table.weight.detach().clone()
    names = list(model.state_dict())
    if weights:
        fake.lean("table.weight", before)
        assert (model.table.weight != first).any()
        assert torch.nn.functional.mse_loss(model.table.weight, before) < torch.nn.functional.mse_loss(first, before)
    with fake.as_stored():  # leaning has changed no code
        np.testing.assert_allclose(model.table.weight.detach(), first, rtol=1e-6, atol=1e-7)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in fake.scales():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        if weights:
            weight.add_(0.02 * torch.randn(ROWS, COLUMNS, generator=generator))
    with fake.as_stored():
        seen = model.table.weight.detach().clone()
        assert model.head.weight is model.table.weight
    assert model.head.weight is model.table.weight is weight
    packed = fake.packed()["table.weight"][1]
    np.testing.assert_allclose(grid.dequantize(packed), seen, rtol=1e-6, atol=1e-7)
    assert torch.equal(model.table.weight, torch.from_numpy(grid.dequantize(packed)))
    assert [name for name in model.state_dict() if "learned" not in name] == list(model.state_dict())
    assert set(model.state_dict()) < set(names)
    assert (seen != first).any()


def test_weights_lean_to_where_they_were_and_keep_codes_that_a_method_chose() -> None:
    model, fake, _ = started(GRIDS["Q4_0"], weights=True)
    with torch.no_grad():
        weight = model.table.weight
        at = weight.clone()
        step = float(np.diff(np.unique(at[0, :32].numpy())).min())  # of the first block, all of whose codes are known
        away = torch.tensor([0.3, -0.3, 0.499, 0.7, -0.7, 1.4, 0.0])
        before = at.clone()
        before[0, : len(away)] += away * step
        fake.lean("table.weight", before)
        leant = ((weight - at)[0, : len(away)] / step).numpy()
    # Within half a step it is the nearest code; beyond, another was chosen, which is not to be given up at once.
    np.testing.assert_allclose(leant, [0.3, -0.3, 0.49, 0.25, -0.25, 0.25, 0], atol=1e-3)
    with fake.as_stored():
        np.testing.assert_allclose(model.table.weight.detach(), at, rtol=1e-6, atol=1e-7)


def test_codes_stay_where_scales_alone_learn(grid: Any) -> None:
    _, fake, before = started(grid, weights=False)
    packed = grid.rounded(before.numpy())
    with torch.no_grad():
        for parameter in fake.scales():
            parameter.add_(0.3)
    moved = fake.packed()["table.weight"][1]

    def codes(rows: np.ndarray) -> np.ndarray:
        fitted = grid.fitted(rows)
        return grid.nearest(
            grid.dequantize(rows), *(grid.spread(part, slice(None)) for part in (fitted.scales, fitted.offsets))
        )

    np.testing.assert_array_equal(codes(moved), codes(packed))
    assert (moved != packed).any()


@pytest.mark.parametrize("weights", [True, False])
def test_gradients_reach_what_is_learned(grid: Any, weights: bool) -> None:
    model, fake, before = started(grid, weights=weights)
    if weights:  # at a code's very value a scale's gradient is nothing
        fake.lean("table.weight", before)
    with fake.as_stored():
        model(torch.arange(ROWS)).square().sum().backward()
    steps, *shifts = (parameter.grad for parameter in fake.scales())
    assert steps is not None
    assert steps.any()
    for shift in shifts:  # weights within the range go with their codes, whatever the shift
        assert shift is not None
        assert shift.any() or weights
    assert (model.table.weight.grad is not None) == weights


def test_a_failure_leaves_the_weights_in_place() -> None:
    model, fake, _ = started(GRIDS["Q4_0"], weights=True)
    order = list(dict(model.named_parameters()))
    with pytest.raises(RuntimeError), fake.as_stored():
        raise RuntimeError
    assert list(dict(model.named_parameters())) == order
    assert isinstance(model.head.weight, nn.Parameter)


@pytest.mark.parametrize("at_a_time", [fake_module.AT_A_TIME, 64])
@pytest.mark.parametrize("levels", [torch.arange(-8.0, 8.0), torch.tensor([-127.0, -104.0, 1.0, 38.0, 113.0])])
def test_gradients_are_the_straight_through_ones(
    levels: torch.Tensor, at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside autograd's of the same rounding written with a detached difference; of all rows, or of two at a time."""
    monkeypatch.setattr(fake_module, "AT_A_TIME", at_a_time)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 4, 8, generator=generator) * 0.1 * levels.abs().max()
    scales = torch.rand(3, 4, generator=generator) * 0.1 + 0.05
    scales[1] *= -1
    offsets = torch.randn(3, 4, generator=generator)
    upstream = torch.randn(3, 4, 8, generator=generator)
    ours = [one.clone().requires_grad_() for one in (weight, scales, offsets)]
    value = rounded(*ours, levels)
    value.backward(upstream)
    theirs = [one.clone().requires_grad_() for one in (weight, scales, offsets)]
    steps = (theirs[0] - theirs[2][..., None]) / theirs[1][..., None]
    point = steps.clamp(levels[0] - 0.5, levels[-1] + 0.5)
    code = (point[..., None] - levels).abs().argmin(-1)
    expected = theirs[1][..., None] * (point + (levels[code] - point).detach()) + theirs[2][..., None]
    torch.testing.assert_close(value, expected)
    # Beyond the range autograd's scale gradient is that of the limit, half a step further out than the last level.
    beyond = point != steps
    assert beyond.any()
    assert not beyond.all()
    expected.backward(torch.where(beyond, 0, upstream))
    over = torch.where(beyond, upstream, 0)
    torch.testing.assert_close(ours[0].grad, theirs[0].grad)
    torch.testing.assert_close(ours[1].grad, theirs[1].grad + (over * levels[code]).sum(-1))
    torch.testing.assert_close(ours[2].grad, theirs[2].grad + over.sum(-1))


def test_a_scale_of_zero_has_no_gradient_for_its_weights() -> None:
    weight = torch.ones(2, 1, 4, requires_grad=True)
    scales = torch.tensor([[0.0], [0.5]], requires_grad=True)
    value = rounded(weight, scales, torch.zeros(2, 1), torch.arange(-8.0, 8.0))
    assert value.tolist() == [[[0.0] * 4], [[1.0] * 4]]
    value.sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[[0.0] * 4], [[1.0] * 4]]
    assert scales.grad is not None
    assert scales.grad.isfinite().all()


def test_what_is_not_a_number_is_not_hidden_by_rounding() -> None:
    weight = torch.tensor([[[0.8, np.nan]]])
    for levels in (torch.arange(-8.0, 8.0), torch.tensor([-3.0, 1.0, 9.0])):
        found = rounded(weight, torch.ones(1, 1), torch.zeros(1, 1), levels)
        assert found.isnan().tolist() == [[[False, True]]]


def test_gradients_by_hand() -> None:
    """One block of scale 0.5 and no offset: 0.8 rounds to 1.0, 9.0 is beyond the range's 3.5."""
    weight = torch.tensor([[[0.8, 9.0]]], requires_grad=True)
    scales, offsets = torch.tensor([[0.5]], requires_grad=True), torch.zeros(1, 1, requires_grad=True)
    found = rounded(weight, scales, offsets, torch.arange(-8.0, 8.0))
    assert found.tolist() == [[[1.0, 3.5]]]
    found.sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[[1.0, 0.0]]]
    assert scales.grad is not None
    assert scales.grad.item() == pytest.approx(2 - 1.6 + 7)  # LSQ: level minus steps within the range, the level beyond
    assert offsets.grad is not None
    assert offsets.grad.item() == 1.0


def test_inputs_in_eight_bits_by_hand() -> None:
    """255 steps from the least to the greatest, with 0 among them."""
    x = torch.tensor([[[-1.0, 0.104, 1.55], [0.0, 0.2071, 0.51]], [[0.0, 0.0, 0.0], [-5.1, 0.0, 0.026]]])
    x.requires_grad_(True)
    text, token = in_eight_bits(x, "text"), in_eight_bits(x, "token")
    assert text[0].flatten().tolist() == pytest.approx([-1, 0.1, 1.55, 0, 0.21, 0.51], abs=1e-6)  # in steps of 0.01
    assert token[0].flatten().tolist() == pytest.approx([-1, 0.1, 1.55, 0, 0.208, 0.51], abs=1e-6)  # then of 0.002
    last = [0, 0, 0, -254 * 5.126 / 255, 0, 5.126 / 255]
    assert text[1].flatten().tolist() == pytest.approx(last, abs=1e-6)
    assert token[1].flatten().tolist() == pytest.approx(last, abs=1e-6)  # a token of zeros has no range
    (3 * text + token).sum().backward()
    assert (x.grad == 4).all()
