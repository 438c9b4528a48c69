"""SmoothQuant: peaks of activations go over into the weights (https://arxiv.org/abs/2211.10438)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

TINY = 1e-5


def smoothquant_factors(peaks: Tensor, weights: Sequence[Tensor], strength: float) -> Tensor:
    """max|x_j|^strength / max|w_j|^(1 - strength), what each channel is divided by, (channels,).

    peaks: the largest |x_j|, (channels,); weights: of all that read x, (rows, channels) each
    """
    largest = torch.stack([weight.detach().abs().amax(0) for weight in weights]).amax(0)
    return (peaks.clamp_min(TINY) ** strength / largest.clamp_min(TINY) ** (1 - strength)).clamp_min(TINY)
