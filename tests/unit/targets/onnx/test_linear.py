"""Each scheme's product in ONNX Runtime beside the same sum in numpy."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from targets.facts import TensorFact
from targets.groups import row_scales
from targets.onnx.blocks import BlockGrid
from targets.onnx.graph import GraphBuilder
from targets.onnx.linear import (
    BlockScheme,
    DynamicScheme,
    FloatScheme,
    Layer,
    Scheme,
    StaticScheme,
    activation_grid,
)
from targets.onnx.weights import ChannelJob, Matrix, Part, Sink, lay_out
from targets.weights import WeightReader

if TYPE_CHECKING:
    from pathlib import Path

ROWS, COLUMNS = 24, 64
GENERATOR = np.random.default_rng(0)
WEIGHT = GENERATOR.normal(size=(ROWS, COLUMNS)).astype(np.float32)
BIAS = GENERATOR.normal(size=ROWS).astype(np.float32)
X = GENERATOR.normal(size=(2, 3, COLUMNS)).astype(np.float32)
FACTORS = np.linspace(0.5, 4, COLUMNS).astype(np.float32)


def layer(path: Path, *, bias: bool) -> Layer:
    def stored(name: str, values: np.ndarray) -> Part:
        (path / name).write_bytes(values.tobytes())
        return Part(TensorFact(name, values.shape, "F32", path / name, 0, values.nbytes))

    # two matrices on the same input: one product
    weight = Matrix((stored("a", WEIGHT[:16]), stored("b", WEIGHT[16:])))
    return Layer("l", weight, Matrix((stored("c", BIAS[:16]), stored("d", BIAS[16:]))) if bias else None)


def run(path: Path, scheme: Scheme, *, bias: bool, dtype: type[np.floating] = np.float32) -> np.ndarray:
    import onnxruntime

    graph = GraphBuilder("g")
    x = graph.input("x", dtype, (2, 3, COLUMNS))
    graph.output(scheme.linear(graph, layer(path, bias=bias), x), dtype, (2, 3, ROWS))
    (size,) = lay_out(graph.jobs, 1 << 30)
    with contextlib.ExitStack() as stack:
        descriptor = os.open(path / "data", os.O_RDWR | os.O_CREAT)
        stack.callback(os.close, descriptor)
        os.truncate(descriptor, size)
        sink = Sink(stack.enter_context(WeightReader()), (descriptor,))
        for job in graph.jobs:
            for chunk in job.chunks():
                chunk(sink)
    (path / "m.onnx").write_bytes(graph.proto(["data"], 21, 10).SerializeToString())
    session = onnxruntime.InferenceSession(str(path / "m.onnx"), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"x": X.astype(dtype)})[0]
    return found.astype(np.float32)


def expected(weight: np.ndarray, x: np.ndarray = X, *, bias: bool) -> np.ndarray:
    product: np.ndarray = x @ weight.T + (BIAS if bias else 0)
    return product


@pytest.mark.parametrize("bias", [False, True])
def test_floats(bias: bool, tmp_path: Path) -> None:
    np.testing.assert_allclose(
        run(tmp_path, FloatScheme("float32"), bias=bias), expected(WEIGHT, bias=bias), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("bias", [False, True])
def test_half_floats(bias: bool, tmp_path: Path) -> None:
    found = run(tmp_path, FloatScheme("float16"), bias=bias, dtype=np.float16)
    np.testing.assert_allclose(found, expected(WEIGHT, bias=bias), rtol=0, atol=0.05)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("grid", [BlockGrid(4, 32), BlockGrid(8, 32, symmetric=True), BlockGrid(4, 16, True, False)])
def test_blocks(grid: BlockGrid, bias: bool, tmp_path: Path) -> None:
    weight = grid.dequantize(grid.quantize(WEIGHT), COLUMNS)
    found = run(tmp_path, BlockScheme(grid), bias=bias)
    # inputs become int8 in blocks: a product of 64 random numbers moves by some hundredths
    np.testing.assert_allclose(found, expected(weight, bias=bias), rtol=0, atol=0.2)
    near, far = (np.abs(found - expected(other, bias=bias)).mean() for other in (weight, WEIGHT))
    assert near < 0.04
    assert near < far or grid.bits == 8


def channels(weight: np.ndarray) -> np.ndarray:
    step = row_scales(weight)[:, None]
    return np.rint(weight / step) * step


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("smoothed", [False, True])
def test_dynamic(smoothed: bool, bias: bool, tmp_path: Path) -> None:
    factors = FACTORS if smoothed else np.ones_like(FACTORS)
    found = run(tmp_path, DynamicScheme({"l": FACTORS} if smoothed else {}), bias=bias)
    x = X / factors
    scale, zero = activation_grid(float(x.min()), float(x.max()))
    rounded = ((np.rint(x / scale) + zero).clip(0, 255) - zero) * scale
    # an input halfway between two codes may go to either
    np.testing.assert_allclose(found, expected(channels(WEIGHT * factors), rounded, bias=bias), rtol=0, atol=0.1)
    assert np.abs(found - expected(channels(WEIGHT * factors), rounded, bias=bias)).mean() < 0.02


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("smoothed", [False, True])
def test_static_clips_at_its_range(smoothed: bool, bias: bool, tmp_path: Path) -> None:
    factors = FACTORS if smoothed else np.ones_like(FACTORS)
    smoothing = {"l": FACTORS} if smoothed else {}
    scheme = StaticScheme({"l": (-1.0, 1.5)}, frozenset(), BlockScheme(BlockGrid(8, 32)), smoothing)
    scale, zero = activation_grid(-1.0, 1.5)
    rounded = ((np.rint(X / factors / scale) + zero).clip(0, 255) - zero) * scale
    found = run(tmp_path, scheme, bias=bias)
    reference = expected(channels(WEIGHT * factors), rounded.astype(np.float32), bias=bias)
    np.testing.assert_allclose(found, reference, rtol=0, atol=0.1)
    assert np.abs(found - reference).mean() < 0.02
    assert np.abs(found - expected(WEIGHT, bias=bias)).max() > 0.5


@pytest.mark.parametrize("names", [set(), {"b"}], ids=["rounded", "given"])
def test_codes_that_are_given_are_never_smoothed(names: set[str], tmp_path: Path) -> None:
    """Even where one of two matrices in a product has some, and factors for the product are there."""
    given: Any = names
    smoothing = {"l": FACTORS}
    for scheme in (
        DynamicScheme(smoothing, given),
        StaticScheme({"l": (-1.0, 1.0)}, frozenset(), FloatScheme("float32"), smoothing, given),
    ):
        graph = GraphBuilder("g")
        scheme.linear(graph, layer(tmp_path, bias=False), "x")
        assert ("Mul" in {node.op_type for node in graph.nodes}) == (not names)
        (job,) = (job for job in graph.jobs if isinstance(job, ChannelJob))
        assert (job.factors is None) == bool(names)
        assert job.given is given


def test_static_leaves_what_no_range_holds(tmp_path: Path) -> None:
    graph = GraphBuilder("g")
    scheme = StaticScheme({"l": (-1.0, 1.0)}, frozenset({"l"}), FloatScheme("float32"))
    scheme.linear(graph, layer(tmp_path, bias=False), "x")
    assert [node.op_type for node in graph.nodes] == ["MatMul"]


@pytest.mark.parametrize(
    ("low", "high", "grid"),
    [(-1.0, 1.55, (0.01, 100)), (0.0, 2.55, (0.01, 0)), (1.0, 2.55, (0.01, 0)), (-5.1, -1.0, (0.02, 255)),
     (0.0, 0.0, (1.0, 0))],
)  # fmt: skip
def test_activation_grids_by_hand(low: float, high: float, grid: tuple[float, int]) -> None:
    assert activation_grid(low, high) == pytest.approx(grid)


def test_bits_by_hand() -> None:
    assert FloatScheme("float16").bits(64) == 16
    assert BlockScheme(BlockGrid(4, 32)).bits(64) == 4 + 16 / 32 + 8 / 64  # two zero points fill a byte
    assert BlockScheme(BlockGrid(8, 32, symmetric=True)).bits(64) == 8.5
    assert DynamicScheme().bits(64) == 8.5
