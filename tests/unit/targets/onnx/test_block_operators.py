"""The packed bytes in ONNX Runtime's own operators: they compute with exactly the weights that `dequantize` says."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from targets.onnx.blocks import BlockGrid, Codes

GRIDS = [
    BlockGrid(bits, size, symmetric=symmetric) for bits in (4, 8) for size in (16, 32, 128) for symmetric in (0, 1)
]


def run(op: str, feeds: dict[str, np.ndarray], stored: dict[str, np.ndarray], **attributes: Any) -> np.ndarray:
    """One com.microsoft node: `feeds` first, then `stored` as initializers."""
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feeds.items()
    ]
    node = helper.make_node(op, attributes.pop("order"), ["y"], domain="com.microsoft", **attributes)
    graph = helper.make_graph(
        [node], "one", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, feeds)[0]
    return result


def stored(grid: BlockGrid, codes: Codes) -> dict[str, np.ndarray]:
    names = ("codes", "scales", "zeros")
    packed = dict(zip(names, grid.pack(codes), strict=False))
    return {**packed, "scales": packed["scales"].astype(np.float32)}


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
@pytest.mark.parametrize("columns", [128, 40])
def test_matmulnbits_multiplies_by_the_dequantized_weights(grid: BlockGrid, columns: int) -> None:
    rows = np.random.default_rng(0).standard_normal((6, columns)).astype(np.float32)
    codes = grid.quantize(rows)
    parts = stored(grid, codes)
    order = ["x", "codes", "scales", *(["zeros"] if "zeros" in parts else [])]
    # The unit matrix as input: the product is the weights. No accuracy level: computed in float32.
    product = run("MatMulNBits", {"x": np.eye(columns, dtype=np.float32)}, parts, order=order, N=6, K=columns,
                  bits=grid.bits, block_size=grid.size)  # fmt: skip
    np.testing.assert_allclose(product.T, grid.dequantize(codes, columns), rtol=0, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_gatherblockquantized_looks_up_the_same_weights(grid: BlockGrid) -> None:
    rows = np.random.default_rng(1).standard_normal((5, 128)).astype(np.float32)
    codes = grid.quantize(rows)
    parts = stored(grid, codes)
    parts["codes"] = parts["codes"].reshape(5, -1)
    order = ["codes", "ids", "scales", *(["zeros"] if "zeros" in parts else [])]
    found = run("GatherBlockQuantized", {"ids": np.array([3, 0], np.int64)}, parts, order=order, bits=grid.bits,
                block_size=grid.size, gather_axis=0, quantize_axis=1)  # fmt: skip
    np.testing.assert_array_equal(found, grid.dequantize(codes, 128)[[3, 0]])


def test_a_block_by_hand() -> None:
    # 16 values over -1..14 with a step of 1: the zero point is 1 and nothing is lost.
    row = np.arange(-1, 15, dtype=np.float32)[None, :]
    grid = BlockGrid(4, 16)
    codes = grid.quantize(row)
    assert codes.scales.tolist() == [[1.0]]
    assert codes.zero_points is not None
    assert codes.zero_points.tolist() == [[1]]
    assert codes.codes.tolist() == [[list(range(16))]]
    packed, scales, zeros = grid.pack(codes)
    # The first of two codes is the low half of a byte; the second zero point is padding.
    assert packed[0, 0].tolist() == [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]
    assert scales.dtype == np.float16
    assert zeros.tolist() == [[0x81]]
    assert grid.row_bytes(16) == (8, 2, 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(GRIDS), st.floats(1e-3, 1e2))
def test_rounding_is_never_worse_than_half_a_step_of_the_plain_range_on_average(
    seed: int, grid: BlockGrid, size: float
) -> None:
    rows = (np.random.default_rng(seed).standard_normal((4, 128)) * size).astype(np.float32)
    values = grid.dequantize(grid.quantize(rows), 128)
    blocks = rows.reshape(4, -1, grid.size)
    span = np.maximum(blocks.max(-1), 0) - np.minimum(blocks.min(-1), 0)
    # Symmetric codes spread over twice the larger side at the most. A float16 scale adds its own rounding.
    step = span * (2 if grid.symmetric else 1) / grid.largest
    error = ((values.reshape(blocks.shape) - blocks) ** 2).mean(-1)
    assert (error <= (step / 2) ** 2 * 1.3 + 1e-9).all()


def test_zeros_stay_zeros_and_a_row_of_zeros_is_one() -> None:
    rows = np.random.default_rng(2).standard_normal((3, 64)).astype(np.float32)
    rows[rows < 0.3] = 0
    rows[1] = 0
    for grid in GRIDS[:4]:
        values = grid.dequantize(grid.quantize(rows), 64)
        assert (values[rows == 0] == 0).all()


def test_importance_moves_the_error_to_where_it_counts_less() -> None:
    rows = np.random.default_rng(3).standard_normal((64, 64)).astype(np.float32)
    importance = np.ones(64, np.float32)
    importance[::4] = 30
    grid = BlockGrid(4, 32)

    def cost(weights: np.ndarray | None) -> float:
        error = grid.dequantize(grid.quantize(rows, weights), 64) - rows
        return float((error**2 * importance).sum())

    assert cost(importance) < 0.95 * cost(None)


def test_a_scale_beyond_float16_is_an_error() -> None:
    grid = BlockGrid(4, 16)
    with pytest.raises(OverflowError, match="too large for float16"):
        grid.pack(grid.quantize(np.full((1, 16), 3e7, np.float32)))
