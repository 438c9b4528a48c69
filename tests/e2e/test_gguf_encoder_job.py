"""A sentence encoder as GGUF from end to end on the command line: the real MiniLM in llama.cpp, in every verb."""

from __future__ import annotations

import json
import shutil
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

# Most bytes of the file (22.56 million weights; the tokenizer takes 0.6 MB), and the least cosine to the source, of all
# texts and of the worst.
QUANTS = {
    "f32": (91_500_000, 0.99999, 0.9999), "f16": (46_500_000, 0.99999, 0.9999), "q8_0": (25_500_000, 0.9995, 0.998),
}  # fmt: skip
LINES = ("size", "bits per weight", "peak memory", "load", "latency", "cosine", "cosine, worst text",
         "cosine of tokens", "rank correlation", "length of embeddings", "token ids", "special tokens")  # fmt: skip


@pytest.fixture(scope="module")
def source() -> Path:
    return minilm()


@pytest.fixture(scope="module")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, Any]]]:
    """The directory of a precision and what its export said, made once each."""

    @cache
    def make(quant: str) -> tuple[Path, dict[str, Any]]:
        out = tmp_path_factory.mktemp("gguf-encoder-job") / "out"
        options = ("--format", "gguf", "--quant", quant, "--trials", "1", "--chunks", "2")
        ran = packlight("export", source, *options, "-o", out, "--json")
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return out, json.loads(ran.stdout)

    return make


@pytest.mark.parametrize("quant", QUANTS)
def test_the_embedding_is_the_sources_and_every_quantity_is_there(
    quant: str, exported: Callable[[str], tuple[Path, dict[str, Any]]]
) -> None:
    out, report = exported(quant)
    artifact = open_artifact(out)
    assert damage(artifact) == []
    assert artifact.model_bytes < QUANTS[quant][0]
    assert artifact.n_params == 22_565_376
    assert {path.name for path in out.iterdir()} == {
        artifact.entry, "Modelfile", "README.md", "manifest.json", "report.html", "report.json",
    }  # fmt: skip
    lines = {line["name"]: line for line in report["lines"]}
    assert set(LINES) <= set(lines), sorted(lines)
    assert lines["cosine"]["value"] >= QUANTS[quant][1]
    assert lines["cosine, worst text"]["value"] >= QUANTS[quant][2]
    assert lines["rank correlation"]["value"] >= 0.999
    assert (lines["token ids"]["value"], lines["special tokens"]["value"]) == (0, 0)
    assert not any(line["ok"] is False for line in report["lines"])
    assert "llama-embedding -m" in (out / "README.md").read_text()


def test_measure_check_and_verify_of_the_bare_file(
    exported: Callable[[str], tuple[Path, dict[str, Any]]], source: Path, tmp_path: Path
) -> None:
    """Its own header says that it is an encoder's."""
    out, _ = exported("q8_0")
    bare = tmp_path / "m.gguf"
    shutil.copy(open_artifact(out).entry_path, bare)
    verified = packlight("verify", bare, "--against", source, "--chunks", "2", "--json")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert {line["name"] for line in json.loads(verified.stdout)["lines"]} >= {"cosine", "token ids"}
    fits = packlight("check", bare, "--max-memory", "400MB", "--trials", "1", "--json")
    assert fits.returncode == 0, fits.stdout + fits.stderr
    tight = packlight("check", bare, "--max-memory", "30MB", "--trials", "1")
    assert tight.returncode == 1, tight.stderr
    assert "Traceback" not in tight.stderr


def test_another_model_is_not_taken_for_the_source(
    exported: Callable[[str], tuple[Path, dict[str, Any]]], source: Path, tmp_path: Path
) -> None:
    out, _ = exported("q8_0")
    other = tmp_path / "other"
    with_one_matrix_negated(source, other)
    verified = packlight("verify", out, "--against", other, "--chunks", "2", "--json")
    assert verified.returncode == 1, verified.stdout + verified.stderr
    assert {line["name"] for line in json.loads(verified.stdout)["lines"] if line["ok"] is False} >= {"cosine"}


def test_a_plan_knows_the_bytes_and_the_memory_and_no_speed(
    exported: Callable[[str], tuple[Path, dict[str, Any]]], source: Path
) -> None:
    ran = packlight("plan", source, "--format", "gguf", "--quant", "q8_0", "--json")
    assert ran.returncode == 0, ran.stderr
    (row,) = json.loads(ran.stdout)["rows"]
    out, report = exported("q8_0")
    assert row["file_bytes"] == open_artifact(out).entry_path.stat().st_size
    assert row["peak_bytes"] == pytest.approx(report["measurement"]["peak_rss_bytes"], rel=0.1)
    assert (row["decode_tokens_per_s"], row["prefill_tokens_per_s"]) == (None, None)
