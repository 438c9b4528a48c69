"""`python -m runtime` with nothing of packlight beside it, as it is copied to a device."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.measurement import Measurement

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "golden" / "golden-q4_k_m.gguf"


@pytest.fixture(scope="module")
def device(tmp_path_factory) -> Path:
    """A directory with runtime/ alone; what a device does not have fails to be imported."""
    directory = tmp_path_factory.mktemp("device")
    shutil.copytree(ROOT / "runtime", directory / "runtime", ignore=shutil.ignore_patterns("__pycache__"))
    for absent in ("exporter", "targets", "torch", "transformers", "gguf", "typer", "rich", "pydantic", "tokenizers"):
        (directory / f"{absent}.py").write_text(f"raise ImportError('{absent} is not on the device')\n")
    return directory


def python(device: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(device)}
    command = [sys.executable, "-P", *arguments]
    return subprocess.run(command, cwd=device.parent, env=environment, capture_output=True, text=True, check=False)


def on_device(device: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return python(device, "-m", "runtime", *arguments)


def test_it_is_the_copy_that_runs(device):
    found = python(device, "-c", "import runtime; print(runtime.__file__)")
    assert found.stdout.strip() == str(device / "runtime" / "__init__.py")


def test_measurement_as_json(device):
    ran = on_device(device, GOLDEN, "--json", "--trials", "1", "--context", "64", "--threads", "1")
    assert (ran.returncode, ran.stderr) == (0, "")
    found = Measurement.from_json(json.loads(ran.stdout))
    assert (found.options.context, found.options.threads, found.trials.count) == (64, 1, 1)
    assert found.peak_rss_bytes > GOLDEN.stat().st_size
    assert found.decode_tokens_per_s.median > 0
    assert found.command.startswith("python -m runtime ")


def test_text_and_a_cap_that_is_wide(device):
    ran = on_device(device, GOLDEN, "--trials", "1", "--context", "64", "--max-memory", "2GB")
    assert (ran.returncode, ran.stderr) == (0, "")
    names = [line.split("  ")[0] for line in ran.stdout.splitlines()]
    assert names[:4] == ["size", "peak memory", "of it mapped weights", "load"]
    # Another process that runs the same file keeps it in the page cache, and the line says so.
    assert names[4].startswith(("first token, cold file", "first token, file in cache"))
    assert names[5] == "first token"
    assert ran.stdout.splitlines()[-1].startswith("fits: peak ")


def test_a_full_context_turns_and_a_load_that_goes_on(device):
    more = ("--fill-context", "--turns", "5", "--sustained", "1s", "--no-mmap")
    ran = on_device(device, GOLDEN, "--trials", "2", "--context", "64", *more)
    assert (ran.returncode, ran.stderr) == (0, "")
    shown = dict(line.split("  ", 1) for line in ran.stdout.splitlines())
    assert shown["of it mapped weights"].strip() == "none"
    assert {"load, file in cache", "decode, full context", "growth over 5 turns", "sustained"} <= shown.keys()
    assert "first tenth" in shown["sustained"]


def test_a_cap_that_is_too_small_is_status_1(device):
    ran = on_device(device, GOLDEN, "--trials", "1", "--context", "64", "--max-memory", "12MB", "--json")
    verdict = json.loads(ran.stdout)
    assert (ran.returncode, verdict["fits"]) == (1, False)
    assert verdict["needed_bytes"] > 12_000_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: ARTIFACT"),
        (["no-such.gguf"], "no-such.gguf: no such file or directory"),
        ([str(GOLDEN), "--max-memory", "much"], "'much' is not a size"),
        ([str(GOLDEN), "--sustained", "long"], "'long' is not a duration"),
        ([str(GOLDEN), "--turns", "1"], "1 turns show no growth: use --turns 2 or more"),
        ([str(GOLDEN), "--context", "2"], "a context of 2 tokens is too small"),
        ([str(GOLDEN), "--trials", "x"], "argument --trials: invalid int value"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(device, arguments, said):
    ran = on_device(device, *arguments)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: ")
    assert said in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_a_file_that_the_engine_refuses_is_status_1(device, tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"hello")
    ran = on_device(device, bad, "--trials", "1")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("error: ")
    assert len(ran.stderr.splitlines()) == 1
