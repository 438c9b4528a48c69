"""Exports that compress first: judged against the original model, and nothing left between."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from exporter.by_recipe import NamedRecipe
from exporter.pipeline import ExportRequest, export
from exporter.progress import SilentReporter
from exporter.recipe import Recipe
from exporter.verify import VerifyOptions
from runtime.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

QUANTIZE = {"step": "quantize", "preset": "q4_0", "method": "rtn"}
TEXT = {"source": "help", "chunks": 4, "tokens": 64}


def by(**content: object) -> NamedRecipe:
    return NamedRecipe(
        Recipe.model_validate({"format": "gguf", "calibration": TEXT, "steps": [QUANTIZE], **content}), "mine"
    )


def test_the_file_is_the_recipes_and_judged_against_the_original(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    verify = VerifyOptions(chunks=1, context=64)
    request = ExportRequest(str(tiny_llama), out, "gguf", None, verify=verify, measure=False, recipe=by())
    report = export(request, SilentReporter())
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["quant"] == "q4_0"
    compression = manifest["contract"]["compression"]
    assert compression["steps"][0]["options"]["method"] == "rtn"
    assert compression["steps"][0]["n_bytes"] == (out / manifest["entry"]).stat().st_size
    assert any("compressed by the recipe mine: quantize q4_0 rtn" in note for note in report.notes)
    # Against the directory that was packed there would be no drift but the engine's own.
    drift = {line.name: line.value for line in report.lines}["KL divergence"]
    assert drift > 0.5 * compression["steps"][0]["mean_kl"] > 0.001
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_the_recipe_says_is_not_said_twice(tiny_llama: Path, tmp_path: Path) -> None:
    def run(quant: str | None, format_name: str) -> None:
        request = ExportRequest(str(tiny_llama), tmp_path / "out", format_name, quant, recipe=by(), measure=False)
        export(request, SilentReporter())

    with pytest.raises(UserError, match="--recipe mine: quantizes to q4_0 itself; leave out --quant"):
        run("q8_0", "gguf")
    with pytest.raises(UserError, match="--recipe mine: is for gguf; leave out --format onnx"):
        run(None, "onnx")
    assert list(tmp_path.iterdir()) == []
