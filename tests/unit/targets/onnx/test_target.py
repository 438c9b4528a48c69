"""The directory that an export writes: its files, its manifest, its failures."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING

import pytest
from support.golden_model import write_golden_model
from support.parity import emit, no_progress

from exporter.checkpoint import resolve
from runtime.errors import ModelError, UserError
from targets import stream
from targets.base import EmitOptions
from targets.onnx import target
from targets.onnx.target import OnnxTarget

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OWN = ["config.json", "genai_config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_golden_model(tmp_path / "golden")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def files(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def test_the_manifest_says_what_a_client_has_to_know(model: Path, out: Path) -> None:
    artifact = emit(model, out, "onnx", "int4")
    assert files(out) == [*OWN[:2], "onnx/model_q4.onnx", "onnx/model_q4.onnx_data", *OWN[2:]]
    assert sorted(artifact.files) == files(out)
    assert (artifact.format, artifact.entry, artifact.quant) == ("onnx", "onnx/model_q4.onnx", "int4")
    contract = artifact.contract
    assert (contract["engine"], contract["task"], contract["opset"]) == ("ONNX Runtime", "text-generation", 21)
    assert contract["inputs"][:3] == ["input_ids", "attention_mask", "num_logits_to_keep"]
    assert contract["outputs"][:2] == ["logits", "present.0.key"]
    assert len(contract["outputs"]) == 7
    assert contract["model_files"] == ["onnx/model_q4.onnx", "onnx/model_q4.onnx_data"]
    assert sum(contract["tensors"].values()) == 1 + 3 * 9 + 1


@pytest.mark.parametrize(
    ("quant", "entry"),
    [("fp32", "model"), ("fp16", "model_fp16"), ("int8", "model_int8"), ("int4-mixed", "model_q4"),
     ("dynamic-int8", "model_quantized"), ("static-int8", "model_quantized")],
)  # fmt: skip
def test_every_preset_has_its_file(quant: str, entry: str, tiny_llama: Path, out: Path) -> None:
    artifact = emit(tiny_llama, out, "onnx", quant)
    assert artifact.entry == f"onnx/{entry}.onnx"
    assert [name for name in files(out) if name.startswith("onnx/")] == [artifact.entry, f"{artifact.entry}_data"]


@pytest.mark.parametrize("chunk_elements", [1000, 1 << 20])
def test_chunks_and_threads_change_nothing(
    chunk_elements: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from targets.onnx import weights

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = emit(model, tmp_path / "a", "onnx", "int4").files
    monkeypatch.setattr(weights, "CHUNK_ELEMENTS", chunk_elements)
    options = EmitOptions("int4", threads=1)
    assert OnnxTarget().emit(resolve(str(model)), options, tmp_path / "b", no_progress).files == whole


def test_a_full_disk_is_known_before_the_work(model: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stream.os, "posix_fallocate", no_room)
    with pytest.raises(UserError, match=r"no room for a file of \d+ bytes \(No space left on device\)"):
        emit(model, out, "onnx")
    assert files(out) == []


def test_a_disk_that_fills_in_the_middle_is_one_error(model: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stream.os, "pwrite", full)
    with pytest.raises(ModelError, match=r"out: cannot be written \(No space left on device\); free space") as caught:
        emit(model, out, "onnx")
    assert "\n" not in str(caught.value)
    assert files(out) == []


def test_progress_ends_at_the_total(model: Path, out: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    OnnxTarget().emit(resolve(str(model)), EmitOptions("int8", 2), out, lambda *step: seen.append(step))
    done = [step[1] for step in seen]
    assert done == sorted(done)
    # what lies between two blobs is not written
    total = seen[-1][2]
    assert total * 0.99 < done[-1] <= total == (out / "onnx" / "model_int8.onnx_data").stat().st_size


def test_threads_reach_the_work(model: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real: Callable[..., None] = target.write_data

    def spy(*arguments: object) -> None:
        seen.append(arguments[2])  # type: ignore[arg-type]  # threads
        real(*arguments)

    monkeypatch.setattr(target, "write_data", spy)
    OnnxTarget().emit(resolve(str(model)), EmitOptions("int8", 3), out, no_progress)
    assert seen == [3]


def test_a_target_exports_two_models_one_after_the_other(model: Path, tiny_llama: Path, tmp_path: Path) -> None:
    backend = OnnxTarget()
    found = {}
    for name, source, quant in (("a", model, "int4"), ("b", tiny_llama, "int4"), ("c", model, "int4")):
        (tmp_path / name).mkdir()
        facts, options = resolve(str(source)), EmitOptions(quant)
        assert backend.check(facts, options) == []
        found[name] = backend.emit(facts, options, tmp_path / name, no_progress)
    assert found["a"].files == found["c"].files
    assert found["a"].n_params != found["b"].n_params


def test_a_graph_is_written_once(tiny_llama: Path, tmp_path: Path) -> None:
    """Calibration adds outputs to the plan that it runs: a second export needs a plan of its own."""
    backend, facts, options = OnnxTarget(), resolve(str(tiny_llama)), EmitOptions("static-int8", 1)
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        found.append(backend.emit(facts, options, tmp_path / name, no_progress).files)
    assert found[0] == found[1]


def test_the_devices_release_chooses_the_opset(model: Path, out: Path) -> None:
    options = EmitOptions("fp32", engine="1.17")
    (problem,) = OnnxTarget().check(resolve(str(model)), options)
    assert "the device: has ONNX Runtime 1.17, fp32 needs 1.20" in str(problem)
    facts = resolve(str(model))
    artifact = OnnxTarget().emit(facts, dataclasses.replace(options, engine="1.20"), out, no_progress)
    assert artifact.contract["minimum_onnxruntime"] == "1.20"
    assert artifact.contract["opset"] <= 21


def test_side_files_are_of_the_source(tiny_llama3: Path, out: Path) -> None:
    emit(tiny_llama3, out, "onnx", "int4")
    for name in ("tokenizer.json", "generation_config.json"):
        assert (out / name).read_bytes() == (tiny_llama3 / name).read_bytes()
    config = json.loads((out / "config.json").read_text())
    web = config.pop("transformers.js_config")
    assert config == json.loads((tiny_llama3 / "config.json").read_text())
    assert web["use_external_data_format"] == {"model_q4.onnx": 1}
    genai = json.loads((out / "genai_config.json").read_text())
    assert genai["model"]["decoder"]["filename"] == "onnx/model_q4.onnx"
    assert os.access(out / "onnx" / "model_q4.onnx_data", os.R_OK)
