"""Which type each matrix gets for a number of bytes: the one whose loss its bytes are worth.

The loss of a rounding is a second-order estimate of the mean KL divergence that it costs: with errors e of a matrix,
inputs x and gradients g of the log-likelihood at its outputs, half the sum over i and j of E[g_i^2] e_ij^2 E[x_j^2],
the diagonal of KFAC's approximation of the Fisher information (https://arxiv.org/abs/1503.05671). Under a budget of
bytes the best types are those that minimize loss + price * bytes for one price (Everett, 1963).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch

from targets.gguf.kernels import quantize_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from targets.base import Progress
    from targets.gguf.grids import GgufGrid

    Floats = npt.NDArray[np.float32]

CHUNKS = 8
"""Calibration chunks that gradients are taken on."""
ROWS = 256
"""Rows of a matrix that are tried in every type; 16 times as many of the table of tokens, whose rows differ more."""
SEED = 0


@dataclass
class Sensitivity:
    """Second moments at the linear layers, by the names of their weights, each a mean over tokens.

    inputs: E[x_j^2], (columns,); outputs: E[g_i^2], (rows,)
    """

    inputs: dict[str, Floats] = field(default_factory=dict)
    outputs: dict[str, Floats] = field(default_factory=dict)


T = TypeVar("T")


@dataclass(frozen=True)
class Choice(Generic[T]):
    """What a matrix may get, its type for example, and the KL divergence that it is expected to cost.

    n_bytes: that it takes, or another measure that is the same for all choices
    """

    grid: T
    n_bytes: int
    loss: float


def sensitivity(model: Any, chunks: Sequence[Sequence[int]], progress: Progress) -> Sensitivity:  # noqa: ANN401
    """What a decoder of transformers says of its matrices, on labels drawn from the model's own predictions."""
    sums: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): f"{name}.weight" for name, module in model.named_modules()}
    watched = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]

    def add(key: str, x: torch.Tensor, gradient: torch.Tensor) -> None:
        found = [part.detach().reshape(-1, part.shape[-1]).square().sum(0) for part in (x, gradient)]
        if key in sums:
            sums[key][0].add_(found[0])
            sums[key][1].add_(found[1])
        else:
            sums[key] = (found[0], found[1])

    def see(module: Any, args: tuple[Any, ...], y: Any) -> None:  # noqa: ANN401
        x, key = args[0].detach(), names[id(module)]
        y.register_hook(lambda gradient: add(key, x, gradient))

    def see_table(_module: Any, _args: tuple[Any, ...], y: Any) -> None:  # noqa: ANN401
        y.register_hook(lambda gradient: add("", torch.ones(1, 1), gradient))

    for parameter in model.parameters():  # gradients of activations are wanted, not those of weights
        parameter.requires_grad_(parameter is table.weight)
    generator = torch.Generator().manual_seed(SEED)
    handles = [module.register_forward_hook(see) for module in watched] + [table.register_forward_hook(see_table)]
    states: list[torch.Tensor] = []
    handles.append(head.register_forward_pre_hook(lambda _module, args: states.append(args[0].detach())))
    n_tokens, of_head = 0, torch.zeros(len(head.weight))
    try:
        for number, ids in enumerate(chunks[:CHUNKS]):
            progress("sensitivity", number, min(len(chunks), CHUNKS))
            logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
            logs = torch.log_softmax(logits.float(), -1)
            shares = logs.detach().exp()
            labels = torch.multinomial(shares, 1, generator=generator)
            loss: Any = -logs.gather(1, labels).sum()
            loss.backward()
            of_head += (shares * (1 - shares)).sum(0)  # exact for the head: no label needs to be drawn
            n_tokens += len(ids)
            model.zero_grad(set_to_none=True)
    finally:
        for handle in handles:
            handle.remove()
    found = Sensitivity()
    for key, (x, gradient) in sums.items():
        found.inputs[key], found.outputs[key] = (x / n_tokens).numpy(), (gradient / n_tokens).numpy()
    found.inputs["head"] = torch.stack([part.square().mean((0, 1)) for part in states]).mean(0).numpy()
    found.outputs["head"] = (of_head / n_tokens).numpy()
    return found


def losses(weight: Floats, seen: Sensitivity, key: str, grids: Sequence[GgufGrid], *, tied: bool = False
           ) -> list[float]:  # fmt: skip
    """The expected loss of a matrix in each of the grids.

    key: of the matrix in `seen`; "head" for the head, "" for the table of tokens; tied: it is both
    """
    table = key in ("", "head")
    generator = np.random.default_rng(SEED)
    picked = np.sort(generator.permutation(len(weight))[: ROWS * (16 if table else 1)])
    rows, scale = np.ascontiguousarray(weight[picked], np.float32), len(weight) / len(picked)
    importance = np.ascontiguousarray(seen.inputs[key]) if key else None
    found = []
    for grid in grids:
        error = grid.dequantize(quantize_rows(rows, grid.kind, importance)) - rows
        error *= error
        loss = 0.0
        if key:
            loss += scale * float(seen.outputs[key][picked] @ (error @ seen.inputs[key]))
        if key == "" or tied:  # a token reads one row: the mean row's error
            loss += float(error.mean(0) @ seen.outputs[""])
        found.append(loss / 2)
    return found


def allocate(choices: Mapping[str, Sequence[Choice[T]]], budget: int) -> dict[str, Choice[T]]:
    """The choice for each matrix with the least sum of losses whose bytes are within the budget.

    Raises ValueError where even the smallest choices are more than the budget.
    """

    def at(price: float) -> dict[str, Choice[T]]:
        return {
            name: min(options, key=lambda one: (one.loss + price * one.n_bytes, one.n_bytes))
            for name, options in choices.items()
        }

    def size(chosen: Mapping[str, Choice[T]]) -> int:
        return sum(one.n_bytes for one in chosen.values())

    smallest = {name: min(options, key=lambda one: (one.n_bytes, one.loss)) for name, options in choices.items()}
    if size(smallest) > budget:
        raise ValueError(f"the smallest types take {size(smallest)} bytes, the budget is {budget}")
    low, high = 1e-18, 1e3
    if size(at(low)) <= budget:
        return at(low)
    for _ in range(100):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if size(at(middle)) > budget else (low, middle)
    chosen = at(high)
    if size(chosen) > budget:
        chosen = smallest
    return _filled(choices, chosen, budget)


def _filled(
    choices: Mapping[str, Sequence[Choice[T]]], chosen: dict[str, Choice[T]], budget: int
) -> dict[str, Choice[T]]:
    """What is left of the budget spent where a byte saves most."""
    left = budget - sum(one.n_bytes for one in chosen.values())
    while True:
        steps = [
            ((chosen[name].loss - one.loss) / (one.n_bytes - chosen[name].n_bytes), name, one)
            for name, options in choices.items()
            for one in options
            if 0 < one.n_bytes - chosen[name].n_bytes <= left and one.loss < chosen[name].loss
        ]
        if not steps:
            return chosen
        _, name, one = max(steps, key=lambda step: (step[0], step[1]))
        left -= one.n_bytes - chosen[name].n_bytes
        chosen = {**chosen, name: one}
