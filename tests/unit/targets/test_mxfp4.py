"""Experts in MXFP4, as the hub has them: dequantized for any type, copied into a file that has them in MXFP4 too."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.parity import emit, worst_difference
from support.tiny_architectures import CASES, make_tiny_architecture

from exporter.checkpoint import resolve
from exporter.imatrix.job import ImatrixRequest, compute
from exporter.progress import SilentReporter
from runtime.errors import ModelError, UnsupportedError, UserError
from targets.base import EmitOptions
from targets.gguf import stream
from targets.gguf.imatrix import read_imatrix
from targets.gguf.target import GgufTarget
from targets.mxfp4 import CODES, ggml_blocks
from targets.scaled import values_of
from targets.weights import WeightReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Loading and saving torch's models makes it warn of its own future.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

METHOD = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
GATE_UP = "model.layers.1.mlp.experts.gate_up_proj"
DOWN = "model.layers.0.mlp.experts.down_proj"


def number(code: int) -> float:
    """What the specification says of a code: sign, two bits of exponent with bias 1, one of fraction."""
    sign, exponent, fraction = code >> 3, code >> 1 & 3, code & 1
    size = fraction * 0.5 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + fraction * 0.5)
    return -size if sign else size


def test_a_byte_holds_two_numbers_the_lower_half_first() -> None:
    found = values_of(CODES)
    expected = [(number(byte & 15), number(byte >> 4)) for byte in range(256)]
    np.testing.assert_array_equal(found, np.array(expected, np.float32))
    assert np.signbit(found[8]).tolist() == [True, False]


def test_ggmls_block_has_the_first_sixteen_codes_in_the_low_halves() -> None:
    codes = np.array([[0x10 * ((2 * n + 1) % 16) + (2 * n) % 16 for n in range(16)]], np.uint8)  # 0, 1, … 15, twice
    codes[0, 8:] = 0x77
    (block,) = ggml_blocks(codes, np.array([[130]], np.uint8))
    assert block.tolist() == [130, *(0x70 + n for n in range(16))]


def test_ggml_reads_the_same_numbers() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (3, 64), np.uint8)
    scales = rng.integers(100, 150, (3, 4), np.uint8)
    scales[0, 0], scales[1, 1] = 2, 250
    found = gguf.quants.dequantize(ggml_blocks(codes, scales), gguf.GGMLQuantizationType.MXFP4)
    scale = np.exp2(scales.astype(np.float32) - 127).repeat(32, axis=1)
    np.testing.assert_array_equal(found, values_of(CODES)[codes].reshape(3, 128) * scale)


def packed(directory: Path, dense: Path) -> dict[str, np.ndarray]:
    """Put random experts in MXFP4 into a model directory, and what they are worth into another; their codes by name."""
    dense.mkdir(parents=True)
    rng = np.random.default_rng(1)
    tensors = load_file(directory / "model.safetensors")
    worth, codes = dict(tensors), {}
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = tensors.pop(name).shape  # transformers keeps inputs as rows
        codes[name] = rng.integers(0, 16, (experts, rows, columns), np.uint8)
        scales = rng.integers(122, 126, (experts, rows, columns // 32), np.uint8)
        pairs = codes[name].reshape(experts, rows, columns // 32, 16, 2)
        tensors[f"{name}_blocks"] = torch.from_numpy(pairs[..., 0] + 16 * pairs[..., 1])
        tensors[f"{name}_scales"] = torch.from_numpy(scales)
        numbers = np.array([number(code) for code in range(16)])[codes[name]]
        values = numbers * 2.0 ** (scales.astype(np.float64) - 127).repeat(32, axis=2)
        worth[name] = torch.from_numpy(values).to(torch.bfloat16).transpose(1, 2).contiguous()
    save_file(worth, dense / "model.safetensors", metadata={"format": "pt"})
    for path in directory.iterdir():
        if path.suffix != ".safetensors":
            (dense / path.name).write_bytes(path.read_bytes())
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": METHOD}))
    return codes


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Path, dict[str, np.ndarray]]:
    """A directory in MXFP4, the same in bfloat16, and the codes."""
    directory, dense = make_tiny_architecture("gpt-oss", tmp_path / "model"), tmp_path / "bf16" / "model"
    (tmp_path / "out").mkdir()
    return directory, dense, packed(directory, dense)


def test_weights_are_codes_times_scales(model: tuple[Path, Path, dict[str, np.ndarray]]) -> None:
    directory, dense, codes = model
    facts, worth = resolve(str(directory)), load_file(dense / "model.safetensors")
    assert "quantization_config" not in facts.config
    assert len(codes) == 6
    assert facts.n_stored_params == resolve(str(dense)).n_stored_params
    with WeightReader() as reader:
        for name in codes:
            fact = facts.tensors[f"{name}_blocks"]
            values = worth[name].float().transpose(1, 2).reshape(-1, fact.shape[-1]).numpy()
            for start, stop in ((0, len(values)), (1, 2), (65, 130)):
                np.testing.assert_array_equal(reader.read_rows(fact, start, stop), values[start:stop])


@pytest.mark.parametrize("chunk_elements", [100, 1 << 19])
def test_an_export_computes_what_the_checkpoint_says(
    chunk_elements: int,
    model: tuple[Path, Path, dict[str, np.ndarray]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "CHUNK_ELEMENTS", chunk_elements)
    directory, dense, _ = model
    artifact = emit(directory, tmp_path / "out")
    # transformers' own reading of the blocks, and the independent one of this file
    assert worst_difference(directory, artifact) <= CASES["gpt-oss"].limit
    assert worst_difference(dense, artifact) <= CASES["gpt-oss"].limit
    (again := tmp_path / "again").mkdir()
    assert emit(dense, again).entry_path.read_bytes() == artifact.entry_path.read_bytes()


@pytest.mark.parametrize("chunk_elements", [100, 1 << 19])
def test_codes_are_copied_where_the_file_has_them_in_mxfp4(
    chunk_elements: int,
    model: tuple[Path, Path, dict[str, np.ndarray]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "CHUNK_ELEMENTS", chunk_elements)
    directory, dense, codes = model
    written = {
        t.name: t for t in gguf.GGUFReader(emit(directory, tmp_path / "out", preset="mxfp4_moe").entry_path).tensors
    }
    worth = load_file(dense / "model.safetensors")
    for layer in range(3):
        experts = f"model.layers.{layer}.mlp.experts."
        for part, stored, rows in (
            ("gate", "gate_up_proj", slice(0, None, 2)),
            ("up", "gate_up_proj", slice(1, None, 2)),
            ("down", "down_proj", slice(None)),
        ):
            tensor = written[f"blk.{layer}.ffn_{part}_exps.weight"]
            assert tensor.tensor_type.name == "MXFP4"
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            expected = worth[f"{experts}{stored}"].float().transpose(1, 2).numpy()[:, rows]
            np.testing.assert_array_equal(values, expected)
            own = codes[f"{experts}{stored}"][:, rows]
            halves = own.reshape(*own.shape[:2], -1, 2, 16)
            low, high = halves[..., 0, :], halves[..., 1, :]
            stored_codes = tensor.data.reshape(*own.shape[:2], -1, 17)[..., 1:]
            np.testing.assert_array_equal(stored_codes, low + 16 * high)  # the sign of a zero too


def test_its_experts_have_an_importance_matrix_but_not_from_a_mapped_file(
    model: tuple[Path, Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over 12 lazy dogs. " * 40, encoding="utf-8")
    request = ImatrixRequest(str(model[0]), tmp_path / "imatrix.gguf", text, tokens=64)
    compute(request, SilentReporter())
    sums = read_imatrix(request.out).sums
    assert {
        f"blk.{layer}.ffn_{part}_exps.weight" for layer in range(3) for part in ("gate", "up", "down")
    } < sums.keys()
    with pytest.raises(UserError, match=r"its experts are in MXFP4, .* save it in bf16"):
        compute(dataclasses.replace(request, low_memory=True, overwrite=True), SilentReporter())


@pytest.mark.parametrize("preset", ["f32", "mxfp4_moe"])
@pytest.mark.parametrize("name", [GATE_UP, DOWN])
def test_a_scale_that_is_no_number_is_refused(
    name: str, preset: str, model: tuple[Path, Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    directory = model[0]
    tensors = load_file(directory / "model.safetensors")
    tensors[f"{name}_scales"][1, 3, 1] = 255
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(ModelError, match=f"{name}_blocks holds (NaN|a scale that is no number)"):
        emit(directory, tmp_path / "out", preset=preset)


def scales_gone(tensors: dict[str, torch.Tensor]) -> None:
    """Of one tensor."""
    del tensors[f"{DOWN}_scales"]


def scales_of_another(tensors: dict[str, torch.Tensor]) -> None:
    """As if a block had 64 weights."""
    tensors[f"{DOWN}_scales"] = tensors[f"{DOWN}_scales"][..., :1].contiguous()


def blocks_gone(tensors: dict[str, torch.Tensor]) -> None:
    """And the scales left."""
    del tensors[f"{DOWN}_blocks"]


@pytest.mark.parametrize("change", [scales_gone, scales_of_another, blocks_gone])
def test_what_the_scales_do_not_explain_is_refused(
    change: Callable[[dict[str, torch.Tensor]], None], model: tuple[Path, Path, dict[str, np.ndarray]]
) -> None:
    directory = model[0]
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises((ModelError, UnsupportedError), match="already mxfp4"):
        GgufTarget().plan(resolve(str(directory)), EmitOptions("f16"))
