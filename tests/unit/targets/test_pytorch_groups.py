"""The grids of the PyTorch formats beside what their engines' own words say of codes, scales and shifts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from targets.executorch.presets import PRESETS as EXECUTORCH_PRESETS
from targets.facts import TensorFact
from targets.groups import Parts, RowGrid
from targets.onnx.weights import Matrix, Part
from targets.pytorch.grids import decoder_grids
from targets.pytorch.groups import GroupGrid, to_bfloat16
from targets.torchscript.presets import PRESETS

if TYPE_CHECKING:
    from targets.groups import GroupedGrid
    from targets.pytorch.presets import Preset

GRIDS = [GroupGrid(32, shifted=True), GroupGrid(32), RowGrid(64)]


def weights(rows: int = 6, columns: int = 64) -> np.ndarray:
    found = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    found[2] = 0
    found[3, :32] = np.abs(found[3, :32]) + 1
    return found


def as_engines_do(codes: np.ndarray, scales: np.ndarray, shifts: np.ndarray, bits: int) -> np.ndarray:
    """One weight after the other."""
    middle, size = {4: 8, 8: 127}[bits], codes.shape[1] // scales.shape[1]
    found = np.empty(codes.shape, np.float32)
    for row, column in np.ndindex(*codes.shape):
        group = row, column // size
        found[row, column] = np.float32(int(codes[row, column]) - middle) * scales[group] + shifts[group]
    return found


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_a_weight_is_its_steps_from_the_middle(grid: GroupedGrid) -> None:
    packed = grid.rounded(weights())
    tensors = grid.tensors("w", packed)
    scales = tensors["w.scales"]
    shifts = tensors.get("w.shifts", np.zeros_like(scales))
    assert ("w.shifts" in tensors) == grid.shifted
    expected = as_engines_do(tensors[f"w.codes{grid.bits}"], scales, shifts, grid.bits)
    np.testing.assert_array_equal(grid.dequantize(packed), expected)
    fitted = grid.fitted(packed)
    spread = [grid.spread(part, slice(None)) for part in (fitted.scales, fitted.offsets)]
    np.testing.assert_allclose(grid.values(tensors[f"w.codes{grid.bits}"], *spread), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_no_other_code_is_nearer(grid: GroupedGrid) -> None:
    rows = weights()
    fitted = grid.fit(rows)
    scales, offsets = (grid.spread(part, slice(None)) for part in (fitted.scales, fitted.offsets))
    every = np.arange(grid.largest + 1, dtype=np.float32)
    least = np.abs(every * scales[..., None] + offsets[..., None] - rows[..., None]).min(-1)
    found = np.abs(grid.values(grid.nearest(rows, scales, offsets), scales, offsets) - rows)
    np.testing.assert_allclose(found, least, atol=1e-5)
    # A shift is rounded after its zero was chosen, so plain rounding may be a little off, never more.
    assert np.abs(grid.dequantize(grid.rounded(rows)) - rows).mean() <= 1.02 * least.mean()


@pytest.mark.parametrize("grid", GRIDS[:2], ids=lambda grid: grid.name)
def test_what_counts_more_is_met_more_nearly(grid: GroupedGrid) -> None:
    rows = np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)
    importance = np.where(np.arange(32) < 4, 100.0, 1.0).astype(np.float32)
    plain, weighed = (grid.dequantize(grid.rounded(rows, given)) - rows for given in (None, importance))
    assert (weighed[:, :4] ** 2).mean() < 0.9 * (plain[:, :4] ** 2).mean()


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_parts_are_what_was_packed(grid: GroupedGrid) -> None:
    generator = np.random.default_rng(2)
    n = 64 // grid.size
    codes = generator.integers(0, grid.largest + 1, (5, 64)).astype(np.uint8)
    scales, shifts = generator.random((2, 5, n)).astype(np.float32)
    found = grid.parts(grid.packed(Parts(codes, scales, shifts)))
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_array_equal(found.scales, scales)
    np.testing.assert_array_equal(found.shifts, shifts if grid.shifted else 0 * shifts)


def test_bytes_are_those_of_the_file() -> None:
    assert GroupGrid(32, shifted=True).n_bytes(10, 64) == 10 * (32 + 2 * (2 + 2))
    assert GroupGrid(32).n_bytes(10, 64) == 10 * (32 + 2 * 2)
    assert RowGrid(64).n_bytes(10, 64) == 10 * (64 + 4)


def test_bfloat16_is_torchs() -> None:
    bits = np.random.default_rng(3).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    ties = (np.arange(1 << 12, dtype=np.uint32) << np.uint32(20)) | np.uint32(0x8000)
    values = np.concatenate([bits, ties, ties | np.uint32(1 << 16)]).view(np.float32)
    values = values[~np.isnan(values)]
    expected = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(to_bfloat16(values), expected)


@pytest.mark.parametrize("grid", GRIDS[:2], ids=lambda grid: grid.name)
def test_a_scale_that_does_not_fit_is_refused(grid: GroupedGrid) -> None:
    rows = np.full((1, 32), np.finfo(np.float32).max, np.float32)
    with pytest.raises(OverflowError), np.errstate(all="ignore"):
        GroupGrid(32, grid.shifted).fit(np.concatenate([rows, -rows], axis=1))


def bits_of(preset: Preset, hidden: int = 64, *, factorized: bool = False) -> dict[str, int]:
    """Bits of the matrices of a decoder of 24 layers by name."""
    shapes = {"attn_q": (64, hidden), "attn_k": (8, hidden), "attn_v": (8, hidden), "attn_output": (hidden, 64),
              "ffn_gate": (8, hidden), "ffn_up": (8, hidden), "ffn_down": (hidden, 128)}  # fmt: skip
    stored = {f"blk.{layer}.{role}.weight": shape for layer in range(24) for role, shape in shapes.items()}
    stored["token_embd.weight"] = (600, hidden)
    if factorized:
        stored |= {"blk.5.ffn_gate.right.weight": (16, hidden), "blk.5.ffn_gate.left.weight": (8, 16)}
        del stored["blk.5.ffn_gate.weight"]
    matrices = {name: Matrix((Part(TensorFact(name, shape, "F32", Path(), 0, 0)),)) for name, shape in stored.items()}
    return {name: grid.bits for name, grid in decoder_grids(preset, matrices, 24).items()}


@pytest.mark.parametrize("preset", [PRESETS["int4"], EXECUTORCH_PRESETS["8da4w"]], ids=["int4", "8da4w"])
def test_eight_bits_stand_where_four_cost_most(preset: Preset) -> None:
    found = bits_of(preset)
    assert found.pop("token_embd.weight") == 8
    eight = {name for name, bits in found.items() if bits == 8}
    queries = {f"blk.{layer}.attn_{role}.weight" for layer in range(24) for role in "qkv"}
    assert eight == queries | {f"blk.{layer}.ffn_down.weight" for layer in (0, 1, 23)}
    assert len(found) == 24 * 7


def test_what_four_bits_cannot_hold_takes_eight() -> None:
    names = [f"blk.5.ffn_{end}.weight" for end in ("gate", "up", "gate.left", "gate.right")]
    torchscript, executorch = PRESETS["int4"], EXECUTORCH_PRESETS["8da4w"]
    # Together 16 rows, as TorchScript's product wants them; alone eight. 16 columns are no group of 32.
    assert [bits_of(torchscript).get(name) for name in names] == [4, 4, None, None]
    assert [bits_of(torchscript, factorized=True).get(name) for name in names] == [None, 8, 8, 4]
    assert [bits_of(executorch, factorized=True).get(name) for name in names] == [None, 4, 8, 4]
    for preset in (torchscript, executorch):
        assert bits_of(preset, hidden=48)["blk.5.ffn_up.weight"] == 8


def test_floats_have_no_grid() -> None:
    assert bits_of(PRESETS["fp32"]) == {}
    assert bits_of(PRESETS["dynamic-int8"]) == {"token_embd.weight": 8}
