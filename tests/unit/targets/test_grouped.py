"""Checkpoints by GPTQ and AWQ: packed here by loops, one code after the other, and read as what they are worth."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.parity import emit, no_progress, worst_difference

from exporter.checkpoint import resolve
from exporter.verify import VerifyOptions, verify
from runtime.errors import ModelError, UnsupportedError
from targets.base import EmitOptions
from targets.drift import Drift
from targets.gguf.target import GgufTarget
from targets.weights import WeightReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Array = np.ndarray[Any, Any]

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
KINDS: dict[str, dict[str, Any]] = {
    "awq": AWQ,
    "gptq": GPTQ,
    "gptq-ordered": {**GPTQ, "desc_act": True},
    "gptq-2": {**GPTQ, "checkpoint_format": "gptq_v2"},
}
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight outputs AWQ puts where in a word."""


def words(codes: Array, order: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """Eight columns in an I32."""
    packed = np.zeros((codes.shape[0], codes.shape[1] // 8), np.uint32)
    for place, column in enumerate(order):
        packed |= codes[:, column::8].astype(np.uint32) << np.uint32(4 * place)
    return torch.from_numpy(packed.view(np.int32))


def packed(name: str, shape: tuple[int, int], kind: str, rng: np.random.Generator) -> tuple[dict[str, Any], Array]:
    """The tensors of one matrix (outputs, inputs), and what it is worth."""
    outputs, inputs = shape
    groups = inputs // 32
    codes = rng.integers(0, 16, (inputs, outputs))
    zeros = rng.integers(0, 16, (groups, outputs))
    scales = (rng.random((groups, outputs)) / 64 + 0.01).astype(np.float16)
    index = np.arange(inputs) // 32
    if kind == "gptq-ordered":
        index = rng.permutation(index)
    worth = ((codes - zeros[index]) * scales[index].astype(np.float32)).T
    if kind == "awq":
        tensors = {"qweight": words(codes, ORDER), "qzeros": words(zeros, ORDER)}
    else:
        stored = zeros if kind == "gptq-2" else (zeros - 1) % 16
        tensors = {
            "qweight": words(codes.T).T.contiguous(),
            "qzeros": words(stored),
            "g_idx": torch.from_numpy(index.astype(np.int32)),
        }
    tensors["scales"] = torch.from_numpy(scales)
    return {f"{name}.{end}": tensor for end, tensor in tensors.items()}, worth.astype(np.float32)


def write(source: Path, out: Path, kind: str) -> dict[str, Array]:
    """The model with its layers' matrices packed; what they are worth."""
    out.mkdir(parents=True)
    rng, written, worth = np.random.default_rng(3), {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if tensor.dim() != 2 or "layers" not in name:
            written[name] = tensor
            continue
        rows, columns = tensor.shape
        parts, worth[name] = packed(name.removesuffix(".weight"), (rows, columns), kind, rng)
        written |= parts
    for path in source.iterdir():
        if not path.name.endswith(".safetensors"):
            (out / path.name).write_bytes(path.read_bytes())
    save_file(written, out / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "quantization_config": KINDS[kind]}))
    return worth


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_codes_less_zeros_times_scales(
    kind: str, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    source = tiny_model_dir("llama3")
    worth = write(source, tmp_path / "four", kind)
    facts = resolve(str(tmp_path / "four"))
    assert "quantization_config" not in facts.config
    assert facts.tensors.keys() == load_file(source / "model.safetensors").keys()
    assert facts.n_stored_params == resolve(str(source)).n_stored_params
    assert len(worth) == 14
    with WeightReader() as reader:
        for name, values in worth.items():
            for start, stop in ((0, len(values)), (1, 2), (9, 31)):
                found = reader.read_rows(facts.tensors[name], start, stop)
                np.testing.assert_allclose(found, values[start:stop], rtol=1e-6)


def test_an_export_computes_what_the_checkpoint_says(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny_model_dir("llama3")
    worth = write(source, tmp_path / "four", "awq")
    (floats := tmp_path / "floats").mkdir()
    for path in source.iterdir():
        (floats / path.name).write_bytes(path.read_bytes())
    tensors = load_file(source / "model.safetensors")
    dense = {name: torch.from_numpy(worth[name]) if name in worth else tensor for name, tensor in tensors.items()}
    save_file({name: tensor.contiguous() for name, tensor in dense.items()}, floats / "model.safetensors")
    (tmp_path / "out").mkdir()
    artifact = emit(tmp_path / "four", tmp_path / "out")
    assert worst_difference(floats, artifact) < 1e-5
    assert any("quantized already (AWQ, 4 bits)" in note for note in artifact.contract["notes"])


@pytest.mark.parametrize("kind", ["awq", "gptq-ordered"])
def test_an_export_is_verified_without_another_library(
    kind: str, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    source = tiny_model_dir("llama3")
    write(source, tmp_path / "four", kind)
    (tmp_path / "out").mkdir()
    artifact = emit(tmp_path / "four", tmp_path / "out")
    options = VerifyOptions(chunks=1, context=32, threads=1)
    drift = verify(artifact, resolve(str(tmp_path / "four")), options, no_progress)
    assert drift.reference.endswith("float32, packed weights read by packlight")
    assert isinstance(drift, Drift)
    assert drift.mean_kl < 1e-6
    other = verify(artifact, resolve(str(source)), options, no_progress)  # these are other weights
    assert isinstance(other, Drift)
    assert other.mean_kl > 1e-3


def gone(end: str) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    """That one of the tensors is not there."""
    return lambda tensors, _: tensors.pop(f"model.layers.0.mlp.up_proj.{end}")


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("awq", gone("scales")),
        ("awq", gone("qzeros")),
        ("awq", gone("qweight")),
        ("awq", lambda _, said: said.update(version="gemv")),
        ("awq", lambda _, said: said.update(bits=8)),
        ("gptq", lambda _, said: said.update(dynamic={"-:.*": {}})),
        ("gptq", lambda _, said: said.update(checkpoint_format="marlin")),
        ("gptq", lambda tensors, _: tensors.update({"model.layers.0.mlp.up_proj.qzeros": torch.zeros(1, 1).int()})),
        ("gptq", lambda tensors, _: tensors.update({"model.layers.0.mlp.up_proj.g_idx": torch.zeros(3).int()})),
    ],
)
def test_what_is_not_known_is_refused(
    kind: str, change: Callable[..., object], tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    write(tiny_model_dir("llama3"), tmp_path / "four", kind)
    tensors = load_file(tmp_path / "four" / "model.safetensors")
    config = json.loads((tmp_path / "four" / "config.json").read_text())
    change(tensors, config["quantization_config"])
    save_file(tensors, tmp_path / "four" / "model.safetensors")
    (tmp_path / "four" / "config.json").write_text(json.dumps(config))
    with pytest.raises((ModelError, UnsupportedError), match=f"already {kind}"):
        GgufTarget().plan(resolve(str(tmp_path / "four")), EmitOptions("f16"))


def test_a_group_that_is_not_there_is_one_error(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    write(tiny_model_dir("llama3"), tmp_path / "four", "gptq")
    tensors = load_file(tmp_path / "four" / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.g_idx"][5] = 99
    save_file(tensors, tmp_path / "four" / "model.safetensors")
    with pytest.raises(ModelError, match="g_idx names a group that is not there"):
        emit(tmp_path / "four", tmp_path)
