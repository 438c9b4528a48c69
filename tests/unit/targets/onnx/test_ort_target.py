from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from support.parity import OPTIONS, emit

from exporter.checkpoint import resolve
from runtime.sessions import open_session
from targets import get_target
from targets.base import EmitOptions
from targets.onnx import mobile
from targets.onnx.usability import PROVIDERS

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from runtime.artifact import Artifact


def logits(artifact: Artifact) -> np.ndarray:
    session = open_session(artifact, OPTIONS)
    try:
        return session.all_logits([5, 6, 7])
    finally:
        session.close()


def test_the_ort_file_answers_as_the_onnx_does_and_lies_alone(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "ort").mkdir()
    onnx = emit(tiny_llama, tmp_path / "onnx", "onnx", "int4")
    ort = emit(tiny_llama, tmp_path / "ort", "ort", "int4")
    np.testing.assert_array_equal(logits(ort), logits(onnx))
    assert [path.name for path in (tmp_path / "ort" / "onnx").iterdir()] == ["model_q4.ort"]
    assert not (tmp_path / "ort" / "genai_config.json").exists()
    assert "transformers.js_config" not in (tmp_path / "ort" / "config.json").read_text()
    text = (tmp_path / "ort" / "required_operators_and_types.config").read_text()
    assert "MatMulNBits" in text
    assert "GroupQueryAttention" in text
    assert "Conv" not in text
    assert [use["name"] for use in ort.contract["mobile_usability"]["providers"]] == list(PROVIDERS)


def test_there_is_no_fp16() -> None:
    assert "fp16" in get_target("onnx").presets()
    assert "fp16" not in get_target("ort").presets()


def test_what_the_format_cannot_hold_is_known_before_a_weight_is_read(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, target = resolve(str(tiny_llama)), get_target("ort")
    assert target.check(facts, EmitOptions("int4")) == []
    monkeypatch.setattr(mobile, "ORT_LIMIT_BYTES", 1000)
    (problem,) = target.check(facts, EmitOptions("int4"))
    assert "over the format's 2 GB" in str(problem)


def test_a_device_that_pins_its_engine_is_refused(tiny_llama: Path) -> None:
    (problem,) = get_target("ort").check(resolve(str(tiny_llama)), EmitOptions("int4", engine="1.30"))
    assert "an .ort needs the version that made it" in str(problem)


def test_an_older_engine_gets_an_older_opset_or_a_refusal(tiny_llama: Path, tmp_path: Path) -> None:
    facts, target = resolve(str(tiny_llama)), get_target("onnx")
    (problem,) = target.check(facts, EmitOptions("int4", engine="1.19"))
    assert "has ONNX Runtime 1.19, int4 needs 1.23" in str(problem)
    assert target.check(facts, EmitOptions("int4", engine="1.23")) == []
    artifact = target.emit(facts, EmitOptions("fp32", engine="1.20"), tmp_path, lambda *_: None)
    assert artifact.contract["opset"] == 21
    assert artifact.contract["minimum_onnxruntime"] == "1.20"
