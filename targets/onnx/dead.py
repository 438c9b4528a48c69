"""Matrices of an exported graph that hold nothing but zeros."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import ArtifactError
from targets.onnx.mobile import load_graph

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    from onnx import TensorProto

PIECE_BYTES = 1 << 18
"""Read at a time; a healthy matrix is left after the first piece."""


def dead_matrices(model: Path) -> list[str]:
    """Names of the external matrices of the .onnx at `model` that are all zeros. Raises ArtifactError.

    A matrix in blocks is zero where all of its scales are, or where all of its codes are the same.
    """
    dead = set()
    for tensor in load_graph(model).graph.initializer:
        if len(tensor.dims) < 2 or not tensor.external_data or tensor.name.endswith(".zero_points"):
            continue
        name, _, part = tensor.name.rpartition(".")
        if _is_uniform(model, tensor, zero=part != "codes"):
            dead.add(name if part in ("codes", "scales") else tensor.name)
    return sorted(dead)


def _is_uniform(model: Path, tensor: TensorProto, *, zero: bool) -> bool:
    """Whether all bytes of a tensor are one value; zero: whether that is 0."""
    place = {entry.key: entry.value for entry in tensor.external_data}
    left, path = int(place["length"]), model.parent / place["location"]
    try:
        with path.open("rb") as file:
            file.seek(int(place["offset"]))
            first: npt.NDArray[np.uint8] | None = None
            while left:
                piece = np.frombuffer(file.read(min(left, PIECE_BYTES)), np.uint8)
                if not piece.size:
                    raise ArtifactError(f"{path}: ends inside {tensor.name}; export the model again")
                first = piece[:1].copy() if first is None else first
                if (piece != (0 if zero else first)).any():
                    return False
                left -= piece.size
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); export the model again") from error
    return True
