"""Weights on their way into the data files: places, chunks, types, and what is wrong with them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.golden_model import write_golden_model
from support.parity import emit

from runtime.errors import ModelError
from targets.facts import TensorFact
from targets.groups import row_scales
from targets.onnx import weights
from targets.onnx.blocks import BlockGrid
from targets.onnx.weights import (
    ALIGNMENT,
    Blob,
    BlocksJob,
    ChannelJob,
    FloatJob,
    Matrix,
    Part,
    Sink,
    ValuesJob,
    VectorJob,
    lay_out,
)
from targets.weights import WeightReader

if TYPE_CHECKING:
    from pathlib import Path

    from targets.onnx.weights import Job


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_golden_model(tmp_path / "golden")


def stored(path: Path, name: str, values: np.ndarray) -> TensorFact:
    """A tensor in a file of its own."""
    file = path / name
    file.write_bytes(values.astype("<f4").tobytes())
    return TensorFact(name, values.shape, "F32", file, 0, values.size * 4)


def written(path: Path, job: Job) -> list[bytes]:
    """The bytes of a job's blobs, its chunks done last to first."""
    import os

    sizes = lay_out([job], 1 << 30)
    descriptor = os.open(path / "data", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.truncate(descriptor, sizes[0])
    try:
        with WeightReader() as reader:
            sink = Sink(reader, (descriptor,))
            total = sum(chunk(sink) for chunk in reversed(list(job.chunks())))
    finally:
        os.close(descriptor)
    raw = (path / "data").read_bytes()
    assert total == sum(blob.n_bytes for blob in job.blobs)
    return [raw[blob.offset : blob.offset + blob.n_bytes] for blob in job.blobs]


def blob(name: str, shape: tuple[int, ...], dtype: str = "float32") -> Blob:
    return Blob(name, np.dtype(dtype), shape)


def values_job(name: str, n: int) -> ValuesJob:
    return ValuesJob((blob(name, (n,), "uint8"),), np.zeros(n, np.uint8))


def test_places_by_hand() -> None:
    jobs = [values_job("a", 100), values_job("b", 1), values_job("c", 64), values_job("d", 0)]
    assert lay_out(jobs, 1000) == [256]  # type: ignore[arg-type]
    assert [(job.blobs[0].file, job.blobs[0].offset) for job in jobs] == [(0, 0), (0, 128), (0, 192), (0, 256)]


def test_a_full_file_begins_the_next() -> None:
    jobs = [values_job("a", 100), values_job("b", 72), values_job("c", 1), values_job("d", 190)]
    assert lay_out(jobs, 200) == [200, 1, 190]  # type: ignore[arg-type]
    assert [(job.blobs[0].file, job.blobs[0].offset) for job in jobs] == [(0, 0), (0, 128), (1, 0), (2, 0)]


def test_a_blob_larger_than_a_file_is_named() -> None:
    with pytest.raises(ValueError, match="big takes 201 bytes, a file holds 200"):
        lay_out([values_job("a", 5), values_job("big", 201)], 200)


@pytest.mark.parametrize("chunk_elements", [1, 7, 20, 1 << 18])
def test_matrices_one_below_the_other(chunk_elements: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "CHUNK_ELEMENTS", chunk_elements)
    one, two = np.arange(12.0).reshape(3, 4), -np.arange(8.0).reshape(2, 4)
    matrix = Matrix((Part(stored(tmp_path, "one", one)), Part(stored(tmp_path, "two", two), plus=1.0)))
    assert (matrix.name, matrix.n_rows, matrix.n_columns) == ("one", 5, 4)
    both = np.concatenate([one, two + 1]).astype(np.float32)
    assert written(tmp_path, FloatJob((blob("w", (5, 4)),), matrix)) == [both.tobytes()]
    turned = FloatJob((blob("w", (4, 5)),), matrix, transposed=True)
    assert written(tmp_path, turned) == [np.ascontiguousarray(both.T).tobytes()]
    half = FloatJob((blob("w", (5, 4), "float16"),), matrix)
    assert written(tmp_path, half) == [both.astype(np.float16).tobytes()]


def test_vectors_one_behind_the_other(tmp_path: Path) -> None:
    parts = tuple(Part(stored(tmp_path, str(n), np.full(n, float(n))), plus=0.5) for n in (2, 3, 1))
    expected = np.array([2.5, 2.5, 3.5, 3.5, 3.5, 1.5], np.float32)
    assert written(tmp_path, VectorJob((blob("v", (6,)),), Matrix(parts))) == [expected.tobytes()]


@pytest.mark.parametrize("chunk_elements", [1, 100, 1 << 18])
def test_blocks_are_the_grids(chunk_elements: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "CHUNK_ELEMENTS", chunk_elements)
    values = np.random.default_rng(0).normal(size=(6, 48)).astype(np.float32)
    parts = (Part(stored(tmp_path, "a", values[:4])), Part(stored(tmp_path, "b", values[4:])))
    grid = BlockGrid(4, 16)
    blobs = (blob("c", (6, 3, 8), "uint8"), blob("s", (6, 3), "float16"), blob("z", (6, 2), "uint8"))
    expected = [part.tobytes() for part in grid.pack(grid.quantize(values))]
    assert written(tmp_path, BlocksJob(blobs, Matrix(parts), grid)) == expected
    norm = np.linspace(0.1, 4, 48).astype(np.float32)
    job = BlocksJob(blobs, Matrix(parts), grid, norm=Matrix((Part(stored(tmp_path, "n", norm)),)))
    weighted = grid.pack(grid.quantize(values, norm**2 / (norm**2).mean()))
    assert written(tmp_path, job) == [part.tobytes() for part in weighted]
    assert written(tmp_path, job) != expected


def test_channels_by_hand(tmp_path: Path) -> None:
    values = np.array([[127.0, -63.4, 0.0], [0.0, 0.0, 0.0], [1.0, -2.0, 0.5]], np.float32)
    assert row_scales(values).tolist() == [1.0, 1.0, np.float32(2 / 127)]
    job = ChannelJob((blob("w", (3, 3), "uint8"), blob("s", (3,))), Matrix((Part(stored(tmp_path, "m", values)),)))
    codes, scales = written(tmp_path, job)
    # turned: a column is an output; 128 is zero
    assert np.frombuffer(codes, np.uint8).reshape(3, 3).tolist() == [[255, 128, 192], [65, 128, 1], [128, 128, 160]]
    assert np.frombuffer(scales, np.float32).tolist() == row_scales(values).tolist()
    factors = np.array([1.0, 2.0, 1.0], np.float32)
    smoothed, _ = written(tmp_path, ChannelJob(job.blobs, job.matrix, factors))
    assert np.frombuffer(smoothed, np.uint8).reshape(3, 3)[:, 0].tolist() == [255, 1, 128]


def external(directory: Path) -> dict[str, tuple[str, int, int]]:
    """(file, offset, length) of every external tensor of the only graph there."""
    import onnx

    (path,) = (directory / "onnx").glob("*.onnx")
    found = {}
    for tensor in onnx.load(str(path), load_external_data=False).graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            found[tensor.name] = (place["location"], int(place["offset"]), int(place["length"]))
    return found


@pytest.mark.parametrize("quant", ["fp32", "int4", "int4-mixed"])
def test_blobs_are_aligned_and_apart(quant: str, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    artifact = emit(model, out, "onnx", quant)
    places = external(out)
    # the one alias: rows of the table, whose bytes the head has as blocks
    aliases = {name for name in places if name.endswith(".rows")}
    assert len(aliases) == (0 if quant == "fp32" else 1)
    end = 0
    for offset, length in sorted(place[1:] for name, place in places.items() if name not in aliases):
        assert offset % ALIGNMENT == 0
        assert end <= offset < end + ALIGNMENT
        end = offset + length
    assert end == artifact.files[f"{artifact.entry}_data"].bytes


def test_a_tied_table_is_on_disk_once(tiny_llama: Path, tmp_path: Path) -> None:
    from targets.safetensors import read_facts

    n_params = read_facts(tiny_llama, "x").n_stored_params
    artifact = emit(tiny_llama, tmp_path, "onnx")
    data = artifact.files["onnx/model.onnx_data"].bytes
    rotary = 2 * 2048 * 8 * 4  # positions, half a head, cosines and sines
    assert 4 * n_params + rotary <= data < 4 * n_params + rotary + 64 * len(external(tmp_path))
    assert artifact.n_params == n_params
    assert artifact.bits_per_weight == 32


def test_int4_is_as_small_as_its_sums(tiny_llama: Path, tmp_path: Path) -> None:
    artifact = emit(tiny_llama, tmp_path, "onnx", "int4")
    config = json.loads((tiny_llama / "config.json").read_text())
    vocab = config["vocab_size"]
    # blocks of 32 weights: 16 bytes of codes, 2 of scale; two zero points in a byte
    table = vocab * 2 * (16 + 2) + vocab
    assert external(tmp_path)["embed_tokens.codes"][2] == vocab * 32
    assert sum(external(tmp_path)[f"embed_tokens.{part}"][2] for part in ("codes", "scales", "zero_points")) == table
    assert artifact.bits_per_weight < 9


@pytest.mark.parametrize("quant", ["fp32", "fp16", "int4", "int8"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_bad_values_are_named_and_leave_no_graph(value: float, quant: str, model: Path, tmp_path: Path) -> None:
    spoil(model, "model.layers.1.mlp.up_proj.weight", value)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinite.*row 5"):
        emit(model, out, "onnx", quant)
    assert [path for path in out.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("name", "quant", "value"),
    [
        ("model.layers.1.mlp.up_proj.weight", "fp16", 7e4),
        ("model.embed_tokens.weight", "fp16", -7e4),
        ("model.layers.1.mlp.up_proj.weight", "int4", 3e7),
        ("model.layers.1.mlp.up_proj.weight", "int8", 3e7),
    ],
)
def test_a_value_too_large_for_float16_names_the_tensor(
    name: str, quant: str, value: float, model: Path, tmp_path: Path
) -> None:
    spoil(model, name, value)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ModelError, match=rf"^tensor {re.escape(name)}: .*float16.*; use --quant fp32"):
        emit(model, out, "onnx", quant)
    assert [path for path in out.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.input_layernorm.weight"])
def test_a_norm_too_large_for_float16_names_the_tensor(name: str, model: Path, tmp_path: Path) -> None:
    spoil(model, name, 7e4)
    with pytest.raises(ModelError, match=rf"^tensor {re.escape(name)}: .*float16"):
        emit(model, tmp_path, "onnx", "fp16")


def spoil(model: Path, name: str, value: float) -> None:
    """Put a value into row 5 (element 5) of a tensor."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    tensors[name].reshape(-1)[5 * (tensors[name].shape[1] if tensors[name].ndim == 2 else 1)] = value
    save_file(tensors, model / "model.safetensors")
