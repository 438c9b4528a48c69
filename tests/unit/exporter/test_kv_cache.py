"""The type of the KV cache: what it is chosen by, and that drift and memory are those that it gives."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from exporter.by_recipe import NamedRecipe
from exporter.compress.job import CompressRequest, compress
from exporter.findings import Limits, Running
from exporter.pipeline import ExportRequest, Source, export, measure_artifact, verify_artifact
from exporter.progress import SilentReporter
from exporter.recipe import Recipe
from exporter.report.modelfile import Chat, modelfile
from exporter.verify import VerifyOptions
from runtime.errors import UserError
from runtime.measurement import RunOptions, Trials

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exporter.report.report import Report

VERIFY = VerifyOptions(chunks=2, context=64, threads=2)
TRIALS = Trials(prompt_tokens=16, decode_tokens=4, count=1)


@pytest.fixture(scope="session")
def model(tiny_model_dir: Callable[..., Path]) -> Path:
    """Heads of 32, a block of a quantized cache."""
    return tiny_model_dir("llama", hidden=128)


def recipe(kv_cache: str | None) -> Recipe:
    text = {"source": "help", "chunks": 2, "tokens": 64}
    steps = [{"step": "quantize", "preset": "q8_0", "method": "rtn"}]
    return Recipe.model_validate({"format": "gguf", "calibration": text, "steps": steps, "kv_cache": kv_cache})


def exported(model: Path, out: Path, kv_type: str | None = None, by: Recipe | None = None, **more: Any) -> Report:
    named = NamedRecipe(by, "mine") if by is not None else None
    options = RunOptions(threads=2, context=128, kv_type=kv_type)
    request = ExportRequest(
        str(model), out, "gguf", None if by is not None else "q8_0", verify=VERIFY,
        running=Running(options, TRIALS),
        recipe=named, **more,
    )  # fmt: skip
    return export(request, SilentReporter())


def kl(report: Report) -> float:
    return {line.name: line.value for line in report.lines}["KL divergence"]


def kv_type(out: Path) -> str | None:
    found: str | None = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["contract"].get("kv_type")
    return found


def test_drift_and_memory_are_the_caches(model: Path, tmp_path: Path) -> None:
    plain = exported(model, tmp_path / "plain")
    coarse = exported(model, tmp_path / "coarse", kv_type="q4_0")
    assert kl(coarse) > 2 * kl(plain)
    assert plain.measurement is not None
    assert coarse.measurement is not None
    assert coarse.measurement.memory.kv_cache_bytes < plain.measurement.memory.kv_cache_bytes / 2
    assert (plain.measurement.options.kv_type, coarse.measurement.options.kv_type) == ("f16", "q4_0")
    assert (kv_type(tmp_path / "plain"), kv_type(tmp_path / "coarse")) == (None, "q4_0")


def test_the_recipe_says_it_once_for_all(model: Path, tmp_path: Path) -> None:
    at_once, directory, later, named = (tmp_path / name for name in ("at-once", "directory", "later", "named"))
    first = exported(model, at_once, by=recipe("q4_0"), measure=False)
    compress(CompressRequest(str(model), directory, recipe("q4_0"), "mine", 2), SilentReporter())
    exported(directory, later, measure=False)
    exported(directory, named, kv_type="f16", measure=False)
    assert [kv_type(out) for out in (at_once, later, named)] == ["q4_0", "q4_0", "f16"]
    # Who has only the artifact verifies and measures it as it was made for, or as they say.
    again = verify_artifact(at_once, Source(str(model)), Limits(), VERIFY, "", SilentReporter())
    other = VerifyOptions(chunks=2, context=64, threads=2, kv_type="f16")
    finer = verify_artifact(at_once, Source(str(model)), Limits(), other, "", SilentReporter())
    assert kl(again) == pytest.approx(kl(first), rel=0.05)
    assert kl(finer) < kl(again) / 2
    options = RunOptions(threads=2, context=128)
    measured = measure_artifact(at_once, Limits(), Running(options, TRIALS), "", SilentReporter()).measurement
    assert measured is not None
    assert measured.options.kv_type == "q4_0"


def test_the_documents_say_how_to_run_it(model: Path, tmp_path: Path) -> None:
    exported(model, tmp_path / "out", by=recipe("q8_0"), measure=False)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert " -c 128 -fa on -ctk q8_0 -ctv q8_0\n```" in card
    assert "n_ctx=128, flash_attn=True, type_k=8, type_v=8)\n" in card
    first = (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8").splitlines()[0]
    assert first.endswith("start the server with OLLAMA_FLASH_ATTENTION=1 OLLAMA_KV_CACHE_TYPE=q8_0")
    assert "which Ollama does not have" in modelfile("a.gguf", 128, Chat(None, None, None), "q5_1")
    exported(model, tmp_path / "plain", measure=False)
    assert " -c 128\n```" in (tmp_path / "plain" / "README.md").read_text(encoding="utf-8")


def test_heads_have_to_fill_blocks(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="heads of 16 are no whole blocks of 32, which a KV cache of q8_0 is made of"):
        exported(tiny_llama, tmp_path / "out", by=recipe("q8_0"))
    assert list(tmp_path.iterdir()) == []


def test_only_llama_cpp_is_told(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kv_cache is for format gguf: the other formats fix the type in the file"):
        Recipe.model_validate({"steps": [{"step": "rotate"}], "kv_cache": "q8_0"})
    out = tmp_path / "out"
    request = ExportRequest(
        str(model), out, "onnx", "int8", running=Running(RunOptions(kv_type="q8_0")), verify=None, measure=False
    )
    export(request, SilentReporter())
    assert kv_type(out) is None
