"""Learned rounding: nearer outputs than its start, one of two neighbours, nothing learned where nothing is seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from exporter.compress.quantize.autoround import AutoRoundOptions, autoround
from exporter.compress.quantize.gptq import gptq
from exporter.compress.quantize.run import nearest
from targets.gguf.grids import GRIDS

if TYPE_CHECKING:
    from collections.abc import Mapping

NAMES = ("up", "down")


class Problem:
    """Two matrices with a bend between, and inputs whose features go together."""

    def __init__(self, columns: int = 256) -> None:
        generator = np.random.default_rng(0)
        self.weights = {name: (generator.standard_normal((columns, columns)) / 16).astype(np.float32) for name in NAMES}
        mixed = generator.standard_normal((columns // 8, columns))
        self.x = [
            torch.from_numpy((generator.standard_normal((64, columns // 8)) @ mixed).astype(np.float32))
            for _ in range(6)
        ]

    def run(self, number: int, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        inner = torch.relu(self.x[number] @ weights["up"].T)
        return inner @ weights["down"].T

    def loss(self, weights: Mapping[str, np.ndarray]) -> float:
        found = {name: torch.from_numpy(value) for name, value in weights.items()}
        dense = {name: torch.from_numpy(value) for name, value in self.weights.items()}
        return sum(
            float((self.run(number, found) - self.run(number, dense)).square().sum()) for number in range(len(self.x))
        )

    def hessian(self) -> np.ndarray:
        x = torch.cat(self.x).numpy()
        return x.T @ x


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q3_K", "Q4_K", "IQ4_NL"])
@pytest.mark.parametrize("start", ["rtn", "gptq"])
def test_outputs_are_nearer_than_the_start_leaves_them(name: str, start: str) -> None:
    grid, problem = GRIDS[name], Problem()
    hessian = problem.hessian()
    starts = {
        key: (grid, gptq(value, hessian, grid) if start == "gptq" and key == "up" else nearest(value, None, grid))
        for key, value in problem.weights.items()
    }
    packed = autoround(problem.weights, starts, problem.run, 6, options=AutoRoundOptions(60, rate=1 / 60))
    before, after = (
        problem.loss({key: grid.dequantize(raw) for key, raw in each.items()})
        for each in ({key: raw for key, (_, raw) in starts.items()}, packed)
    )
    assert after < 0.8 * before
    for key, (_, raw) in starts.items():
        old, new = grid.fitted(raw), grid.fitted(packed[key])
        np.testing.assert_array_equal(old.scales, new.scales)
        scales, offsets = (grid.spread(part, slice(None)) for part in (old.scales, old.offsets))
        codes = [grid.nearest(grid.dequantize(each), scales, offsets).astype(int) for each in (raw, packed[key])]
        assert set(np.unique(np.abs(codes[1] - codes[0]))) == {0, 1}


def test_what_no_output_shows_keeps_its_code() -> None:
    grid, problem = GRIDS["Q4_0"], Problem()
    for x in problem.x:
        x[:, :32] = 0
    starts = {key: (grid, nearest(value, None, grid)) for key, value in problem.weights.items()}
    packed = autoround(problem.weights, starts, problem.run, 6, options=AutoRoundOptions(20, rate=1 / 20))
    block = grid.kind.block_bytes
    np.testing.assert_array_equal(packed["up"][:, :block], starts["up"][1][:, :block])
    assert not np.array_equal(packed["up"], starts["up"][1])


def test_nothing_worse_than_the_start_is_kept() -> None:
    grid, problem = GRIDS["Q4_0"], Problem()
    starts = {key: (grid, nearest(value, None, grid)) for key, value in problem.weights.items()}
    packed = autoround(problem.weights, starts, problem.run, 6, options=AutoRoundOptions(1, rate=1e3))
    for key, (_, raw) in starts.items():
        np.testing.assert_array_equal(packed[key], raw)


def test_the_seed_decides_the_order_of_pieces() -> None:
    grid, problem = GRIDS["Q4_0"], Problem()
    starts = {key: (grid, nearest(value, None, grid)) for key, value in problem.weights.items()}
    made = [
        autoround(problem.weights, starts, problem.run, 6, seed, AutoRoundOptions(9, rate=1 / 9))["up"]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])
