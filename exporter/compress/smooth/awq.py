"""AWQ: channels that carry much are scaled up before rounding, by a searched power (https://arxiv.org/abs/2306.00978).

The paper takes a channel's mean |x| and the layer's output error on samples of x. Here both come from the sum of x x':
its diagonal has each channel's energy, and the expected output error of weights that are off by E is tr(E H E').
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt
    from torch import Tensor

    from targets.grids import Grid

    Floats = npt.NDArray[np.float32]

POWERS = 20
"""Tried from 0, which scales nothing, to 1."""
ROWS = 256
"""Of every matrix that the powers are tried on."""


@dataclass(frozen=True)
class Reader:
    """A matrix that reads the channels, (rows, columns), its inputs' Hessian, and the grid that it will be put on."""

    weight: Floats
    hessian: Floats
    grid: Grid


def awq_factors(energy: Tensor, readers: Sequence[Reader], spread: Callable[[Tensor], Tensor]) -> tuple[Tensor, float]:
    """What each channel is divided by, (channels,), and the power that was chosen.

    energy: sum of squares of each channel; spread: from a value a channel to one a column of the readers
    """
    best, chosen, power = None, torch.ones_like(energy), 0.0
    for number in range(POWERS):
        trial = number / POWERS
        factors = energy.clamp_min(1e-12).sqrt() ** trial
        factors = factors / (factors.max() * factors.min()).sqrt()
        cost = sum(_cost(reader, spread(factors).numpy()) for reader in readers)
        if best is None or cost < best * (1 - 1e-6):
            best, chosen, power = cost, factors, trial
    return chosen, power


def _cost(reader: Reader, factors: Floats) -> float:
    """The output error of the first rows, rounded under the factors."""
    rows = np.ascontiguousarray(reader.weight[:: max(1, len(reader.weight) // ROWS)][:ROWS])
    importance = reader.hessian.diagonal() / factors**2
    scaled = np.ascontiguousarray(rows * factors)
    error = reader.grid.dequantize(reader.grid.rounded(scaled, importance.astype(np.float32))) / factors - rows
    return float(np.einsum("ij,ij->", error @ reader.hessian, error)) * len(reader.weight) / len(rows)
