"""Checkpoints in 8 bits: codes are the numbers that torch takes them for, and scales lie where they belong."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.parity import OPTIONS, TOKENS, emit, worst_difference

from exporter.checkpoint import resolve
from exporter.verify.reference import TransformersReference
from runtime.errors import ModelError, UnsupportedError
from runtime.sessions import open_session
from targets.base import EmitOptions
from targets.gguf.target import GgufTarget
from targets.scaled import values_of
from targets.weights import WeightReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BLOCK = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
METHODS: dict[str, dict[str, Any]] = {
    "block": BLOCK,
    "row": {"quant_method": "compressed-tensors", "format": "float-quantized"},
    "tensor": {"quant_method": "modelopt"},
    "int8": {"quant_method": "compressed-tensors", "format": "int-quantized"},
}
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32, "actorder": None}
GROUPED = {
    "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS, "input_activations": None}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind"),
    [("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2), ("F8_E8M0", torch.float8_e8m0fnu),
     ("I8", torch.int8)],
)  # fmt: skip
def test_every_code_is_torchs_number(name: str, kind: torch.dtype) -> None:
    expected = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(kind).float().numpy()
    np.testing.assert_array_equal(values_of(name), expected)


def packed(source: Path, out: Path, method: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """The model with its layers' matrices in 8 bits, and what they are worth."""
    tensors, worth = load_file(source / "model.safetensors"), {}
    written = {}
    for name, tensor in tensors.items():
        if tensor.dim() != 2 or "layers" not in name:
            written[name] = tensor
            continue
        values = tensor.float()
        rows, columns = values.shape
        shape = {"block": (-(-rows // 128), -(-columns // 128)), "row": (rows, 1), "int8": (rows, 1), "tensor": ()}[
            method
        ]
        scales = (torch.rand(shape) + 0.5) / 64  # of no use to the values: they have to be read from their place
        wide = (
            scales.expand(rows, columns)
            if method != "block"
            else scales.repeat_interleave(128, 0).repeat_interleave(128, 1)[:rows, :columns]
        )
        codes = (values / wide).clamp(-127, 127)
        codes = codes.round().to(torch.int8) if method == "int8" else codes.to(torch.float8_e4m3fn)
        written[name] = codes
        written[f"{name}_scale{'_inv' if method == 'block' else ''}"] = scales.clone()
        worth[name] = codes.float() * wide
    for path in source.iterdir():
        if not path.name.endswith(".safetensors"):
            (out / path.name).write_bytes(path.read_bytes())
    save_file(written, out / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "quantization_config": METHODS[method]}))
    return out, worth


