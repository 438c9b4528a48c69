"""Matrices of an exported graph that hold nothing but zeros."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import ArtifactError
from targets.onnx.mobile import load_graph, run_worker

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    from onnx import TensorProto

FOLDED = ".float"
"""What our name of a Cast ends in, and so that of the constant that ONNX Runtime makes of it."""
PIECE_BYTES = 1 << 18
"""Read at a time; a healthy matrix is left after the first piece."""


def dead_matrices(model: Path) -> list[str]:
    """Names of the matrices of the .onnx or .ort at `model` that are all zeros. Raises ArtifactError, EngineError.

    A matrix in blocks is zero where all of its scales are, or where all of its codes are the same.
    """
    if model.suffix == ".ort":
        return _dead_in_ort(model)
    dead = set()
    for tensor in load_graph(model).graph.initializer:
        if len(tensor.dims) < 2 or not tensor.external_data or tensor.name.endswith(".zero_points"):
            continue
        name, _, part = tensor.name.rpartition(".")
        if _is_uniform(model, tensor, zero=part != "codes"):
            dead.add(name if part in ("codes", "scales") else tensor.name)
    return sorted(dead)


def _dead_in_ort(model: Path) -> list[str]:
    dead = set()
    tensors: dict[str, int] = run_worker("uniform", {"ort": str(model)}, model)["tensors"]
    for tensor, value in tensors.items():
        name, _, part = tensor.removesuffix(FOLDED).rpartition(".")
        if part != "zero_points" and (value == 0 or part == "codes"):
            dead.add(name if part in ("codes", "scales") else tensor)
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
