"""The job of the README on the real model: export within a budget, then every other verb on what it made."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from support.chromium import look
from support.command_line import packlight
from support.markup import parsed

from runtime.artifact import damage, open_artifact

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

NAME = "SmolLM2-135M-Instruct-Q4_K_M.gguf"


@pytest.fixture(scope="module")
def exported(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("main-job") / "out"
    ran = packlight(
        "export", smollm2_dir, "--device", "raspberry-pi-5", "--format", "gguf", "--quant", "q4_k_m",
        "--context", "2048", "--max-memory", "300MB", "--min-speed", "1", "--trials", "2", "-o", out, "--json",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return out, json.loads(ran.stdout)


def test_the_directory_is_whole(exported: tuple[Path, dict[str, Any]]) -> None:
    out, _ = exported
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [NAME, "Modelfile", "README.md", "manifest.json", "report.html", "report.json"]
    )
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    artifact = open_artifact(out)
    assert damage(artifact) == []
    assert artifact.entry == NAME
    # 134.5 million weights at the fallback types of rows of 576; llama-quantize's own file has the same bits
    assert artifact.n_params == 134515008
    assert artifact.bits_per_weight == pytest.approx(6.165, abs=0.001)
    assert f"FROM ./{NAME}" in (out / "Modelfile").read_text()


def test_the_report_has_every_quantity_and_one_verdict(exported: tuple[Path, dict[str, Any]]) -> None:
    out, printed = exported
    report = json.loads((out / "report.json").read_text())
    assert report["verdict"] == printed["verdict"] == "met"
    lines = {line["name"]: line for line in report["lines"]}
    for name in ("size", "bits per weight", "peak memory", "load", "first token", "prefill", "decode",
                 "KL divergence", "perplexity ratio", "same top-1"):  # fmt: skip
        assert lines[name]["value"] >= 0, name
    assert lines["peak memory"]["limit"] == 300_000_000
    # mapped weights, a context of 2048 and an interpreter: more than the file, less than the budget
    assert 105_000_000 < lines["peak memory"]["value"] < 300_000_000
    assert not any(line["ok"] is False for line in report["lines"])


def test_a_budget_that_is_missed_is_status_1_and_the_artifact_is_kept(smollm2_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = packlight(
        "export", smollm2_dir, "--format", "gguf", "--quant", "q4_k_m", "--max-size", "100MB", "--no-verify", "-o", out,
        "--trials", "1",
    )  # fmt: skip
    assert ran.returncode == 1, ran.stderr
    assert (out / NAME).is_file()
    assert json.loads((out / "manifest.json").read_text())["verdict"] == "failed"


def test_verify_measure_and_check_on_the_exported_directory(
    exported: tuple[Path, dict[str, Any]], smollm2_dir: Path
) -> None:
    out, _ = exported
    verified = packlight("verify", out, "--against", smollm2_dir, "--chunks", "2", "--json")
    assert verified.returncode == 0, verified.stderr
    short = ("--trials", "1", "--context", "512")  # a longer one was measured by the export
    measured = packlight("measure", out, *short, "--json")
    assert measured.returncode == 0, measured.stderr
    fits = packlight("check", out, "--max-memory", "400MB", *short, "--json")
    assert fits.returncode == 0, fits.stderr
    tight = packlight("check", out, "--max-memory", "60MB", *short)
    assert tight.returncode == 1, tight.stderr
    assert "does not fit: needed" in tight.stdout + tight.stderr
    assert "Traceback" not in tight.stderr


def test_the_page_of_the_export_and_one_beside_another(exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, report = exported
    page = out / "report.html"
    text = parsed(page.read_text(encoding="utf-8")).text
    for expected in ("Met for the Raspberry Pi 5", "blk.29.ffn_down", "at positions 256 to 510 of the context", "Q4_K"):
        assert expected in text, expected
    assert f"{report['drift']['mean_kl']:.4g} nats" in text
    assert page.stat().st_size < 100_000  # what docs/how-to/report.md says
    kept, beside = tmp_path / "kept.json", tmp_path / "page.html"
    kept.write_text(json.dumps(report), encoding="utf-8")
    ran = packlight("report", out, kept, "-o", beside)
    assert (ran.returncode, ran.stdout) == (0, f"written: {beside}\n")
    for one in (page, beside):
        seen = look(one, tmp_path / "room", width=360)
        assert (seen.scroll_width, seen.wide, seen.said) == (360, "", ())


@pytest.mark.parametrize(
    ("question", "answer"),
    [("Who wrote Romeo and Juliet?", "Shakespeare"), ("What is the chemical formula of water?", "H2O")],
)
def test_llama_completion_runs_the_file_and_answers(
    question: str, answer: str, exported: tuple[Path, dict[str, Any]]
) -> None:
    from benchmarks.tools import tool

    out, _ = exported
    ran = subprocess.run(
        [tool("llama-completion"), "-m", out / NAME, "-p", question, "-n", "48", "--temp", "0",
         "-t", "2", "--jinja", "-cnv", "-st", "--no-display-prompt"],
        capture_output=True, text=True, timeout=300, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert answer in ran.stdout


def test_a_gguf_is_a_model_too(exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, _ = exported
    again = tmp_path / "again"
    ran = packlight("export", out / NAME, "--format", "gguf", "--quant", "q8_0", "--no-measure", "--chunks", "2",
                    "-o", again, "--json")  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = {line["name"]: line["ok"] for line in json.loads(ran.stdout)["lines"]}
    assert {name: lines[name] for name in ("token ids", "BOS", "chat template", "KL divergence")} == {
        "token ids": True, "BOS": True, "chat template": True, "KL divergence": True,
    }  # fmt: skip
    assert (again / "SmolLM2-135M-Instruct-Q8_0.gguf").is_file()
