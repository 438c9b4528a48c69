"""Files in a model's directory that hold tensors already on a grid, as `packlight compress` writes them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from targets.base import Problem

if TYPE_CHECKING:
    from pathlib import Path

MATMUL_NBITS = "packlight_grids.safetensors"
GGML = "packlight_ggml.safetensors"
TORCHSCRIPT = "packlight_torchscript.safetensors"
EXECUTORCH = "packlight_executorch.safetensors"
SIDE_FILES = {"gguf": GGML, "onnx": MATMUL_NBITS, "torchscript": TORCHSCRIPT, "executorch": EXECUTORCH}
"""By the format of a recipe."""
RECIPE = "packlight_recipe.json"
"""What was done to the model, and to what end: see `exporter.compress.job.CompressReport`."""
_GRIDS = {
    MATMUL_NBITS: ("ONNX's MatMulNBits", "onnx"),
    GGML: ("ggml", "gguf"),
    TORCHSCRIPT: ("TorchScript", "torchscript"),
    EXECUTORCH: ("ExecuTorch", "executorch"),
}


def recorded_preset(directory: Path, format_name: str) -> str | None:
    """The preset of a format that the directory's weights were rounded for; None where nothing says so."""
    try:
        found = json.loads((directory / RECIPE).read_text(encoding="utf-8"))
        preset = found["preset"] if found["format"] == format_name else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return preset if isinstance(preset, str) else None


def foreign_grids(directory: Path, own: str = "") -> list[Problem]:
    """What was rounded for another format's grid: rounding it again would be a second loss.

    own: the file that the asking format reads itself
    """
    return [
        Problem(
            str(directory),
            f"was compressed for the grid of {grid} ({file})",
            f"use --format {format_name}, or delete that file to round its weights again",
        )
        for file, (grid, format_name) in _GRIDS.items()
        if file != own and (directory / file).is_file()
    ]
