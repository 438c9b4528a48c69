"""What an ONNX file holds, taken apart by what its operators' documentation says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path


def initializers(graph: Path) -> dict[str, np.ndarray]:
    """By name."""
    import onnx

    model = onnx.load(graph)
    return {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}


def weights_in(stored: dict[str, np.ndarray], title: str) -> np.ndarray:
    """The weights of a product of the graph, or of a table that is looked up, (rows, columns).

    stored: `initializers`
    """
    if f"{title}.weight" in stored:  # a zero point of 128 and a scale an output, as DequantizeLinear has them
        return ((stored[f"{title}.weight"].astype(np.float32) - 128) * stored[f"{title}.scales"]).T
    codes, scales = stored[f"{title}.codes"], stored[f"{title}.scales"].astype(np.float32)
    rows, blocks = scales.shape
    codes = codes.reshape(rows, blocks, -1)
    zeros = stored.get(f"{title}.zero_points")
    if zeros is None:
        return ((codes.astype(np.float32) - 128) * scales[..., None]).reshape(rows, -1)
    apart = np.stack((codes & 15, codes >> 4), -1).reshape(rows, blocks, -1)
    points = np.stack((zeros & 15, zeros >> 4), -1).reshape(rows, -1)[:, :blocks]
    return ((apart.astype(np.float32) - points[..., None]) * scales[..., None]).reshape(rows, -1)
