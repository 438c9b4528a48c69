"""What removed inputs of a matrix did is done by those that stay: Optimal Brain Surgeon for whole groups of columns.

https://proceedings.neurips.cc/paper/1992/hash/303ed4c69846ab36c2904d3ba8573050-Abstract.html, for groups as in ZipLM
(https://arxiv.org/abs/2302.04089): the least squares of the outputs on the inputs that stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

DAMPING = 0.01
"""Share of the mean of the Hessian's diagonal that is added to it, as in GPTQ."""


def repaired(weight: Floats, hessian: Floats, kept: npt.NDArray[np.intp]) -> Floats:
    """The kept columns, changed so that the outputs stay nearest, (rows, kept columns).

    weight: (rows, columns); hessian: the sum of x x' over inputs x, (columns, columns); kept: numbers of columns
    """
    dense, h = torch.from_numpy(weight).double(), torch.from_numpy(hessian).double()
    columns = torch.from_numpy(kept)
    among = h[columns][:, columns].clone()
    damping = DAMPING * h.diagonal().mean()
    if damping == 0:  # no input was ever seen
        return weight[:, kept]
    among.diagonal().add_(damping)
    # Damping holds the kept weights where they were, not at zero.
    wanted = dense @ h[:, columns] + damping * dense[:, columns]
    found: Floats = torch.linalg.solve(among, wanted, left=False).float().numpy()
    return found
