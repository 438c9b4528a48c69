"""The losses of distillation against values worked out by hand, in NumPy, with no code in common."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from exporter.compress.training import losses
from exporter.compress.training.losses import (
    DISTANCES,
    LOSSES,
    attention_divergence,
    distillation_loss,
    likeliest,
    outcomes,
)

P, Q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
"""A teacher and a student of three tokens."""
BY_HAND = {
    "forward-kl": 0.25 * math.log(2),  # 1/2 ln 2 + 1/4 ln 1/2 + 0
    "reverse-kl": 0.25 * math.log(2),
    # the mean is 3/8, 3/8, 1/4, and both are equally far from it
    "jsd": 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3),
}


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("name", LOSSES)
def test_a_value_by_hand(name: str) -> None:
    found = LOSSES[name](torch.tensor(P).log(), torch.tensor(Q).log())
    assert float(found) == pytest.approx(BY_HAND[name], rel=1e-9)


def test_the_kls_are_told_apart() -> None:
    p, q = torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])
    forward = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    backward = 0.5 * math.log(5 / 9) + 0.5 * math.log(5)
    assert float(LOSSES["forward-kl"](p.log(), q.log())) == pytest.approx(forward, rel=1e-5)
    assert float(LOSSES["reverse-kl"](p.log(), q.log())) == pytest.approx(backward, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_is_lost_between_equals_and_something_between_others(name: str) -> None:
    logits = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    same = logits.log_softmax(-1)
    assert float(LOSSES[name](same, same).abs().max()) < 1e-6
    assert float(LOSSES[name](same, same.flip(-1)).min()) > 0.01


def test_the_likeliest_tokens_and_all_others_as_one() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0, -1.0]])
    tokens, found = likeliest(logits, 2, 2.0)
    assert tokens.tolist() == [[1, 3]]
    expected = softmax(logits.numpy() / 2)[0]
    assert found.exp().numpy()[0] == pytest.approx([expected[1], expected[3], expected[[0, 2, 4]].sum()], rel=1e-5)
    tokens, found = likeliest(logits, 64, 1.0)  # more than there are: every token, and no others
    assert found.shape == (1, 5)
    assert float(found.exp().sum()) == pytest.approx(1, rel=1e-5)


def test_others_keep_their_digits_beside_a_sure_token() -> None:
    logits = torch.tensor([[40.0, 0.0, 0.0]])
    assert float(outcomes(logits, torch.tensor([[0]]), 1.0)[0, 1]) == pytest.approx(math.log(2) - 40, rel=1e-5)


def test_merged_outcomes_are_never_farther_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (3 * torch.randn(50, 40, generator=generator) for _ in range(2))
    for loss in LOSSES.values():
        whole = loss(teacher.log_softmax(-1), student.log_softmax(-1))
        before = torch.zeros(50)
        for count in (1, 4, 16, 39):
            tokens, found = likeliest(teacher, count, 1.0)
            merged = loss(found, outcomes(student, tokens, 1.0))
            assert (merged <= whole + 1e-5).all()
            assert (merged >= before - 1e-5).all()  # and the more are kept, the nearer
            before = merged


def test_the_parts_of_the_whole_loss() -> None:
    generator = np.random.default_rng(0)
    logits, taught = (generator.standard_normal((2, 5, 7)).astype(np.float32) for _ in range(2))
    ids = generator.integers(0, 7, (2, 5))
    logs = np.log(softmax(logits))
    hard = -np.mean([logs[b, t, ids[b, t + 1]] for b in range(2) for t in range(4)])
    p, q = softmax(taught / 2), softmax(logits / 2)
    soft = 4 * np.mean((p * np.log(p / q)).sum(-1))
    given = (torch.from_numpy(logits), torch.from_numpy(ids))
    tokens = likeliest(torch.from_numpy(taught), 7, 2.0)
    found = distillation_loss(*given, tokens, "forward-kl", 2.0, 0.3)
    assert float(found) == pytest.approx(0.3 * hard + 0.7 * soft, rel=1e-5)
    assert float(distillation_loss(*given, None, "forward-kl", 2.0, 1.0)) == pytest.approx(hard, rel=1e-5)
    assert float(distillation_loss(*given, tokens, "forward-kl", 2.0, 0.0)) == pytest.approx(soft, rel=1e-5)


def test_the_gradient_of_the_forward_kl_is_the_difference_of_the_probabilities() -> None:
    """d/dz KL(p || softmax(z)) = softmax(z) - p (Hinton, section 2); of merged outcomes, others share theirs."""
    teacher, student = torch.tensor([[2.0, 1.0, 0.0, -1.0]]), torch.tensor([[0.5, 0.0, 1.0, 0.0]], requires_grad=True)
    p, q = softmax(teacher.numpy()), softmax(student.detach().numpy())
    tokens, found = likeliest(teacher, 4, 1.0)
    LOSSES["forward-kl"](found, outcomes(student, tokens, 1.0)).sum().backward()
    assert student.grad.numpy() == pytest.approx(q - p, abs=1e-6)
    student.grad = None
    tokens, found = likeliest(teacher, 2, 1.0)
    LOSSES["forward-kl"](found, outcomes(student, tokens, 1.0)).sum().backward()
    others = q[0, 2:] * (1 - p[0, 2:].sum() / q[0, 2:].sum())
    assert student.grad.numpy()[0] == pytest.approx([*(q - p)[0, :2], *others], abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("count", [3, 11])
def test_gradients_are_those_of_autograd(name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a temperature, of some tokens and of all, and in slices of rows that do not come out even."""
    monkeypatch.setattr(losses, "AT_A_TIME", 2 * 11)
    generator = torch.Generator().manual_seed(0)
    teacher, student = (3 * torch.randn(1, 5, 11, generator=generator) for _ in range(2))
    tokens, taught = likeliest(teacher, count, 2.0)
    found = []
    for ours in (True, False):
        logits = student.clone().requires_grad_()
        if ours:
            said = outcomes(logits, tokens, 2.0)
        else:
            whole = (logits / 2.0).log_softmax(-1)
            others = whole.exp().scatter(-1, tokens, 0).sum(-1, keepdim=True).log()
            said = torch.cat((whole.gather(-1, tokens), others), -1)[..., : taught.shape[-1]]
        (LOSSES[name](taught, said) * torch.arange(1, 6)).sum().backward()
        found.append(logits.grad)
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-5)


