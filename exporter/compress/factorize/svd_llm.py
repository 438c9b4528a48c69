"""SVD-LLM: singular values of what a matrix does to its inputs, by whitening them (https://arxiv.org/abs/2403.07378)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from exporter.compress.factorize.svd import Spectrum, svd
from runtime.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

DAMPING = 1e-6
"""Share of the mean of the diagonal that is added to it, ten times as much until a factor exists."""


def svd_llm(weight: Floats, gram: Floats) -> Spectrum:
    """Take a matrix apart, (rows, columns), so that truncation costs the outputs least.

    gram: the sum of x x' over inputs x, (columns, columns). With its Cholesky factor S the squared error of the outputs
    is that of W S, whose singular values these are; S is divided out of the right side again.
    """
    lower = _root(torch.from_numpy(gram).double())
    whitened = torch.from_numpy(weight).double() @ lower
    found = svd(whitened.numpy())
    right = torch.linalg.solve_triangular(lower, torch.from_numpy(found.right), upper=False, left=False)
    return dataclasses.replace(found, right=right.numpy())


def _root(gram: torch.Tensor) -> torch.Tensor:
    """The lower Cholesky factor of a Gram matrix, damped as little as it takes."""
    mean = gram.diagonal().mean()
    if not gram.isfinite().all():  # no damping would ever give it a factor
        raise ModelError("a matrix to factorize gets inputs that are no numbers or infinite; use another model or text")
    if mean == 0:  # no input was ever seen: all count alike
        return torch.eye(len(gram), dtype=gram.dtype)
    damping = DAMPING
    while True:
        damped = gram.clone()
        damped.diagonal().add_(damping * mean)
        lower: torch.Tensor
        lower, failed = torch.linalg.cholesky_ex(damped)
        if failed.item() == 0:
            return lower
        damping *= 10
