"""The report: one verdict, the table, the card, and JSON that says the same."""

from __future__ import annotations

import dataclasses
import json

import pytest

from exporter.findings import Findings, Limits
from exporter.report import Report
from exporter.report.card import front_matter, model_card
from exporter.report.report import Provenance
from exporter.report.table import markdown_table, plain_table, verdict_text
from runtime.artifact import Artifact, FileRecord
from runtime.budget import Line, at_least, at_most
from runtime.measurement import Measurement, MemorySplit, ResidentKinds, RunOptions, Stat, Trials
from targets.device import load_device
from targets.drift import Parity
from targets.encoder_drift import EncoderDrift
from targets.facts import ModelFacts

SIZE = at_most("size", 105_454_496, None, "105.5 MB")
PEAK = at_most("peak memory", 223_800_000, 300_000_000, "223.8 MB", "300.0 MB")
SLOW = at_least("decode", 8.0, 10.0, "8.0 tokens/s", "10.0 tokens/s")


def stat(value):
    return Stat.of([value])


MEASUREMENT = Measurement(
    load_s=0.25, first_token_ms=stat(360.0), prefill_tokens_per_s=stat(178.0), decode_tokens_per_s=stat(8.0),
    peak_rss_bytes=223_800_000, memory=MemorySplit(105_000_000, 47_000_000, 30_000_000, 41_800_000),
    second_turn_growth_bytes=1_000_000, major_page_faults=0, options=RunOptions(threads=2), trials=Trials(count=3),
    host={"cpu": "Test CPU", "os": "Linux 6"}, command="packlight measure",
)  # fmt: skip


@pytest.fixture
def make(tmp_path):
    def report(*lines, **fields):
        artifact = Artifact(
            tmp_path, "gguf", "Tiny-Q4_K_M.gguf", "Tiny", "q4_k_m", 134_515_008, 6.165, 8192, "./tiny",
            files={"Tiny-Q4_K_M.gguf": FileRecord(105_454_496, "ab" * 32)},
        )  # fmt: skip
        where_from = Provenance("packlight export ./tiny", "2026-11-22T20:00:00Z", "0.1.0", {"cpu": "Test CPU"})
        return Report(artifact, lines, where_from, **fields)

    return report


def test_verdicts(make):
    assert (make(SIZE, PEAK).verdict, make(SIZE, PEAK).exit_status) == ("met", 0)
    assert (make(PEAK, SLOW).verdict, make(PEAK, SLOW).exit_status) == ("failed", 1)
    assert make(SIZE, skipped=("measured",)).verdict == "not measured"
    assert make(SIZE, skipped=("verified", "measured")).verdict == "not verified, not measured"
    assert make(SLOW, skipped=("verified",)).verdict == "failed"


def test_json_says_the_same(make):
    document = json.loads(json.dumps(make(SIZE, PEAK, SLOW, measurement=MEASUREMENT).to_json()))
    assert document["verdict"] == "failed"
    assert document["failing"] == ["decode"]
    assert document["lines"][1] == {
        "name": "peak memory", "value": 223_800_000, "limit": 300_000_000, "ok": True, "text": "223.8 MB",
        "limit_text": "≤ 300.0 MB",
    }  # fmt: skip
    assert document["artifact"]["files"]["Tiny-Q4_K_M.gguf"]["bytes"] == 105_454_496
    assert Measurement.from_json(document["measurement"]) == MEASUREMENT
    assert document["drift"] is None


def test_the_manifest_names_the_failing_lines(make):
    extra = make(SIZE, SLOW).manifest_extra()
    assert extra["verdict"] == "failed"
    assert extra["failing"] == [
        {"name": "decode", "value": 8.0, "limit": 10.0, "ok": False, "text": "8.0 tokens/s",
         "limit_text": "≥ 10.0 tokens/s"}
    ]  # fmt: skip


def test_tables():
    odd = Line("token ids", "2 differ,\n the first: 'a|b'", "equal", ok=False, value=2, limit=0)
    assert plain_table([SIZE, PEAK, odd]).splitlines() == [
        "quantity     measured                    budget      ok",
        "size         105.5 MB",
        "peak memory  223.8 MB                    ≤ 300.0 MB  yes",
        "token ids    2 differ, the first: 'a|b'  equal       NO",
    ]
    assert markdown_table([odd]).splitlines()[2] == "| token ids | 2 differ, the first: 'a\\|b' | equal | NO |"


def test_the_verdict_line(make):
    assert verdict_text(make(SIZE)) == "verdict: met"
    assert verdict_text(make(PEAK, SLOW)) == "verdict: failed: decode 8.0 tokens/s (budget ≥ 10.0 tokens/s)"


def test_front_matter_keeps_what_holds_for_a_copy():
    readme = (
        "---\nlicense: apache-2.0\nlanguage:\n- en\n- fr\nlibrary_name: transformers\nbase_model: org/base\n---\n# X\n"
    )
    assert front_matter(readme) == {
        "license": "license: apache-2.0",
        "language": "language:\n- en\n- fr",
        "base_model": "base_model: org/base",
    }
    assert front_matter("# No front matter\nlicense: mit\n") == {}
    assert front_matter("---\nlicense: mit\nnever closed\n") == {}


