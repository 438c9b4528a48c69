"""What a file stores, against what its target counted while it wrote."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from support.parity import emit
from support.tiny_encoders import export_onnx, make_tiny_bert

from runtime.errors import ModelError
from targets.stored_tensors import StoredTensor, stored_tensors

if TYPE_CHECKING:
    from pathlib import Path

NO_WEIGHTS = ("rotary.", "zero_points.")
"""Constants that the graph keeps beside the weights; of static-int8 one row of zero points for all of a width."""


def test_every_tensor_of_a_gguf_file(tiny_llama: Path, tmp_path: Path) -> None:
    artifact = emit(tiny_llama, tmp_path, "gguf", "q8_0")
    tensors = stored_tensors(artifact)
    assert tensors is not None
    assert Counter(tensor.type for tensor in tensors) == artifact.contract["tensors"]
    assert sum(tensor.n_weights for tensor in tensors) == artifact.n_params
    bits = 8 * sum(tensor.n_bytes for tensor in tensors) / artifact.n_params
    assert bits == pytest.approx(artifact.bits_per_weight)
    query = next(tensor for tensor in tensors if tensor.name == "blk.1.attn_q")
    assert (query.layer, query.kind, query.type, query.bits_per_weight) == (1, "attn_q", "Q8_0", 8.5)


@pytest.mark.parametrize("preset", ["fp32", "fp16", "int8", "int4", "int4-mixed", "dynamic-int8", "static-int8"])
def test_the_weights_of_an_onnx_graph(preset: str, tiny_llama: Path, tmp_path: Path) -> None:
    artifact = emit(tiny_llama, tmp_path, "onnx", preset)
    tensors = stored_tensors(artifact)
    assert tensors is not None
    weights = [tensor for tensor in tensors if not tensor.name.startswith(NO_WEIGHTS)]
    assert sum(tensor.n_weights for tensor in weights) == artifact.n_params
    bits = 8 * sum(tensor.n_bytes for tensor in weights) / artifact.n_params
    assert bits == pytest.approx(artifact.bits_per_weight)
    assert len({tensor.name for tensor in tensors}) == len(tensors)


@pytest.mark.parametrize("preset", ["fp32", "int8", "int4-mixed", "dynamic-int8", "static-int8"])
def test_the_weights_of_an_encoder(preset: str, tmp_path: Path) -> None:
    artifact = export_onnx(make_tiny_bert(tmp_path / "bert"), tmp_path / "out", preset)
    tensors = stored_tensors(artifact)
    assert tensors is not None
    weights = [tensor for tensor in tensors if not tensor.name.startswith(NO_WEIGHTS)]
    assert sum(tensor.n_weights for tensor in weights) == artifact.n_params
    bits = 8 * sum(tensor.n_bytes for tensor in weights) / artifact.n_params
    assert bits == pytest.approx(artifact.bits_per_weight)


def test_the_types_of_an_onnx_graph_are_those_of_its_operators(tiny_llama: Path, tmp_path: Path) -> None:
    by_name = {tensor.name: tensor for tensor in stored_tensors(emit(tiny_llama, tmp_path, "onnx", "int4")) or ()}
    down, gate = by_name["layers.1.ffn.down"], by_name["layers.1.ffn.gate_up"]
    assert (down.layer, down.kind, down.type, down.shape) == (1, "ffn.down", "int8 block 64", (64, 128))
    # 64 codes of 4 bits, a scale of 2 bytes and a zero point of 1 byte for a row of one block
    assert (gate.type, gate.shape, gate.n_bytes) == ("int4 block 64", (256, 64), 256 * (32 + 2 + 1))
    assert by_name["layers.0.attn.norm"].shape == (64,)


def test_the_channels_of_an_onnx_graph(tiny_llama: Path, tmp_path: Path) -> None:
    artifact = emit(tiny_llama, tmp_path, "onnx", "dynamic-int8")
    by_name = {tensor.name: tensor for tensor in stored_tensors(artifact) or ()}
    output = by_name["layers.0.attn.output"]
    assert (output.type, output.shape, output.n_bytes) == ("uint8 channels", (64, 64), 64 * 64 + 64 * 4)


def test_a_name_without_a_layer() -> None:
    table = StoredTensor("token_embd", "Q8_0", (10, 32), 320, 340)
    assert (table.layer, table.kind, table.bits_per_weight) == (None, "token_embd", 8.5)
    inner = StoredTensor("encoder.layer.11.attention.dense", "F16", (2, 2), 4, 8)
    assert (inner.layer, inner.kind) == (11, "attention.dense")
    assert StoredTensor("empty", "F32", (0,), 0, 0).bits_per_weight == 0.0


def test_a_format_that_nobody_can_look_into(tiny_llama: Path, tmp_path: Path) -> None:
    assert stored_tensors(emit(tiny_llama, tmp_path, "torchscript", "int8")) is None


def test_a_cut_file_is_an_error(tiny_llama: Path, tmp_path: Path) -> None:
    artifact = emit(tiny_llama, tmp_path)
    with artifact.entry_path.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ModelError, match="more than its"):
        stored_tensors(artifact)
