from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from support.parity import emit

from exporter.checkpoint import resolve
from exporter.verify.tensors import dead_tensors
from runtime.errors import ArtifactError
from targets.onnx.dead import dead_matrices
from targets.onnx.mobile import load_graph, to_ort

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.artifact import Artifact


def fill(artifact: Artifact, tensor: str, value: int) -> None:
    """Overwrite the bytes of an external tensor."""
    graph = load_graph(artifact.entry_path).graph
    stored = next(one for one in graph.initializer if one.name == tensor)
    place = {entry.key: entry.value for entry in stored.external_data}
    with (artifact.entry_path.parent / place["location"]).open("r+b") as file:
        file.seek(int(place["offset"]))
        file.write(bytes([value]) * int(place["length"]))


@pytest.mark.parametrize("preset", ["fp32", "fp16", "int8", "int4", "dynamic-int8"])
def test_a_healthy_export_has_no_dead_matrix(preset: str, tiny_llama: Path, tmp_path: Path) -> None:
    assert dead_matrices(emit(tiny_llama, tmp_path, "onnx", preset).entry_path) == []


@pytest.mark.parametrize(
    ("preset", "tensor", "value", "name"),
    [
        ("fp32", "layers.1.attn.output.weight", 0, "layers.1.attn.output.weight"),
        ("int4", "layers.1.attn.output.scales", 0, "layers.1.attn.output"),
        ("int4", "layers.1.attn.output.codes", 0x88, "layers.1.attn.output"),
        ("int8", "layers.0.ffn.down.codes", 0x80, "layers.0.ffn.down"),
    ],
)
def test_a_zeroed_matrix_is_named(
    preset: str, tensor: str, value: int, name: str, tiny_llama: Path, tmp_path: Path
) -> None:
    artifact = emit(tiny_llama, tmp_path, "onnx", preset)
    fill(artifact, tensor, value)
    assert dead_matrices(artifact.entry_path) == [name]
    assert dead_tensors(artifact, resolve(str(tiny_llama))) == (name,)


@pytest.mark.parametrize("preset", ["fp32", "int8", "int4", "dynamic-int8"])
def test_a_healthy_ort_has_no_dead_matrix(preset: str, tiny_llama: Path, tmp_path: Path) -> None:
    assert dead_tensors(emit(tiny_llama, tmp_path, "ort", preset), resolve(str(tiny_llama))) == ()


@pytest.mark.parametrize(
    ("preset", "tensor", "value", "name"),
    [
        ("fp32", "layers.1.attn.output.weight", 0, "layers.1.attn.output.weight"),
        ("int4", "layers.1.attn.output.scales", 0, "layers.1.attn.output"),
        ("int8", "layers.0.ffn.down.codes", 0x80, "layers.0.ffn.down"),
    ],
)
def test_a_zeroed_matrix_of_an_ort_is_named(
    preset: str, tensor: str, value: int, name: str, tiny_llama: Path, tmp_path: Path
) -> None:
    model = emit(tiny_llama, tmp_path, "onnx", preset)
    fill(model, tensor, value)
    ort = model.entry_path.with_suffix(".ort")
    to_ort(model.entry_path, ort)
    assert dead_matrices(ort) == [name]


def test_a_file_that_is_cut_short_is_one_line(tiny_llama: Path, tmp_path: Path) -> None:
    artifact = emit(tiny_llama, tmp_path, "onnx", "int4")
    data = artifact.entry_path.with_name(f"{artifact.entry_path.name}_data")
    with data.open("r+b") as file:
        file.truncate(10)
    with pytest.raises(ArtifactError, match=r"model_q4\.onnx_data: ends inside .*; export the model again"):
        dead_matrices(artifact.entry_path)
    shutil.rmtree(tmp_path / "onnx")