def test_a_card_of_a_measured_artifact(make, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\nbase_model: org/base\n---\n", encoding="utf-8")
    facts = ModelFacts("huggingface", tmp_path, "Tiny", "./tiny", {}, {})
    report = make(SIZE, PEAK, measurement=MEASUREMENT, device=load_device("raspberry-pi-5"), skipped=("verified",))
    card = model_card(report, facts, 2048)
    assert card.startswith(
        "---\nlicense: mit\nbase_model: org/base\nquantized_by: packlight\n"
        "tags:\n- gguf\n- q4_k_m\n- packlight\n---\n# Tiny, GGUF Q4_K_M\n"
    )
    for expected in (
        "Verdict: **not verified** for Raspberry Pi 5 (8 GB).",
        "| peak memory | 223.8 MB | ≤ 300.0 MB | yes |",
        "measured on this host: Test CPU, 2 threads,",
        "They are not figures of the Raspberry Pi 5 (8 GB).",
        "| KV cache | 47.0 MB |",
        "Drift from the source was not verified.",
        "llama-cli -m Tiny-Q4_K_M.gguf -c 2048",
        "ollama create my-model -f Modelfile",
        'Llama("Tiny-Q4_K_M.gguf", n_ctx=2048)',
        "| command | `packlight export ./tiny` |",
        f"| sha256 of Tiny-Q4_K_M.gguf | `{'ab' * 32}` |",
    ):
        assert expected in card


def test_what_an_engines_tools_did_not_measure_is_not_named(make, tmp_path):
    """Nothing is open at the end of a tool: its memory was read while it ran."""
    facts = ModelFacts("huggingface", tmp_path, "Tiny", "./tiny", {}, {})
    kinds = ResidentKinds(100_000_000, 118_000_000, 0)
    here = dataclasses.replace(MEASUREMENT, resident=kinds)
    phone = dataclasses.replace(here, load_s=None, memory=None, host={"cpu": "F1", "on": "adb:X"})
    for measurement, what, when in (
        (here, "emory, load and speed were measured on this host", "at the end"),
        (phone, "emory and speed were measured on adb:X", "at the highest reading"),
    ):
        card = model_card(make(SIZE, measurement=measurement), facts, 2048)
        assert f"M{what}: " in card
        assert f"| {when}: of mapped files | 118.0 MB |" in card
        limits = Limits(device=load_device("raspberry-pi-5"))
        report = Findings(measurement=measurement).report(make().artifact, limits, make().provenance)
        assert any(note.startswith(f"m{what}") for note in report.notes)


def test_a_card_of_a_hub_model_without_a_card_of_its_own(make, tmp_path):
    card = model_card(make(SIZE), ModelFacts("huggingface", tmp_path, "Tiny", "org/Tiny", {}, {}), 512)
    assert card.startswith("---\nbase_model: org/Tiny\nbase_model_relation: quantized\nquantized_by: packlight\n")
    assert "Memory, load and speed were not measured." in card


def onnx_card(report, entry, task, directory, **fields):
    contract = {"engine": "ONNX Runtime", "task": task}
    artifact = dataclasses.replace(report.artifact, format="onnx", entry=entry, quant="int8", contract=contract)
    facts = ModelFacts("huggingface", directory, "Tiny", "./tiny", {}, {})
    return model_card(dataclasses.replace(report, artifact=artifact, **fields), facts, 512)


def test_a_card_of_an_encoder(make, tmp_path):
    from support.tiny_encoders import write_pooling

    measured = dataclasses.replace(
        MEASUREMENT, first_token_ms=None, decode_tokens_per_s=None, latency_ms=stat(3.0), trials=Trials(128, 0, 3)
    )
    drift = EncoderDrift(
        0.99, 0.9, 0.99, 1.0, 0.99, None, 0.1, 8, 99, "feature-extraction", 40, "a text", "0",
        Parity(1, (), True, None, None, None), "an engine", "a source",
    )  # fmt: skip
    write_pooling(tmp_path, "cls", normalize=False)
    more = {"measurement": measured, "drift": drift}
    card = onnx_card(make(SIZE), "onnx/model_quantized.onnx", "feature-extraction", tmp_path, **more)
    for expected in (
        "3 trials of a text of 128 tokens.",
        "| growth over a second pass of texts | 1.0 MB |",
        "on 8 texts of up to 40 tokens, cut from a text\n(an engine against a source)",
        'onnxruntime.InferenceSession("onnx/model_quantized.onnx"',
        'session.run(["sentence_embedding"], feeds)',
        f'pipeline("feature-extraction", "{tmp_path.name}", {{ dtype: "q8" }})',
        '{ pooling: "cls", normalize: false }',
    ):
        assert expected in card
    for absent in ("KV cache", "generated tokens", "llama", "Modelfile", "genai"):
        assert absent not in card


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("model", "fp32"), ("model_fp16", "fp16"), ("model_int8", "int8"), ("model_q4", "q4"), ("model_quantized", "q8")],
)
def test_a_card_of_a_decoder_in_onnx_names_the_three_clients(make, tmp_path, name, dtype):
    card = onnx_card(make(SIZE), f"onnx/{name}.onnx", "text-generation", tmp_path)
    for expected in (f'InferenceSession("onnx/{name}.onnx"', 'onnxruntime_genai.Model(".")', f'{{ dtype: "{dtype}" }}'):
        assert expected in card
    assert "ollama" not in card
    compiled = onnx_card(make(SIZE), f"onnx/{name}.ort", "text-generation", tmp_path)
    assert f'InferenceSession("onnx/{name}.ort"' in compiled
    assert "transformers.js" not in compiled


def test_the_python_of_the_cards_is_python(make, tmp_path):
    import ast

    for task in ("text-generation", "feature-extraction", "text-classification"):
        card = onnx_card(make(SIZE), "onnx/model.onnx", task, tmp_path)
        blocks = [part.split("```")[0] for part in card.split("```python\n")[1:]]
        assert blocks
        for block in blocks:
            ast.parse(block)
