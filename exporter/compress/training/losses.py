"""How far a student's predictions, and what lies within it, are from its teacher's: the losses of distillation.

Forward KL is that of Hinton et al. (https://arxiv.org/abs/1503.02531), reverse KL MiniLLM's
(https://arxiv.org/abs/2306.08543), and the Jensen-Shannon divergence GKD's at one half
(https://arxiv.org/abs/2306.13649). Of a teacher only the likeliest tokens are kept, and all others as one: a divergence
over fewer, merged outcomes is never above that over all.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

AT_A_TIME = 1 << 20
"""Logits in float32, 4 MiB of them."""


def outcomes(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of some tokens and, behind them, of all others together.

    logits: (…, vocabulary); tokens: (…, k), each once; found: (…, k + 1), or (…, k) where that is every token
    """
    found: Tensor = _Outcomes.apply(logits.flatten(0, -2), tokens.flatten(0, -2), temperature)  # type: ignore[no-untyped-call]
    return found.reshape(*logits.shape[:-1], -1)


class _Outcomes(torch.autograd.Function):
    """See `outcomes`: of rows, (rows, vocabulary), some at a time.

    The vocabulary is most of what a small student computes. Left to autograd, every operation here would go through all
    of its logits in float32 once more, and keep them.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:  # noqa: ANN401 - of torch
        """Keeps the logits as they are, and one number a row."""
        chosen = logits.gather(-1, tokens).float() / temperature
        others = torch.full_like(chosen[:, :1], -math.inf)
        if tokens.shape[-1] < logits.shape[-1]:
            for rows in _rows(logits):
                without = logits[rows].to(torch.float32, copy=True).div_(temperature)
                # 1 - the sum of the chosen would lose its digits where that is near 1.
                without.scatter_(-1, tokens[rows], -math.inf)
                torch.logsumexp(without, -1, keepdim=True, out=others[rows])
        found = torch.cat((chosen, others), -1)
        found -= torch.logsumexp(found, -1, keepdim=True)
        ctx.save_for_backward(logits, tokens, others, found)
        ctx.temperature = temperature
        return found if tokens.shape[-1] < logits.shape[-1] else found[:, :-1].contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        """An outcome's derivative by a logit: 1 if it is its own (or its share of the others), less its probability."""
        logits, tokens, others, found = ctx.saved_tensors
        gradient = functional.pad(gradient, (0, found.shape[-1] - gradient.shape[-1]))
        own = gradient - found.exp() * gradient.sum(-1, keepdim=True)
        result = torch.empty_like(logits)
        for rows in _rows(logits):
            shares = logits[rows].to(torch.float32, copy=True).div_(ctx.temperature)
            shares.sub_(others[rows]).exp_()  # of the others' probability; what the chosen have here is overwritten
            shares.mul_(own[rows, -1:]).scatter_(-1, tokens[rows], own[rows, :-1])
            result[rows] = shares.div_(ctx.temperature)
        return result, None, None


def _rows(logits: Tensor) -> Iterator[slice]:
    """Rows that are computed with at a time: few enough to stay in a processor's cache."""
    step = max(1, AT_A_TIME // logits.shape[-1])
    return (slice(start, start + step) for start in range(0, len(logits), step))


def likeliest(logits: Tensor, count: int, temperature: float) -> tuple[Tensor, Tensor]:
    """The `count` likeliest tokens, (…, count), and their `outcomes`."""
    tokens = logits.topk(min(count, logits.shape[-1]), -1).indices
    return tokens, outcomes(logits, tokens, temperature)


def forward_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student): the student has to cover all that the teacher holds possible. See `LOSSES`."""
    return (teacher.exp() * (teacher - student)).sum(-1)


def reverse_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(student || teacher): the student may leave out what it cannot cover. See `LOSSES`."""
    return (student.exp() * (student - teacher)).sum(-1)


def jensen_shannon(teacher: Tensor, student: Tensor) -> Tensor:
    """Half of KL(teacher || mean) and half of KL(student || mean), at most ln 2. See `LOSSES`."""
    mean = torch.logaddexp(teacher, student) - math.log(2)
    return (forward_kl(teacher, mean) + forward_kl(student, mean)) / 2


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward-kl": forward_kl,
    "reverse-kl": reverse_kl,
    "jsd": jensen_shannon,
}
"""By name: of log-probabilities (…, outcomes) of both, (…) in nats."""


def nmse(teacher: Tensor, student: Tensor) -> Tensor:
    """Squared difference as a share of the teacher's square, of each token: 1 where the student says nothing.

    Hidden states, (…, width); found: (…). TinyBERT's loss (https://arxiv.org/abs/1909.10351) but for the share: a
    decoder's first token can be a hundred times as large as others (SmolLM2), and its later layers as its first ones.
    """
    tiny = torch.finfo(torch.float32).tiny
    return (student - teacher).square().sum(-1) / teacher.square().sum(-1).clamp_min(tiny)


def cosine(teacher: Tensor, student: Tensor) -> Tensor:
    """One minus the cosine of the angle between two hidden states, (…, width); found: (…).

    Source: DistilBERT, https://arxiv.org/abs/1910.01108
    """
    return 1 - functional.cosine_similarity(student, teacher, dim=-1)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"nmse": nmse, "cosine": cosine}
"""By name: of the teacher's and the student's hidden states."""


def attention_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) of attention maps, in nats, a mean over heads; found: (pieces, tokens).

    (pieces, heads, tokens, tokens attended to), each row a distribution. Source: MiniLM, https://arxiv.org/abs/2002.10957
    """
    tiny = torch.finfo(torch.float32).tiny  # what is masked has probability 0 in both
    teacher, student = teacher.float(), student.float().clamp_min(tiny)
    return (teacher * (teacher.clamp_min(tiny).log() - student.log())).sum(-1).mean(1)


def label_divergence(teacher: Tensor, student: Tensor, loss: str, temperature: float, *, several: bool) -> Tensor:
    """How far a classifier's labels are from its teacher's; logits, (…, labels), found: (…).

    several: labels that do not exclude each other, each a divergence of its own, added up
    The divergence counts times the temperature squared, as in `distillation_loss`. A single label is a score and no
    probability: then it is the squared difference.
    """
    if teacher.shape[-1] == 1:
        return (student - teacher).square()[..., 0]
    both = [logits / temperature for logits in (teacher, student)]
    if several:
        yes_or_no = [functional.logsigmoid(torch.stack((one, -one), -1)) for one in both]
        return temperature**2 * LOSSES[loss](*yes_or_no).sum(-1)
    return temperature**2 * LOSSES[loss](*(one.log_softmax(-1) for one in both))


def distillation_loss(
    logits: Tensor, ids: Tensor, taught: tuple[Tensor, Tensor] | None, loss: str, temperature: float, hard: float
) -> Tensor:
    """hard times the cross-entropy of the text's next tokens, and the rest of one times the divergence; means, nats.

    logits: the student's, (pieces, tokens, vocabulary); ids: (pieces, tokens)
    taught: the teacher's tokens, (pieces, tokens, k), and their outcomes; None where hard is 1
    The divergence counts times the temperature squared, so that its gradient keeps its size (Hinton, section 2).
    """
    found = logits.new_zeros(())
    if hard > 0:
        expected = functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())
        found = found + hard * expected
    if hard < 1:
        assert taught is not None, "there are predictions wherever they count"
        tokens, teacher = taught
        divergence = LOSSES[loss](teacher, outcomes(logits, tokens, temperature)).mean()
        found = found + (1 - hard) * temperature**2 * divergence
    return found
