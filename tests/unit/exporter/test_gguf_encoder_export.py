"""Encoders as GGUF through the pipeline: judged, documented, planned."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from support.parity import emit, no_progress
from support.tiny_gguf_encoders import make_case

from exporter.checkpoint import resolve
from exporter.pipeline import ExportRequest, export
from exporter.plan import PlanRequest, plan
from exporter.progress import SilentReporter
from exporter.verify import VerifyOptions, verify
from runtime.budget import Budget
from runtime.measurement import RunOptions
from targets.encoder_drift import EncoderDrift, encoder_thresholds_for, judge_encoder
from targets.gguf.target import GgufTarget

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("case", ["bert-classifier", "nomic", "roberta", "xlm-roberta-ranker"])
def test_an_exact_file_is_judged_to_be_the_source(case: str, tmp_path: Path) -> None:
    directory = make_case(case, tmp_path / "model")
    (out := tmp_path / "out").mkdir()
    artifact = emit(directory, out)
    drift = verify(artifact, resolve(str(directory)), VerifyOptions(chunks=1, threads=1), no_progress)
    assert isinstance(drift, EncoderDrift)
    lines = judge_encoder(drift, encoder_thresholds_for(32.0))
    assert [str(line) for line in lines if line.ok is False] == []
    assert drift.parity.mismatches == ()
    assert drift.parity.bos


def test_a_file_with_another_layer_norm_is_not(tmp_path: Path) -> None:
    directory = make_case("bert", tmp_path / "model")
    (out := tmp_path / "out").mkdir()
    artifact = emit(directory, out)
    other = make_case("bert", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1.0}))
    drift = verify(artifact, resolve(str(other)), VerifyOptions(chunks=1, threads=1), no_progress)
    assert isinstance(drift, EncoderDrift)
    failed = {line.name for line in judge_encoder(drift, encoder_thresholds_for(32.0)) if line.ok is False}
    assert "cosine" in failed


def test_a_gguf_file_stands_for_the_source(tmp_path: Path) -> None:
    directory = make_case("bert", tmp_path / "model")
    for name in ("whole", "small"):
        (tmp_path / name).mkdir()
    source = emit(directory, tmp_path / "whole").entry_path
    small = emit(directory, tmp_path / "small", preset="q8_0")
    drift = verify(small, resolve(str(source)), VerifyOptions(chunks=1, threads=1), no_progress)
    assert isinstance(drift, EncoderDrift)
    assert [line for line in judge_encoder(drift, encoder_thresholds_for(8.5)) if line.ok is False] == []
    assert drift.mean_cosine is not None
    assert drift.mean_cosine < 1 - 1e-7
    assert drift.reference.startswith(source.name)


def exported(case: str, tmp_path: Path, **options: Any) -> Path:
    """The directory of an export that is neither verified nor measured."""
    directory = make_case(case, tmp_path / "model")
    request = ExportRequest(str(directory), tmp_path / "out", "gguf", None, measure=False, **options)
    export(request, SilentReporter())
    return tmp_path / "out"


def test_an_embedding_model_says_how_it_is_run(tmp_path: Path) -> None:
    out = exported("modernbert", tmp_path)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["quant"] == GgufTarget().default_quant(resolve(str(tmp_path / "model"))) == "q8_0"
    assert manifest["contract"]["task"] == "feature-extraction"
    assert manifest["contract"]["normalize"] is True
    assert (out / "Modelfile").read_text().startswith(f"FROM ./{manifest['entry']}\n# An encoder")
    card = (out / "README.md").read_text()
    assert f'llama-embedding -m {manifest["entry"]} -p "A text."\n' in card
    assert "n_ctx=64, n_batch=64, n_ubatch=64" in card
    assert "normalize=True" in card
    assert "llama-cli" not in card


@pytest.mark.parametrize(("case", "said"), [("modernbert", "normalize=True"), ("xlm-roberta-ranker", "--reranking")])
def test_a_gguf_of_an_encoder_is_a_source(case: str, said: str, tmp_path: Path) -> None:
    (source,) = exported(case, tmp_path).glob("*.gguf")
    out = tmp_path / "again"
    options = VerifyOptions(chunks=1, threads=1)
    report = export(ExportRequest(str(source), out, "gguf", "copy", measure=False, verify=options), SilentReporter())
    assert isinstance(report.drift, EncoderDrift)
    assert report.drift.reference.startswith(source.name)
    card = (out / "README.md").read_text()
    assert said in card
    assert "token, to be pooled" not in card


def test_a_classifier_has_no_modelfile_and_says_so(tmp_path: Path) -> None:
    out = exported("xlm-roberta-ranker", tmp_path, running=running(kv_type="q8_0"))
    assert not (out / "Modelfile").exists()
    report = json.loads((out / "report.json").read_text())
    assert any("Ollama classifies nothing" in note for note in report["notes"])
    assert "--reranking" in (out / "README.md").read_text()
    # it has no cache whose type could be recorded
    assert "kv_type" not in json.loads((out / "manifest.json").read_text())["contract"]


def running(**options: Any) -> Any:
    from exporter.findings import Running

    return Running(options=RunOptions(**options))


def test_a_plan_has_bytes_and_memory_and_no_speed(tmp_path: Path) -> None:
    directory = make_case("bert", tmp_path / "model")
    report = plan(PlanRequest(str(directory), Budget(), formats=["gguf"]))
    assert len(report.rows) > 20
    for row in report.rows:
        assert row.context == 64
        assert row.file_bytes > 0
        assert row.footprint is not None
        assert row.footprint.kv_cache_bytes == 0
        assert (row.decode_tokens_per_s, row.prefill_tokens_per_s) == (None, None)
