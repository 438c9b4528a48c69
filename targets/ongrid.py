"""Files in a model's directory that hold tensors already on a grid, as `packlight compress` writes them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from targets.base import Problem

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from targets.facts import TensorFact
    from targets.weights import WeightReader

    Floats = npt.NDArray[np.float32]

ONNX_GRIDS = "packlight_grids.safetensors"
GGML = "packlight_ggml.safetensors"
TORCHSCRIPT = "packlight_torchscript.safetensors"
EXECUTORCH = "packlight_executorch.safetensors"
SIDE_FILES = {"onnx": ONNX_GRIDS, "gguf": GGML, "torchscript": TORCHSCRIPT, "executorch": EXECUTORCH}
"""By the format of a recipe."""
RECIPE = "packlight_recipe.json"
"""What was done to the model, and to what end: see `exporter.compress.job.CompressReport`."""
_TITLES = {"gguf": "ggml", "onnx": "ONNX", "torchscript": "TorchScript", "executorch": "ExecuTorch"}


def recorded_preset(directory: Path, format_name: str) -> str | None:
    """The preset of a format that the directory's weights were rounded for; None where nothing says so."""
    found = _recorded(directory)
    preset = found.get("preset") if found.get("format") == format_name else None
    return preset if isinstance(preset, str) else None


def recorded_kv_type(directory: Path) -> str | None:
    """The type of KV cache that a recipe chose for exports as GGUF; None where nothing says so."""
    found = _recorded(directory).get("kv_type")
    return found if isinstance(found, str) else None


def _recorded(directory: Path) -> dict[str, Any]:
    try:
        found = json.loads((directory / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def other_preset(directory: Path, format_name: str, preset: str, where: str) -> list[Problem]:
    """What was rounded for another preset of the format. where: what its weights lie in or on, in words."""
    recorded = recorded_preset(directory, format_name)
    if recorded in (None, preset) or not (directory / SIDE_FILES[format_name]).is_file():
        return []
    what = f"the model's weights lie {where} of {recorded} already"
    return [Problem(f"--quant {preset}", what, "leave it out, or export the original model")]


def changed(dequantized: Callable[[int], Floats], stored: TensorFact, reader: WeightReader) -> str:
    """Whether the first or the last row of the weights is another than the codes are of, in words; else empty.

    dequantized: a row, (1, columns), by its number
    """
    for row in {0, stored.shape[0] - 1}:
        # bf16 weights beside codes are near, not equal
        if not np.allclose(dequantized(row), reader.read_rows(stored, row, row + 1), rtol=2**-7, atol=1e-6):
            return "holds other values than the weights beside it, which have changed since"
    return ""


def foreign_grids(directory: Path, own: str = "") -> list[Problem]:
    """What was rounded for another format's grid: rounding it again would be a second loss.

    own: the file that the asking format reads itself
    """
    return [
        Problem(
            str(directory),
            f"was compressed for the grid of {_TITLES[format_name]} ({file})",
            f"use --format {format_name}, or delete that file to round its weights again",
        )
        for format_name, file in SIDE_FILES.items()
        if file != own and (directory / file).is_file()
    ]
