"""How much a unit matters: by its weights, by what it adds to the outputs, or by what the loss would feel.

Gradient: the first-order Taylor estimate |x dL/dx| of taking it away, summed over tokens
(https://arxiv.org/abs/1905.10650 for heads, https://arxiv.org/abs/1906.10771). Influence: how little a layer turns the
hidden state (block influence of ShortGPT, https://arxiv.org/abs/2403.03853).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from exporter.compress.walk import Walk
    from targets.base import Progress


def influence(walk: Walk, progress: Progress) -> list[float]:
    """1 - the mean cosine between a layer's input and its output, a layer each; the walk is at its end after."""
    found = []
    for number in range(len(walk.layers)):
        progress("influence", number, len(walk.layers))
        before = walk.hidden
        walk.advance(number)
        cosines = [
            torch.nn.functional.cosine_similarity(a, b, dim=-1).mean() for a, b in zip(before, walk.hidden, strict=True)
        ]
        found.append(1 - float(torch.stack(cosines).mean()))
    return found


def growth(walk: Walk, progress: Progress) -> list[float]:
    """The mean length of what a layer adds, of its input's; the walk is at its end after."""
    found = []
    for number in range(len(walk.layers)):
        progress("activation", number, len(walk.layers))
        before = walk.hidden
        walk.advance(number)
        shares = [((b - a).norm(dim=-1) / a.norm(dim=-1)).mean() for a, b in zip(before, walk.hidden, strict=True)]
        found.append(float(torch.stack(shares).mean()))
    return found


def felt(
    model: Any,  # noqa: ANN401 - a model of transformers
    chunks: Sequence[Sequence[int]],
    watched: Sequence[tuple[Any, Callable[[Any, Any], Tensor], int]],
    progress: Progress,
) -> list[Tensor]:
    """The summed |x dL/dx| of units at some modules, (units,) each; L is the loss of the text's next tokens.

    watched: a module; what of (its arguments, its output) is x, (…, features); units that the features fall into
    """
    sums = [torch.zeros(units) for _, _, units in watched]

    def watch(number: int, pick: Callable[[Any, Any], Tensor], units: int) -> Callable[..., None]:
        def see(_module: Any, args: Any, output: Any) -> None:  # noqa: ANN401
            x = pick(args, output)

            def feel(gradient: Tensor) -> None:
                products = (x.detach() * gradient).reshape(-1, units, x.shape[-1] // units)
                sums[number].add_(products.sum(-1).abs().sum(0))

            x.register_hook(feel)  # type: ignore[no-untyped-call]

        return see

    flags = [parameter.requires_grad for parameter in model.parameters()]
    table = model.get_input_embeddings().weight
    for parameter in model.parameters():  # gradients of activations are wanted, not those of weights
        parameter.requires_grad_(parameter is table)
    handles = [
        module.register_forward_hook(watch(number, pick, units)) for number, (module, pick, units) in enumerate(watched)
    ]
    try:
        for number, ids in enumerate(chunks):
            progress("gradients", number, len(chunks))
            tokens = torch.tensor([list(ids)])
            model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
            model.zero_grad(set_to_none=True)
    finally:
        for handle in handles:
            handle.remove()
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
    return sums


def given(args: Any, _output: Any) -> Tensor:  # noqa: ANN401
    """The input of a module."""
    x: Tensor = args[0]
    return x
