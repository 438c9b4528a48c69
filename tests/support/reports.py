"""Reports as `packlight` writes them, of models that were never run, and directories that hold one."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from exporter.report.report import Provenance, Report
from runtime.artifact import Artifact, FileRecord, record, write_manifest
from runtime.budget import at_least, at_most
from runtime.measurement import Measurement, MemorySplit, ResidentKinds, RunOptions, Stat, Trials
from targets.device import load_device
from targets.drift import Drift, Parity, SpanKl
from targets.encoder_drift import EncoderDrift

GOLDEN = Path(__file__).parents[1] / "golden" / "golden-q4_k_m.gguf"
PARITY = Parity(52, (), True, None, True, None)
MEASUREMENT = Measurement(
    load_s=0.25, first_token_ms=Stat.of([350.0, 360.0, 420.0]),
    prefill_tokens_per_s=Stat.of([170.0, 178.0, 180.0], higher_is_better=True),
    decode_tokens_per_s=Stat.of([8.0, 8.5, 9.0], higher_is_better=True), peak_rss_bytes=220_000_000,
    memory=MemorySplit(105_000_000, 47_000_000, 26_000_000, 42_000_000), second_turn_growth_bytes=1_000_000,
    major_page_faults=0, options=RunOptions(threads=2), trials=Trials(512, 64, 3),
    host={"cpu": "Test CPU", "os": "Linux 6"}, command="packlight measure",
    resident=ResidentKinds(100_000_000, 118_000_000, 0, 210_000_000),
)  # fmt: skip
DRIFT = Drift(
    mean_kl=0.05, p99_kl=0.3, perplexity=11.0, source_perplexity=10.0, perplexity_ratio=1.1, same_top1=0.9,
    n_tokens_scored=2040, n_chunks=8, chunk_tokens=512, text_name="a text", text_sha256="0" * 64, parity=PARITY,
    engine="an engine", reference="a source", kl_by_position=(SpanKl(256, 382, 0.04), SpanKl(383, 510, 0.06)),
)  # fmt: skip
ENCODER_DRIFT = EncoderDrift(
    0.99, 0.95, 0.98, 1.0, 0.97, None, 0.1, 8, 99, "feature-extraction", 40, "a text", "0" * 64, PARITY, "an engine",
    "a source",
)  # fmt: skip
TIMELINE = [
    {"seconds": 0.0, "rss_bytes": 40_000_000, "anonymous_bytes": 20_000_000, "phase": "load"},
    {"seconds": 0.5, "rss_bytes": 150_000_000, "anonymous_bytes": 50_000_000, "phase": "load"},
    {"seconds": 1.0, "rss_bytes": 219_000_000, "anonymous_bytes": None, "phase": "warm-up"},
    {"seconds": 4.0, "rss_bytes": 210_000_000, "anonymous_bytes": 90_000_000, "phase": "trial 1"},
]
SUSTAINED = {
    "seconds": 20.0, "tokens": 400, "energy_j": 100.0, "energy_source": "a meter",
    "windows": [
        {"seconds": 10.0, "tokens_per_s": 22.0, "temperature_c": 51.5, "frequency_hz": 2_400_000_000},
        {"seconds": 20.0, "tokens_per_s": 18.0, "temperature_c": None, "frequency_hz": None},
    ],
}  # fmt: skip


def artifact(root: Path, **changes: Any) -> Artifact:
    """An artifact that is nowhere on disk."""
    one = Artifact(
        root, "gguf", "Tiny-Q4_K_M.gguf", "Tiny", "q4_k_m", 134_515_008, 6.165, 8192, "./tiny",
        files={"Tiny-Q4_K_M.gguf": FileRecord(105_454_496, "ab" * 32)},
    )  # fmt: skip
    return dataclasses.replace(one, **changes)


def document(root: Path, *, kl: float = 0.05, peak: int = 220_000_000, **changes: Any) -> dict[str, Any]:
    """The report of a decoder with every part; changes: to its artifact."""
    lines = (
        at_most("size", 105_454_496, None, "105.5 MB"),
        at_most("peak memory", peak, 300_000_000, f"{peak / 1e6:.1f} MB", "300.0 MB"),
        at_least("decode", 8.5, 10.0, "8.5 tokens/s", "10.0 tokens/s"),
    )
    where_from = Provenance("packlight export ./tiny", "2026-11-22T20:00:00Z", "0.1.0", {"cpu": "Test CPU"})
    measured = dataclasses.replace(MEASUREMENT, peak_rss_bytes=peak)
    drift = dataclasses.replace(DRIFT, mean_kl=kl)
    report = Report(
        artifact(root, **changes), lines, where_from, load_device("raspberry-pi-5"), measured, drift, notes=("a note",)
    )
    found: dict[str, Any] = json.loads(json.dumps(report.to_json()))
    found["measurement"] |= {"timeline": TIMELINE, "sustained": SUSTAINED}
    return found


def encoder_document(root: Path, **changes: Any) -> dict[str, Any]:
    """The report of an encoder for embeddings."""
    contract = {"engine": "ONNX Runtime", "task": "feature-extraction"}
    found = document(root, **{"format": "onnx", "entry": "onnx/model.onnx", "contract": contract, **changes})
    measured = dataclasses.replace(
        MEASUREMENT, first_token_ms=None, decode_tokens_per_s=None, latency_ms=Stat.of([3.0, 3.5]), trials=Trials(128)
    )
    return found | {"measurement": measured.to_json(), "drift": json.loads(json.dumps(ENCODER_DRIFT.to_json()))}


def exported(root: Path, **changes: Any) -> Path:
    """A directory as `export` leaves it: a real file, its manifest, its report."""
    root.mkdir(parents=True)
    shutil.copyfile(GOLDEN, root / GOLDEN.name)
    files = {GOLDEN.name: record(root / GOLDEN.name)}
    report = document(root, **{"entry": GOLDEN.name, "files": files, **changes})
    write_manifest(artifact(root, entry=GOLDEN.name, files=files))
    (root / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return root
