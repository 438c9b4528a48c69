"""A sentence encoder from end to end on the command line: the real MiniLM in five precisions, one in every verb."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from support.command_line import packlight
from support.other_models import with_one_matrix_negated

from benchmarks.models import minilm
from runtime.artifact import damage, open_artifact

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.slow

# File, most bytes of the graph and its weights (22.56 million of them), and the least cosine to the source.
QUANTS = {
    "fp32": ("model.onnx", 91_000_000, 0.999999),
    "fp16": ("model_fp16.onnx", 46_000_000, 0.9999),
    "dynamic-int8": ("model_quantized.onnx", 26_000_000, 0.99),
    "static-int8": ("model_quantized.onnx", 26_000_000, 0.99),
    "int8": ("model_int8.onnx", 26_000_000, 0.99),
}
LINES = ("size", "bits per weight", "peak memory", "load", "latency", "cosine", "cosine, worst text",
         "rank correlation", "token ids", "special tokens")  # fmt: skip


@pytest.fixture(scope="module")
def source() -> Path:
    return minilm()


@pytest.fixture(scope="module")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, Any]]]:
    """The directory of a precision and what its export said, made once each."""

    @cache
    def make(quant: str) -> tuple[Path, dict[str, Any]]:
        out = tmp_path_factory.mktemp("encoder-job") / "out"
        ran = packlight("export", source, "--format", "onnx", "--quant", quant, "--trials", "1", "-o", out, "--json")
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return out, json.loads(ran.stdout)

    return make


@pytest.mark.parametrize("quant", QUANTS)
def test_the_directory_is_whole(quant: str, exported: Callable[[str], tuple[Path, dict[str, Any]]]) -> None:
    out, _ = exported(quant)
    graph, most, _ = QUANTS[quant]
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {name for name in files if name.startswith("onnx/")} == {f"onnx/{graph}", f"onnx/{graph}_data"}
    assert {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "manifest.json",
        "report.html",
        "report.json",
        "README.md",
    } < files
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    artifact = open_artifact(out)
    assert damage(artifact) == []
    assert artifact.entry == f"onnx/{graph}"
    assert artifact.model_bytes < most
    # 22,713,216 weights without the pooler, which no sentence embedding reads
    assert artifact.n_params == 22_565_376
    assert artifact.contract["outputs"] == ["last_hidden_state", "sentence_embedding"]


@pytest.mark.parametrize("quant", QUANTS)
def test_the_report_has_every_quantity_and_the_embedding_is_near(
    quant: str, exported: Callable[[str], tuple[Path, dict[str, Any]]]
) -> None:
    out, printed = exported(quant)
    report = json.loads((out / "report.json").read_text())
    assert report["verdict"] == printed["verdict"]
    lines = {line["name"]: line for line in report["lines"]}
    assert set(LINES) <= set(lines), sorted(lines)
    assert lines["cosine"]["value"] >= QUANTS[quant][2]
    assert lines["cosine, worst text"]["value"] >= 0.98
    assert lines["rank correlation"]["value"] >= 0.99
    assert (lines["token ids"]["value"], lines["special tokens"]["value"]) == (0, 0)
    assert not any(line["ok"] is False for line in report["lines"])


def test_verify_measure_and_check_on_the_exported_directory(
    exported: Callable[[str], tuple[Path, dict[str, Any]]], source: Path
) -> None:
    # Every export has verified and measured its own: the verbs are asked on one.
    out, _ = exported("dynamic-int8")
    verified = packlight("verify", out, "--against", source, "--chunks", "2", "--json")
    assert verified.returncode == 0, verified.stderr
    assert {line["name"] for line in json.loads(verified.stdout)["lines"]} >= {"cosine", "token ids"}
    measured = packlight("measure", out, "--trials", "1", "--json")
    assert measured.returncode == 0, measured.stderr
    fits = packlight("check", out, "--max-memory", "600MB", "--trials", "1", "--json")
    assert fits.returncode == 0, fits.stderr
    tight = packlight("check", out, "--max-memory", "30MB", "--trials", "1")
    assert tight.returncode == 1, tight.stderr
    assert "Traceback" not in tight.stderr


def test_another_model_is_not_taken_for_the_source(
    exported: Callable[[str], tuple[Path, dict[str, Any]]], source: Path, tmp_path: Path
) -> None:
    """One layer's weights of the source scaled: verify on the same directory says so and is status 1."""
    out, _ = exported("dynamic-int8")
    other = tmp_path / "other"
    with_one_matrix_negated(source, other)
    verified = packlight("verify", out, "--against", other, "--chunks", "2", "--json")
    assert verified.returncode == 1, verified.stdout + verified.stderr
    assert {line["name"] for line in json.loads(verified.stdout)["lines"] if line["ok"] is False} >= {"cosine"}
