"""GPTQ beside the algorithm that it rearranges, and what only a right one does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from exporter.compress.quantize import gptq as module
from exporter.compress.quantize.gptq import GptqOptions, gptq, hessian_factor
from exporter.compress.quantize.run import nearest
from targets.gguf.grids import GRIDS
from targets.groups import RowGrid
from targets.onnx.blockgrid import CompressionGrid
from targets.onnx.blocks import BlockGrid
from targets.pytorch.groups import GroupGrid

if TYPE_CHECKING:
    from targets.grids import Grid

NATURAL = GptqOptions(activation_order=False)


def problem(rows: int, columns: int, tokens: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and the Hessian of inputs whose features go together and differ in size."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((rows, columns)).astype(np.float32)
    mixed = generator.standard_normal((columns // 4, columns)) + 0.0
    x = generator.standard_normal((tokens, columns // 4)) @ mixed + generator.standard_normal((tokens, columns))
    x *= np.exp(generator.standard_normal(columns))
    return weight, (x.T @ x).astype(np.float32)


def loss(weight: np.ndarray, packed: np.ndarray, hessian: np.ndarray, grid: Grid) -> float:
    """Squared error of the outputs, up to the number of tokens."""
    error = (grid.dequantize(packed) - weight).astype(np.float64)
    return float(np.einsum("ij,jk,ik->", error, hessian.astype(np.float64), error))


def by_elimination(weight: np.ndarray, hessian: np.ndarray, grid: Grid, damping: float) -> np.ndarray:
    """Optimal Brain Quantization in a fixed order: the inverse Hessian shrinks by a column with every step."""
    columns = weight.shape[1]
    shared = getattr(grid, "shared", grid.block)
    damped = hessian.astype(np.float64) + damping * hessian.diagonal().mean() * np.eye(columns)
    inverse, left = np.linalg.inv(damped), weight.astype(np.float64)
    values = np.empty_like(left)
    for column in range(columns):
        if column % grid.block == 0:
            block = slice(column, column + grid.block)
            fitted = grid.fit(left[:, block].astype(np.float32), hessian.diagonal()[block].copy())
        scale, offset = (part[:, column % grid.block // shared] for part in (fitted.scales, fitted.offsets))
        codes = grid.nearest(left[:, column].astype(np.float32), scale, offset)
        values[:, column] = grid.values(codes, scale, offset)
        error = (left[:, column] - values[:, column]) / inverse[column, column]
        left -= error[:, None] * inverse[column]
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return values


BLOCKS = {
    "int4 block 32": CompressionGrid(BlockGrid(4, 32)),
    "int8 block 32 symmetric": CompressionGrid(BlockGrid(8, 32, symmetric=True)),
    "int4 group 32": GroupGrid(32, shifted=True),
    "int4 group 32 symmetric": GroupGrid(32),
    "int8 row of 32": RowGrid(32),
}


ROW = "int8 row"


def grid_named(name: str, columns: int) -> Grid:
    """A grid by its name; that of whole rows is as wide as they are."""
    grids: dict[str, Grid] = {**GRIDS, **BLOCKS, ROW: RowGrid(columns)}
    return grids[name]


@pytest.mark.parametrize("name", ["Q4_0", "Q5_1", "Q8_0", "IQ4_NL", *BLOCKS, ROW])
def test_it_is_optimal_brain_quantization_column_by_column(name: str) -> None:
    grid, (weight, hessian) = grid_named(name, 160), problem(6, 160)
    found = grid.dequantize(gptq(weight, hessian, grid, GptqOptions(damping=0.05, activation_order=False)))
    expected = by_elimination(weight, hessian, grid, 0.05)
    # A weight half way between two codes may go either way, and takes what follows in its row with it.
    same = np.isclose(found, expected, rtol=1e-5, atol=1e-6).all(axis=1)
    assert same.sum() >= 5


@pytest.mark.parametrize("name", [*GRIDS, *BLOCKS, ROW])
@pytest.mark.parametrize("options", [NATURAL, GptqOptions()], ids=["natural", "ordered"])
def test_outputs_are_nearer_than_rounding_leaves_them(name: str, options: GptqOptions) -> None:
    grid, (weight, hessian) = grid_named(name, 512), problem(16, 512)
    rounded = loss(weight, nearest(weight, hessian, grid), hessian, grid)
    assert loss(weight, gptq(weight, hessian, grid, options), hessian, grid) < 0.75 * rounded


@pytest.mark.parametrize("columns", [7, 96])
def test_the_factor_is_the_upper_one_of_the_inverse(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WHOLE", 10)
    _, hessian = problem(2, 4 * columns)
    hessian = hessian[:columns, :columns].copy()
    factor, before = hessian_factor(hessian, 0.03), hessian.copy()
    damped = hessian.astype(np.float64) + 0.03 * hessian.diagonal().astype(np.float64).mean() * np.eye(columns)
    expected = np.linalg.cholesky(np.linalg.inv(damped)).T
    np.testing.assert_allclose(factor, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_array_equal(hessian, before)


def test_rows_do_not_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, (weight, hessian) = GRIDS["Q4_K"], problem(12, 256)
    whole = gptq(weight, hessian, grid)
    monkeypatch.setattr("exporter.compress.quantize.gptq.ROWS", 5)
    np.testing.assert_array_equal(gptq(weight, hessian, grid), whole)


@pytest.mark.parametrize("options", [NATURAL, GptqOptions()], ids=["natural", "ordered"])
def test_inputs_that_say_nothing_leave_rounding(options: GptqOptions) -> None:
    grid, (weight, _) = GRIDS["Q4_0"], problem(6, 64)
    packed = gptq(weight, np.zeros((64, 64), np.float32), grid, options)
    # ggml weighs by the mean square of what it is given: a block at a time, or whole rows.
    step = 64 if options.activation_order else grid.block
    expected = []
    for start in range(0, 64, step):
        rows = np.ascontiguousarray(weight[:, start : start + step])
        fitted = grid.fit(rows, np.ones(step, np.float32))
        scales, offsets = (grid.spread(part, slice(None)) for part in (fitted.scales, fitted.offsets))
        expected.append(grid.pack(fitted, grid.nearest(rows, scales, offsets)))
    np.testing.assert_array_equal(packed, np.concatenate(expected, axis=1))


def test_inputs_of_fewer_dimensions_than_features_still_have_a_factor() -> None:
    grid, (weight, _) = GRIDS["Q4_0"], problem(6, 64)
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    hessian = x.T @ x
    hessian[5] = hessian[:, 5] = 0
    packed = gptq(weight, hessian, grid)
    assert np.isfinite(grid.dequantize(packed)).all()
    assert loss(weight, packed, hessian, grid) < loss(weight, nearest(weight, hessian, grid), hessian, grid)
