"""What a TorchScript file holds, taken apart by what its modules' docstrings say."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import numpy as np

    from runtime.artifact import Artifact


def loaded(artifact: Artifact) -> dict[str, torch.Tensor]:
    """What a TorchScript file holds by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return dict(torch.jit.load(artifact.entry_path).named_buffers())


def by_nibbles(buffers: dict[str, torch.Tensor], module: str) -> np.ndarray:
    """The weights of an `Int4Linear` by what its own docstring says."""
    nibbles, both = buffers[f"{module}.nibbles"], buffers[f"{module}.scales_and_zeros"].float()
    codes = torch.stack((nibbles & 15, nibbles >> 4), -1).reshape(len(nibbles), -1, 32).float()
    scales, shifts = both.permute(1, 0, 2).unbind(-1)
    return ((codes - 8) * scales[..., None] + shifts[..., None]).reshape(len(nibbles), -1).numpy()


def by_rows(buffers: dict[str, torch.Tensor], module: str) -> np.ndarray:
    """The weights of an `Int8Linear` or an `Int8Table`."""
    return (buffers[f"{module}.codes"].float() * buffers[f"{module}.scales"][:, None]).numpy()
