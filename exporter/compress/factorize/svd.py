"""The best matrix of a rank in the sum of squares: the singular values that are largest (Eckart and Young, 1936)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Spectrum:
    """A matrix taken apart: `left * values @ right`, all singular values, float64.

    left: (rows, n); values: (n,), falling; right: (n, columns)
    """

    left: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]
    right: npt.NDArray[np.float64]

    def rank_for(self, energy: float) -> int:
        """The smallest rank whose squared singular values are that share of all."""
        shares = np.cumsum(self.values**2) / np.sum(self.values**2)
        return int(np.searchsorted(shares, energy) + 1)

    def factors(self, rank: int) -> tuple[Floats, Floats]:
        """(rows, rank) and (rank, columns); each gets the roots of the values, so that neither outgrows the other."""
        roots = np.sqrt(self.values[:rank])
        left, right = self.left[:, :rank] * roots, roots[:, None] * self.right[:rank]
        return np.ascontiguousarray(left, np.float32), np.ascontiguousarray(right, np.float32)


def svd(weight: Floats) -> Spectrum:
    """Take a matrix apart, (rows, columns)."""
    left, values, right = torch.linalg.svd(torch.from_numpy(weight).double(), full_matrices=False)
    return Spectrum(left.numpy(), values.numpy(), right.numpy())
