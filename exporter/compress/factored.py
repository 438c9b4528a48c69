"""A linear layer as two, which every later step works on like on any other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from targets.factors import stored_factors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt


class Factored(nn.Module):
    """x -> left(right(x)); the bias is the left one's.

    right: (rank, columns); left: (rows, rank), bias (rows,) or None
    """

    def __init__(
        self, left: npt.NDArray[np.float32], right: npt.NDArray[np.float32], bias: torch.Tensor | None
    ) -> None:
        super().__init__()
        self.right, self.left = _linear(right, None), _linear(left, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, columns) -> (…, rows)."""
        y: torch.Tensor = self.left(self.right(x))
        return y

    @property
    def weight(self) -> torch.Tensor:
        """The product, (rows, columns)."""
        return self.left.weight.detach() @ self.right.weight.detach()

    @property
    def in_features(self) -> int:
        """Columns of the whole."""
        return self.right.in_features

    @property
    def out_features(self) -> int:
        """Rows of the whole."""
        return self.left.out_features

    @property
    def bias(self) -> torch.Tensor | None:
        """Of the whole, (rows,)."""
        return self.left.bias

    def merged(self) -> nn.Linear:
        """One linear layer of the same function."""
        return _linear(self.weight.numpy(), self.bias)


def _linear(weight: npt.NDArray[np.float32], bias: torch.Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(torch.from_numpy(weight), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return made


def factored_modules(model: Any) -> Iterator[tuple[str, Factored]]:  # noqa: ANN401 - a model of transformers
    """The factored layers of a model by name."""
    for name, module in model.named_modules():
        if isinstance(module, Factored):
            yield name, module


def split(model: Any, directory: Path) -> None:  # noqa: ANN401 - a model of transformers
    """Put two layers in place of every one whose factors the directory has; what is written into them is not there."""
    for name, pair in stored_factors(directory).items():
        left, right = (
            np.memmap(one.file, np.float32, "c", one.offset, one.shape).view(np.ndarray) for one in pair.both
        )
        module = name.removesuffix(".weight")
        model.set_submodule(module, Factored(left, right, model.get_submodule(module).bias))


def merge(model: Any) -> int:  # noqa: ANN401 - a model of transformers
    """Put one linear layer in place of every factored one; how many there were."""
    found = list(factored_modules(model))
    for name, module in found:
        model.set_submodule(name, module.merged())
    return len(found)