def test_distances_of_hidden_states_by_hand() -> None:
    teacher, student = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[3.0, 3.0], [2.0, 2.0]])
    assert DISTANCES["nmse"](teacher, student).tolist() == pytest.approx([1 / 25, 4 / 4])
    cosines = [(9 + 12) / (5 * math.sqrt(18)), 4 / (2 * math.sqrt(8))]
    assert DISTANCES["cosine"](teacher, student).tolist() == pytest.approx([1 - one for one in cosines], abs=2e-7)
    for distance in DISTANCES.values():  # whatever the size of a token's state is, it counts as much
        assert distance(100 * teacher, 100 * student).tolist() == pytest.approx(
            distance(teacher, student).tolist(), abs=2e-7
        )
        assert distance(teacher, teacher).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert DISTANCES["nmse"](teacher, torch.zeros(2, 2)).tolist() == [1, 1]


def test_distance_of_attention_maps_by_hand() -> None:
    teacher = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]], [[1.0, 0.0], [0.9, 0.1]]]])
    student = torch.tensor([[[[1.0, 0.0], [0.25, 0.75]], [[1.0, 0.0], [0.9, 0.1]]]], requires_grad=True)
    one_row = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    found = attention_divergence(teacher, student).mean()
    assert found.item() == pytest.approx(one_row / 4, rel=1e-5)  # of two heads' two rows
    found.backward()
    assert student.grad.isfinite().all()  # where both are masked too
    assert student.grad[0, 0, 1].tolist() == pytest.approx([-0.5 / 0.25 / 4, -0.5 / 0.75 / 4], rel=1e-5)
