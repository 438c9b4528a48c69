"""The grids of 4 and 8 bits: hand-written blocks, and ONNX Runtime's own kernels on the packed bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.onnx.blocks import BlockGrid, Codes

RAMP = np.arange(-7, 9, dtype=np.float32)[None, :]  # 16 weights: every code of 4 bits once, zero is code 7

grids = st.builds(
    BlockGrid,
    bits=st.sampled_from([4, 8]),
    size=st.sampled_from([16, 32, 64, 128]),
    symmetric=st.booleans(),
    half_scales=st.booleans(),
)


def random_rows(seed: int, rows: int, columns: int, spread: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(rows, columns)) * spread).astype(np.float32)


def unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def test_a_block_by_hand() -> None:
    grid = BlockGrid(4, 16)
    codes = grid.quantize(RAMP * np.float32(0.5))
    assert codes.codes.tolist() == [[list(range(16))]]
    assert codes.zero_points is not None
    assert codes.zero_points.tolist() == [[7]]
    assert codes.scales.tolist() == [[0.5]]
    packed, scales, zeros = grid.pack(codes)
    # the first code in the low bits
    assert packed.tolist() == [[[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]]]
    assert scales.dtype == np.float16
    assert zeros.tolist() == [[0x87]]  # filled up with the middle code
    assert grid.dequantize(codes, 16).tolist() == (RAMP * 0.5).tolist()


@pytest.mark.parametrize(("sign", "scale"), [(1, 0.25), (-1, -0.25)])
def test_a_symmetric_block_by_hand(sign: int, scale: float) -> None:
    # the larger side takes code 0, eight steps away from the middle: by the scale's sign
    rows = np.arange(-8, 8, dtype=np.float32)[None, :] * np.float32(0.25 * sign)
    grid = BlockGrid(4, 16, symmetric=True)
    codes = grid.quantize(rows)
    assert codes.zero_points is None
    assert codes.scales.tolist() == [[scale]]
    assert codes.codes.tolist() == [[list(range(16))]]
    assert len(grid.pack(codes)) == 2
    assert grid.dequantize(codes, 16).tolist() == rows.tolist()


def test_eight_bits_by_hand() -> None:
    rows = np.array([[-1.0, *[0.0] * 13, 0.5, 1.55]], np.float32)  # 255 steps of 0.01
    codes = BlockGrid(8, 16, half_scales=False).quantize(rows)
    assert codes.codes.tolist() == [[[0, *[100] * 13, 150, 255]]]
    assert codes.zero_points is not None
    assert codes.zero_points.tolist() == [[100]]
    np.testing.assert_allclose(codes.scales, [[0.01]], rtol=1e-6)


def test_the_end_of_a_row_is_zero_points() -> None:
    grid = BlockGrid(4, 16)
    codes = grid.quantize(np.concatenate([RAMP, RAMP[:, -4:]], axis=1))
    assert codes.codes.shape == (1, 2, 16)
    assert codes.zero_points is not None
    assert set(codes.codes[0, 1, 4:].tolist()) == {int(codes.zero_points[0, 1])}
    assert grid.dequantize(codes, 20).shape == (1, 20)


@pytest.mark.parametrize(
    ("grid", "columns", "expected"),
    [
        (BlockGrid(4, 32), 64, (32, 4, 1)),
        (BlockGrid(4, 32), 96, (48, 6, 2)),  # three zero points of four bits take two bytes
        (BlockGrid(4, 32), 70, (48, 6, 2)),
        (BlockGrid(8, 16, half_scales=False), 64, (64, 16, 4)),
        (BlockGrid(8, 32, symmetric=True), 64, (64, 4, 0)),
    ],
)
def test_bytes_of_a_row_by_hand(grid: BlockGrid, columns: int, expected: tuple[int, int, int]) -> None:
    assert grid.row_bytes(columns) == expected


@given(grid=grids, columns=st.integers(1, 300), rows=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=80)
def test_packing_keeps_every_code(grid: BlockGrid, columns: int, rows: int, seed: int) -> None:
    codes = grid.quantize(random_rows(seed, rows, columns))
    packed = grid.pack(codes)
    assert tuple(part.nbytes // rows for part in packed) == grid.row_bytes(columns)[: len(packed)]
    assert np.array_equal(unpacked(packed[0], grid.bits), codes.codes)
    assert np.array_equal(packed[1].astype(np.float32), codes.scales)
    if codes.zero_points is not None:
        blocks = grid.n_blocks(columns)
        assert np.array_equal(unpacked(packed[2], grid.bits)[:, :blocks], codes.zero_points)


@given(grid=grids, columns=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=80)
def test_the_error_is_never_above_that_of_plain_rounding(grid: BlockGrid, columns: int, seed: int) -> None:
    rows = random_rows(seed, 3, columns)
    found = grid.dequantize(grid.quantize(rows), columns)
    blocks = np.pad(rows, ((0, 0), (0, -columns % grid.size))).reshape(3, -1, grid.size)
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    widest = np.maximum(-low, high) / (1 << (grid.bits - 1)) if grid.symmetric else (high - low) / grid.largest
    # A symmetric grid's highest code is one step short of the range, a zero point is rounded by half a step, and a
    # float16 scale is off by one part in 2,048.
    bound = np.repeat(widest * (1.6 + grid.largest / 2048), grid.size, axis=-1)[:, :columns]
    if grid.bits == 8:
        assert (np.abs(found - rows) <= bound).all()
    # Mean square: half a step at worst, everywhere; clipping is chosen only where it lowers it.
    assert ((found - rows) ** 2).sum() <= (bound**2).sum()


@given(grid=grids, seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_zeros_stay_zeros(grid: BlockGrid, seed: int) -> None:
    rows = random_rows(seed, 2, 3 * grid.size)
    rows[:, ::3] = 0
    rows[0, : grid.size] = 0  # a whole block
    found = grid.dequantize(grid.quantize(rows), rows.shape[1])
    assert (found[:, ::3] == 0).all()
    assert (found[0, : grid.size] == 0).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_a_block_on_one_side_of_zero_spends_its_codes_there(sign: int) -> None:
    rows = np.linspace(1, 2, 16, dtype=np.float32)[None, :] * sign
    codes = BlockGrid(4, 16).quantize(rows)
    assert codes.zero_points is not None
    assert codes.zero_points.tolist() == [[0 if sign > 0 else 15]]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_weights_on_the_grid_keep_their_values(bits: int, symmetric: bool) -> None:
    grid = BlockGrid(bits, 32, symmetric)
    generator = np.random.default_rng(1)
    codes = generator.integers(0, grid.largest + 1, (20, 3, 32)).astype(np.uint8)
    codes[..., 0], codes[..., 1] = 0, grid.largest
    scales = generator.uniform(0.01, 0.1, (20, 3)).astype(np.float16).astype(np.float32)
    zeros = None if symmetric else generator.integers(1, grid.largest, (20, 3)).astype(np.uint8)
    rows = grid.dequantize(Codes(codes, scales, zeros), 96)
    np.testing.assert_array_equal(grid.dequantize(grid.quantize(rows), 96), rows)


def test_least_squares_is_better_than_the_range_alone() -> None:
    rows = random_rows(3, 64, 256)
    grid = BlockGrid(4, 32, half_scales=False)
    found = grid.dequantize(grid.quantize(rows), 256)
    blocks = rows.reshape(64, 8, 32)
    low, high = np.minimum(blocks.min(-1, keepdims=True), 0), np.maximum(blocks.max(-1, keepdims=True), 0)
    step = (high - low) / 15
    zero = np.rint(-low / step)
    plain = ((np.rint(blocks / step) + zero).clip(0, 15) - zero) * step
    assert ((found - rows) ** 2).sum() < 0.97 * ((plain - blocks) ** 2).sum()


def test_importance_lowers_the_weighted_error() -> None:
    rows = random_rows(4, 64, 128)
    importance = np.where(np.arange(128) % 4 == 0, 50.0, 0.1).astype(np.float32)
    grid = BlockGrid(4, 32)

    def cost(weights: np.ndarray | None) -> float:
        error = grid.dequantize(grid.quantize(rows, weights), 128) - rows
        return float((error**2 * importance).sum())

    assert cost(importance) < 0.9 * cost(None)
    same = np.full(128, 7.0, np.float32)
    np.testing.assert_array_equal(grid.quantize(rows, same).codes, grid.quantize(rows).codes)


def test_a_scale_that_float16_cannot_hold_is_an_overflow() -> None:
    rows = np.full((1, 16), 3e8, np.float32)
    with pytest.raises(OverflowError, match="too large for float16"):
        BlockGrid(8, 16).pack(BlockGrid(8, 16).quantize(rows))
    whole = BlockGrid(8, 16, half_scales=False)
    np.testing.assert_allclose(whole.dequantize(whole.quantize(rows), 16), rows, rtol=1e-6)


def run_node(op: str, feeds: dict[str, np.ndarray], stored: dict[str, np.ndarray], **attributes: int) -> np.ndarray:
    """One node of com.microsoft in ONNX Runtime: `stored` are initializers behind or before the fed inputs."""
    import onnxruntime
    from onnx import helper, numpy_helper

    order = [name for name in ("x", "codes", "ids", "scales", "zeros") if name in feeds or name in stored]
    node = helper.make_node(op, order, ["y"], domain="com.microsoft", **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in feeds.items()
        ],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, feeds)[0]
    return found


def initializers(grid: BlockGrid, codes: Codes) -> dict[str, np.ndarray]:
    packed = [np.asarray(part) for part in grid.pack(codes)]
    packed[1] = packed[1].astype(np.float32)
    return dict(zip(("codes", "scales", "zeros"), packed, strict=False))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("size", "columns"), [(16, 48), (32, 96), (32, 100), (64, 72), (128, 384), (128, 200)])
def test_matmulnbits_computes_with_what_dequantize_says(bits: int, symmetric: bool, size: int, columns: int) -> None:
    grid = BlockGrid(bits, size, symmetric)
    codes = grid.quantize(random_rows(size + columns, 24, columns))
    one_hot = np.eye(columns, dtype=np.float32)  # a product without rounding: the matrix itself
    found = run_node(
        "MatMulNBits", {"x": one_hot}, initializers(grid, codes), N=24, K=columns, bits=bits, block_size=size,
        accuracy_level=0,
    )  # fmt: skip
    # the kernel may fold -zero point * scale into a sum of its own: rounding of float32, no more
    np.testing.assert_allclose(found.T, grid.dequantize(codes, columns), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("size", "columns"), [(16, 48), (32, 96), (64, 128), (128, 384)])
def test_gatherblockquantized_gives_what_dequantize_says(bits: int, symmetric: bool, size: int, columns: int) -> None:
    grid = BlockGrid(bits, size, symmetric)
    codes = grid.quantize(random_rows(size + columns, 24, columns))
    stored = initializers(grid, codes)
    stored["codes"] = stored["codes"].reshape(24, -1)
    ids = np.array([[3, 0, 23], [7, 7, 1]])
    found = run_node(
        "GatherBlockQuantized", {"ids": ids}, stored, bits=bits, block_size=size, gather_axis=0, quantize_axis=1
    )
    np.testing.assert_array_equal(found, grid.dequantize(codes, columns)[ids])


@pytest.mark.parametrize("columns", [64, 70, 16])
def test_int8_rows_cut_into_blocks_mean_the_same_weights(columns: int) -> None:
    """The last block of 70 columns is not full."""
    generator = np.random.default_rng(5)
    codes = generator.integers(0, 255, (9, columns)).astype(np.uint8)
    codes[0, :2] = (0, 254)
    scales = generator.random((9, 1)).astype(np.float32)
    grid = BlockGrid(8, 32, symmetric=True, half_scales=False)
    found = grid.cut(Codes(codes[:, None], scales, None))
    values = (codes.astype(np.float32) - 127) * scales
    np.testing.assert_array_equal(grid.dequantize(found, columns), values)
    packed = grid.pack(found)
    assert [part.shape for part in packed] == [(9, -(-columns // 32), 32), (9, -(-columns // 32))]
    assert packed[1].dtype == np.float32
    assert (packed[0].reshape(9, -1)[:, columns:] == 128).all()


@pytest.mark.parametrize(
    "grid", [BlockGrid(8, 32, True), BlockGrid(8, 32, False, False), BlockGrid(4, 32, True, False)]
)
def test_grids_that_would_round_int8_rows_again_are_refused(grid: BlockGrid) -> None:
    with pytest.raises(ValueError, match="does not hold int8 rows"):
        grid.cut(Codes(np.zeros((1, 1, 32), np.uint8), np.ones((1, 1), np.float32), None))
