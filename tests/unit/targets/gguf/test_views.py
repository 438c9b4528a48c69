"""Parts of stored tensors beside the same parts of an array, read whole and in chunks, and written as one tensor."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.parity import no_progress

from targets.facts import TensorFact
from targets.gguf import header, stream
from targets.gguf.architectures.base import OutTensor
from targets.gguf.architectures.views import columns, every, grouped_heads, part, transposed
from targets.gguf.kernels import quantize_rows
from targets.gguf.types import TYPES
from targets.weights import WeightReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from targets.gguf.architectures.views import View

    Array = np.ndarray

BEFORE = 12
"""Bytes of something else before the tensor."""


def store(path: Path, values: Array, dtype: str = "F32") -> TensorFact:
    """A file with that tensor in it."""
    data = values.astype("<f4")
    raw = (data.view("<u4") >> 16).astype("<u2").tobytes() if dtype == "BF16" else data.tobytes()
    path.write_bytes(b"\xff" * BEFORE + raw + b"\xff" * 64)
    return TensorFact("t", values.shape, dtype, path, BEFORE, len(raw))


def numbers(*shape: int) -> Array:
    """Small whole numbers, which every type holds exactly."""
    return (np.arange(np.prod(shape)) % 251).reshape(shape).astype(np.float32)


def read(pieces: tuple[TensorFact, ...]) -> Array:
    with WeightReader() as reader:
        return np.concatenate([reader.read_rows(one, 0, one.n_elements // one.shape[-1]).reshape(-1) for one in pieces])


# what a view gives, by the words of numpy
VIEWS: dict[str, tuple[tuple[int, ...], View, dict[str, int], Callable[[Array], Array]]] = {
    "upper half of a matrix": ((6, 5), part(0, 2), {}, lambda w: w[:3]),
    "last third of a matrix": ((6, 5), part(2, 3), {}, lambda w: w[4:]),
    "lower halves of experts": ((3, 4, 5), part(1, 2), {}, lambda w: w[:, 2:]),
    "transpose": ((4, 6), transposed(), {}, lambda w: w.T),
    "transposed experts": ((3, 4, 6), transposed(), {}, lambda w: w.swapaxes(1, 2)),
    "every second column of experts as rows": ((3, 4, 6), transposed(1, 2), {}, lambda w: w[:, :, 1::2].swapaxes(1, 2)),
    "every third row": ((6, 4), every(1, 3), {}, lambda w: w[1::3]),
    "odd rows of experts": ((3, 4, 6), every(1, 2), {}, lambda w: w[:, 1::2]),
    "even columns": ((3, 8), columns(0, 2), {}, lambda w: w[:, ::2]),
    "odd columns": ((3, 8), columns(1, 2), {}, lambda w: w[:, 1::2]),
    # two key heads of two rows, with two query heads each
    "grouped heads": (
        (2 * 4 * 2, 3),
        grouped_heads,
        {"kv_heads": 2, "head": 2},
        lambda w: w.reshape(2, 4, 2, 3)[[0, 0, 1, 1, 0, 1, 0, 1], [0, 1, 0, 1, 2, 2, 3, 3]],
    ),
    "grouped heads of a bias": (
        (2 * 4 * 2,),
        grouped_heads,
        {"kv_heads": 2, "head": 2},
        lambda b: b.reshape(2, 4, 2)[[0, 0, 1, 1, 0, 1, 0, 1], [0, 1, 0, 1, 2, 2, 3, 3]],
    ),
}


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("name", VIEWS)
def test_a_view_reads_what_numpy_would(name: str, dtype: str, tmp_path: Path) -> None:
    shape, view, dims, expected = VIEWS[name]
    values = numbers(*shape)
    pieces = view(store(tmp_path / "weights", values, dtype), dims)
    assert np.array_equal(read(pieces), expected(values).reshape(-1))


@pytest.mark.parametrize("start", [0, 1, 4])
@pytest.mark.parametrize("stop", [5, 6])
def test_rows_of_a_transpose(start: int, stop: int, tmp_path: Path) -> None:
    values = numbers(7, 6)
    (fact,) = transposed()(store(tmp_path / "weights", values), {})
    with WeightReader() as reader:
        assert np.array_equal(reader.read_rows(fact, start, stop), values.T[start:stop])


@pytest.mark.parametrize("start", [0, 1])
def test_some_of_every_second_row(start: int, tmp_path: Path) -> None:
    values = numbers(8, 3)
    (fact,) = every(1, 2)(store(tmp_path / "weights", values), {})
    with WeightReader() as reader:
        assert np.array_equal(reader.read_rows(fact, start, 3), values[1::2][start:3])


def written(tensor: OutTensor, kind: str, path: Path) -> bytes:
    """The bytes of the data section of a file that holds that tensor."""
    (placed,) = header.place([(tensor.name, tensor.shape, TYPES[kind])])
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        stream.write_tensors([stream.Output(descriptor, 0, [(tensor, placed)])], 2, no_progress)
    finally:
        os.close(descriptor)
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
@pytest.mark.parametrize("chunk_elements", [1, 64, 100, 1 << 19])
def test_pieces_are_written_one_behind_the_other(
    chunk_elements: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "CHUNK_ELEMENTS", chunk_elements)
    whole = [numbers(5, 32) + n for n in range(3)]
    facts = tuple(store(tmp_path / f"weights{n}", values) for n, values in enumerate(whole))
    tensor = OutTensor("blk.0.ffn_up_exps.weight", (3, 5, 32), None, pieces=facts)
    expected = quantize_rows(np.concatenate(whole), TYPES[kind]).tobytes()
    assert written(tensor, kind, tmp_path / "out") == expected


@pytest.mark.parametrize("chunk_elements", [1, 64, 1 << 19])
def test_pieces_in_blocks_are_copied(chunk_elements: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHUNK_ELEMENTS", chunk_elements)
    blocks = [np.random.default_rng(n).integers(0, 255, (4, 34), np.uint8).tobytes() for n in range(3)]
    facts = []
    for n, raw in enumerate(blocks):
        (path := tmp_path / f"blocks{n}").write_bytes(raw)
        facts.append(TensorFact("t", (4, 32), "Q8_0", path, 0, len(raw)))
    tensor = OutTensor("blk.0.ffn_up_exps.weight", (3, 4, 32), None, pieces=tuple(facts))
    assert written(tensor, "Q8_0", tmp_path / "out") == b"".join(blocks)


def test_a_function_is_applied_before_anything_is_added(tmp_path: Path) -> None:
    fact = store(tmp_path / "weights", numbers(2, 4))
    tensor = OutTensor("blk.0.ssm_a", (2, 4), fact, plus=1.0, function=np.negative)
    assert np.array_equal(np.frombuffer(written(tensor, "F32", tmp_path / "out"), "<f4"), 1.0 - numbers(8))