def integers(source: Path, out: Path, bits: int, groups: int) -> dict[str, torch.Tensor]:
    """The model with its layers' matrices packed as compressed-tensors packs them; what they are worth."""
    written, worth = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if tensor.dim() != 2 or "layers" not in name:
            written[name] = tensor
            continue
        rows, columns = tensor.shape
        top = 2 ** (bits - 1)
        codes = torch.randint(-top, top, (rows, columns), generator=torch.Generator().manual_seed(rows))
        scales = (torch.rand(rows, groups) + 0.5).to(torch.bfloat16) / 64
        each = 32 // bits
        words = torch.zeros(rows, columns // each, dtype=torch.int64)
        for place in range(each):
            words |= (codes[:, place::each] + top) << (bits * place)
        written[f"{name}_packed"] = words.to(torch.int32)  # the highest bit becomes the sign
        written[f"{name}_scale"] = scales
        written[f"{name}_shape"] = torch.tensor([rows, columns])
        worth[name] = codes.float() * scales.float().repeat_interleave(columns // groups, 1)
    for path in source.iterdir():
        if not path.name.endswith(".safetensors"):
            (out / path.name).write_bytes(path.read_bytes())
    save_file(written, out / "model.safetensors")
    weights = {**WEIGHTS, "num_bits": bits}
    groups_said = {"group_0": {"targets": ["Linear"], "weights": weights}}
    config = json.loads((source / "config.json").read_text())
    said = {**config, "quantization_config": {**GROUPED, "config_groups": groups_said}}
    (out / "config.json").write_text(json.dumps(said))
    return worth


@pytest.mark.parametrize(("bits", "groups"), [(4, 1), (4, 6), (8, 6)])
def test_packed_integers_are_codes_times_scales(bits: int, groups: int, source: Path, tmp_path: Path) -> None:
    worth = integers(source, tmp_path, bits, groups)
    facts = resolve(str(tmp_path))
    assert "quantization_config" not in facts.config
    assert facts.tensors.keys() == load_file(source / "model.safetensors").keys()
    assert len(worth) == 14
    with WeightReader() as reader:
        for name, values in worth.items():
            np.testing.assert_array_equal(reader.read_rows(facts.tensors[name], 0, len(values)), values.numpy())
            np.testing.assert_array_equal(reader.read_rows(facts.tensors[name], 5, 9), values[5:9].numpy())


@pytest.mark.parametrize(
    ("weights", "more"),
    [
        ({"symmetric": False}, {}),
        ({"num_bits": 3}, {}),
        ({"type": "float"}, {}),
        ({}, {"model.layers.0.mlp.up_proj.weight_zero_point": torch.ones(3, 3)}),
        ({}, {"model.layers.0.mlp.up_proj.weight_g_idx": torch.ones(192)}),
        ({}, {"model.layers.0.mlp.up_proj.weight_scale": torch.ones(3, 6)}),
    ],
    ids=["asymmetric", "three bits", "floats", "zero points", "ordered", "other scales"],
)
def test_packed_integers_that_scales_do_not_explain_are_refused(
    weights: dict[str, Any], more: dict[str, torch.Tensor], source: Path, tmp_path: Path
) -> None:
    integers(source, tmp_path, 4, 6)
    save_file({**load_file(tmp_path / "model.safetensors"), **more}, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"].update(weights)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises((ModelError, UnsupportedError), match="already compressed-tensors"):
        GgufTarget().plan(resolve(str(tmp_path)), EmitOptions("f16"))


@pytest.fixture
def source(tiny_model_dir: Callable[..., Path]) -> Path:
    return tiny_model_dir("llama3", hidden=192)  # two blocks a row, the second one short


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_codes_times_scales(method: str, source: Path, tmp_path: Path) -> None:
    directory, worth = packed(source, tmp_path, method)
    facts = resolve(str(directory))
    assert "quantization_config" not in facts.config
    assert facts.tensors.keys() == load_file(source / "model.safetensors").keys()
    assert len(worth) == 14
    with WeightReader() as reader:
        for name, values in worth.items():
            np.testing.assert_array_equal(reader.read_rows(facts.tensors[name], 0, len(values)), values.numpy())
            for start, stop in ((1, 2), (100, 140), (127, 129)):
                if stop <= len(values):
                    found = reader.read_rows(facts.tensors[name], start, stop)
                    np.testing.assert_array_equal(found, values[start:stop].numpy())


@pytest.mark.parametrize("format_name", ["gguf", "onnx"])
def test_an_export_computes_what_the_checkpoint_says(format_name: str, source: Path, tmp_path: Path) -> None:
    for name in ("eight", "floats", "out"):
        (tmp_path / name).mkdir()
    directory, worth = packed(source, tmp_path / "eight", "block")
    for path in source.iterdir():
        (tmp_path / "floats" / path.name).write_bytes(path.read_bytes())
    floats = {name: worth.get(name, tensor.float()) for name, tensor in load_file(source / "model.safetensors").items()}
    save_file({name: tensor.contiguous() for name, tensor in floats.items()}, tmp_path / "floats" / "model.safetensors")
    artifact = emit(directory, tmp_path / "out", format_name)
    assert worst_difference(tmp_path / "floats", artifact) < 1e-5
    if format_name == "onnx":
        assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()


def test_transformers_reads_the_same_weights(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "eight").mkdir()
    directory, _ = packed(
        tiny_model_dir("llama3", hidden=256), tmp_path / "eight", "block"
    )  # it takes whole blocks only
    (tmp_path / "out").mkdir()
    session = open_session(emit(directory, tmp_path / "out"), OPTIONS)
    reference = TransformersReference(directory)
    found, expected = session.all_logits(TOKENS), reference.logits(TOKENS)
    session.close()
    reference.close()
    width = min(found.shape[1], expected.shape[1])
    # It rounds them to bfloat16, eight bits.
    assert np.abs(found[:, :width] - expected[:, :width]).max() / np.abs(expected).max() < 2**-6


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.weight_scale_inv"),
        lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.weight_scale_inv": torch.ones(3, 3)}),
        lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.weight_zero_point": torch.ones(3, 3)}),
    ],
)
def test_what_the_scales_do_not_explain_is_refused(
    change: Callable[[dict[str, torch.Tensor]], object], source: Path, tmp_path: Path
) -> None:
    directory, _ = packed(source, tmp_path, "block")
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises((ModelError, UnsupportedError), match="already fp8"):
        GgufTarget().plan(resolve(str(directory)), EmitOptions("f16"))
