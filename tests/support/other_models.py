"""Models that are not the ones that they look like."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    from pathlib import Path


def with_one_matrix_negated(source: Path, other: Path) -> None:
    """A copy of a BERT's directory in which a matrix of one layer has the other sign."""
    shutil.copytree(source, other)
    tensors = load_file(other / "model.safetensors")
    name = next(name for name in tensors if name.endswith("encoder.layer.3.output.dense.weight"))
    tensors[name] = tensors[name] * -1
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
