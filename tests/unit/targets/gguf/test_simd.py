"""The vector kernels: the bytes are ggml's own, whatever the values are, and where they are not ggml does the work."""

from __future__ import annotations

import importlib
import platform
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.gguf import kernels
from targets.gguf.kernels import quantize_rows
from targets.gguf.simd import grid, nonlinear, verified
from targets.gguf.simd.lanes import LANES, WIDTH, Kernel, Place, Repeated, Singles
from targets.gguf.simd.tiles import importance_tiles, nearest, per_lane, tiles, turned, untiled, whole_tiles
from targets.gguf.types import TYPES

if TYPE_CHECKING:
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

NAMES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "Q4_0", "Q5_0", *grid.DISTANCES)
HERE = platform.machine() in ("x86_64", "AMD64")
"""ggml is built without fused products here; elsewhere a compiler may fuse, and ggml is used."""
KINDS = ("weights", "sparse", "levels", "tails", "shifted", "runs", "scales", "outliers", "tiny", "near")


def ggml(name: str) -> verified.Reference:
    return partial(kernels.by_ggml, TYPES[name])


def values_of(kind: str, rng: np.random.Generator, rows: int, columns: int) -> F32:
    x = rng.standard_normal((rows, columns))
    if kind == "sparse":
        x[rng.random(x.shape) < 0.95] = 0
    elif kind == "levels":
        x = np.round(x * 2)
    elif kind == "tails":
        x = x**5
    elif kind == "shifted":
        x += rng.standard_normal() * 50
    elif kind == "runs":
        x = np.repeat(x[:, ::32], 32, axis=1)
    elif kind == "scales":
        x *= (10.0 ** rng.integers(-8, 3, (rows, columns // 16))).repeat(16, 1)
    elif kind == "outliers":
        x[:, :: rng.integers(3, 99)] *= 1000
    elif kind == "near":  # to each other beside their distance from zero: minima come close to the largest
        x = rng.choice([-1, 1]) * 10.0 ** rng.integers(-3, 3) + x * 10.0 ** rng.integers(-7, 1)
    elif kind == "tiny":
        x *= 10.0 ** rng.integers(-38, -4)
    return np.ascontiguousarray(x, np.float32)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 6), blocks=st.integers(1, 5),
    holes=st.booleans(),
)  # fmt: skip
def test_the_bytes_are_ggmls(
    name: str, weighted: bool, kind: str, seed: int, rows: int, blocks: int, holes: bool
) -> None:
    rng = np.random.default_rng(seed)
    columns = TYPES[name].block_size * blocks
    values = values_of(kind, rng, rows, columns)
    importance = rng.random(columns, np.float32) if weighted else None
    if importance is not None and holes:
        importance[rng.random(len(importance)) < 0.3] = 0
    found = verified.quantize(name, values, importance, ggml(name))
    if HERE:
        assert (found is None) == (name in verified.ONLY_WEIGHTED and not weighted)
    if found is not None:
        assert np.array_equal(found, ggml(name)(values, importance))


_OF_AN_OLDER_PROCESSOR = """
import functools
import llvmlite.binding as llvm
import numpy as np

class Features(dict):
    def flatten(self):
        return ",".join(f"{'+' if has else '-'}{name}" for name, has in sorted(self.items()))

known = dict(llvm.get_host_cpu_features())
features = Features({name: has and not name.startswith(("avx512", "amx")) for name, has in known.items()})
llvm.get_host_cpu_features, llvm.get_host_cpu_name = lambda: features, lambda: "x86-64"

from targets.gguf import kernels
from targets.gguf.simd import lanes, verified
from targets.gguf.types import TYPES

assert lanes.LANES == lanes.WIDTH
values = np.ascontiguousarray(verified.probe()[::4])
importance = np.random.default_rng(0).random(values.shape[1], np.float32)
for name in verified.NAMES:
    for weights in (None, importance):
        if weights is None and name in verified.ONLY_WEIGHTED:
            continue
        reference = functools.partial(kernels.by_ggml, TYPES[name])
        found = verified.quantize(name, values, weights, reference)
        assert found is not None and np.array_equal(found, reference(values, weights)), name
print("all")
"""


@pytest.mark.skipif(not HERE, reason="elsewhere ggml's compiler may fuse products")
def test_the_bytes_are_ggmls_on_a_processor_without_avx512() -> None:
    ran = subprocess.run([sys.executable, "-c", _OF_AN_OLDER_PROCESSOR], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "all"


@pytest.mark.skipif(not HERE, reason="elsewhere ggml's compiler may fuse products")
@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_blocks_of_which_a_scale_vanishes_are_ggmls_work(name: str) -> None:
    values = values_of("weights", np.random.default_rng(0), 2, 512)
    values[0, 64:96] *= 1e-6  # beside others its scale is rounded to nothing
    seen = []

    def reference(rows: F32, importance: F32 | None) -> npt.NDArray[np.uint8]:
        seen.append(rows.shape)
        return ggml(name)(rows, importance)

    assert verified._tried(name, weighted=False, reference=ggml(name)) is not None
    found = verified.quantize(name, values, None, reference)
    assert seen == [(1, 256)]
    assert found is not None
    assert np.array_equal(found, ggml(name)(values, None))


@pytest.mark.parametrize("name", NAMES)
def test_another_ggml_does_its_own_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "_TRIED", {})

    def other(rows: F32, importance: F32 | None) -> npt.NDArray[np.uint8]:
        found = ggml(name)(rows, importance)
        found[3, 5] ^= 1
        return found

    assert verified.quantize(name, values_of("weights", np.random.default_rng(0), 4, 256), None, other) is None


def test_without_llvmlite_ggml_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    values = values_of("weights", np.random.default_rng(0), 4, 256)
    expected = quantize_rows(values, TYPES["Q4_K"])
    monkeypatch.setattr(verified, "_TRIED", {})

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    assert verified.quantize("Q4_K", values, None, ggml("Q4_K")) is None
    assert np.array_equal(quantize_rows(values, TYPES["Q4_K"]), expected)


def test_no_rows_are_no_work() -> None:
    for name in NAMES:
        assert verified.quantize(name, np.zeros((0, 256), np.float32), None, ggml(name)) is None
        weights = np.ones(256, np.float32)
        assert quantize_rows(np.zeros((0, 256), np.float32), TYPES[name], weights).shape == (
            0,
            TYPES[name].row_bytes(256),
        )


@pytest.mark.parametrize("name", ["IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ3_S", "IQ3_XXS"])
def test_groups_off_the_grid_have_the_nearest_points_as_neighbours(name: str) -> None:
    known = grid.grid(name)
    form = known.form
    points = (np.arange(len(known.index))[:, None] >> form.shifts) & (2**form.bits - 1)
    on_grid = points[np.argsort(known.index)[(known.index < 0).sum() :]]  # by their place on the grid
    assert len(on_grid) == {"IQ2_XXS": 256, "IQ2_XS": 512, "IQ2_S": 1024, "IQ3_XXS": 256, "IQ3_S": 512}[name]
    possible = np.flatnonzero((points < form.levels).all(1))
    for point in np.random.default_rng(0).choice(possible, 60, replace=False):
        chunks, first = int(known.chunks[point]), int(known.first[point])
        assert (chunks == 0) == (known.index[point] >= 0)
        if not chunks:
            continue
        found = (known.neighbours[first : first + chunks].transpose(0, 2, 1).reshape(-1, form.codes) - 1) / 2
        distances = ((on_grid - points[point]) ** 2).sum(1)
        least = np.unique(distances)[: grid.DISTANCES[name]]
        own = ((found - points[point]) ** 2).sum(1)
        assert {tuple(one) for one in found} == {tuple(one) for one in on_grid[np.isin(distances, least)]}
        assert (np.diff(own) >= 0).all()  # the nearer one counts where both fit alike


def test_types_without_a_kernel_are_left_to_ggml() -> None:
    values = values_of("weights", np.random.default_rng(0), 4, 256)
    assert verified.quantize("Q4_1", values, None, ggml("Q4_1")) is None


def test_a_level_changes_where_ggmls_comparison_does() -> None:
    for (below, above), bound in zip(
        zip(nonlinear.LEVELS, nonlinear.LEVELS[1:], strict=False), nonlinear.thresholds(), strict=True
    ):
        x = np.nextafter(np.float32(bound), np.float32(-np.inf))
        for _ in range(3):  # one before, the bound itself, one behind
            nearer = x - np.float32(below) < np.float32(above) - x
            assert nearer == (x < np.float32(bound))
            x = np.nextafter(x, np.float32(np.inf))


def test_tiles_and_back() -> None:
    count = LANES + 4
    values = np.arange(count * 32, dtype=np.float32)
    laid = tiles(values, 32)
    assert laid.shape == (2, 32, LANES)
    assert laid[1, 5, 3] == (LANES + 3) * 32 + 5
    assert not laid[1, :, 4:].any()
    assert np.array_equal(untiled(laid.astype(np.uint8), count), values.reshape(count, 32).astype(np.uint8))
    assert len(per_lane(values[:count])) == 2 * LANES
    n_tiles, whole = whole_tiles(values, 32)
    assert (n_tiles, len(whole)) == (2, 2 * LANES * 32)
    assert np.array_equal(whole[: count * 32], values)
    assert not whole[count * 32 :].any()


@pytest.mark.parametrize("lanes", [WIDTH, 2 * WIDTH])
@pytest.mark.parametrize("size", [16, 32, 48])
def test_values_as_they_lie_are_turned_into_tiles(size: int, lanes: int) -> None:
    kernel = Kernel("turn", [size, size], lanes)

    def tile(natural: Place, out: Place) -> None:
        x = turned(kernel, natural, size)
        kernel.loop(0, size, [], lambda i: out.__setitem__(i, x[i]) or ())

    values = np.arange(3 * lanes * size, dtype=np.float32)
    out = np.empty((3, size, lanes), np.float32)
    kernel.compiled(tile)(3, values, out)
    assert np.array_equal(out, values.reshape(3, lanes, size).transpose(0, 2, 1))


def test_what_is_repeated_and_what_is_single() -> None:
    kernel = Kernel("repeat", [Repeated(1), Singles(2), 1])

    def tile(again: Place, single: Place, out: Place) -> None:
        out[0] = again[0] * single[1] + single[0]

    again = np.arange(2 * LANES, dtype=np.float32).reshape(2, LANES)
    single = np.arange(10, dtype=np.float32).reshape(5, 2)
    out = np.empty((5, LANES), np.float32)
    compiled = kernel.compiled(tile)
    compiled(5, again, single, out, repeated=2)
    assert np.array_equal(out, again[[0, 1, 0, 1, 0]] * single[:, 1:] + single[:, :1])
    with pytest.raises(ValueError, match="no tiles"):
        compiled(5, again, single, out, repeated=0)


@pytest.mark.parametrize("columns", [32, 96, 320, 2048])
def test_importance_of_a_row_goes_with_every_row(columns: int) -> None:
    importance = np.random.default_rng(0).random(columns, np.float32)
    laid = importance_tiles(importance, 32)
    rows = np.tile(importance, 5 * LANES)  # more than one round of the tiles
    n_tiles, _ = whole_tiles(rows, 32)
    assert np.array_equal(tiles(rows, 32), laid[np.arange(n_tiles) % len(laid)])


def test_expressions_are_single_precision_and_in_order() -> None:
    kernel = Kernel("expression", [1, 1, 4, -1])

    def tile(x: Place, y: Place, out: Place, codes: Place) -> None:
        (total,) = kernel.loop(0, 3, [x[0]], lambda i, t: [t * y[0] + kernel.number(i)])
        out[0] = total
        out[1] = kernel.sqrt(kernel.abs(x[0])) / 3
        out[2] = ((x[0] > 0) & (y[0] >= 0.5)).choose(-x[0], x[0] - y[0])
        out[3] = (x[0] * 10).whole().within(-3, 7)
        codes[0] = (x[0] * 10).rounded().clipped(-3, 7).plus(3) & 7 | (y[0] * 0).rounded().plus(1) << 3

    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((4, LANES)).astype(np.float32) for _ in range(2))
    out, codes = np.empty((4, 4, LANES), np.float32), np.empty((4, 1, LANES), np.uint8)
    kernel.compiled(tile)(4, x, y, out, codes)
    total = x
    for i in range(3):
        total = total * y + np.float32(i)  # two roundings: nothing is fused
    assert np.array_equal(out[:, 0], total)
    assert np.array_equal(out[:, 1], np.sqrt(np.abs(x)) / np.float32(3))
    assert np.array_equal(out[:, 2], np.where((x > 0) & (y >= 0.5), -x, x - y))
    clipped = np.clip(np.rint(x * np.float32(10)), -3, 7)
    assert np.array_equal(out[:, 3], clipped)
    assert np.array_equal(codes[:, 0], (clipped.astype(np.uint8) + 3 & 7) | 8)
    assert np.array_equal(nearest(x * np.float32(10)), np.rint(x * np.float32(10)))
