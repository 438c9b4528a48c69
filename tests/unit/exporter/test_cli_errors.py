"""Errors as a user meets them: through the console script, on a tiny model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.parity import emit

from runtime.artifact import write_manifest


def packlight(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("packlight")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["export", "m", "-o", "x", "--context", "0"], "Invalid value for '--context'"),
        (["export", "m"], "Missing option '--out'"),
        (["export", "m", "-o", "x", "--max-memry", "1MB"], "No such option: --max-memry"),
        (["exprt"], "No such command 'exprt'"),
    ],
)
def test_a_usage_error_is_one_line_and_with_json_a_document(arguments: list[str], says: str) -> None:
    ran = packlight(*arguments, "--json")
    assert ran.returncode == 2
    assert len(ran.stderr.splitlines()) == 1
    assert ran.stderr.startswith(f"error: {says}")
    assert json.loads(ran.stdout)["exit_status"] == 2


def test_an_unknown_kv_type_is_refused_before_any_work(tiny_llama: Path, tmp_path: Path) -> None:
    ran = packlight("export", tiny_llama, "-o", tmp_path / "out", "--kv-type", "q8", "--quiet")
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: 'q8' is not a type of KV cache; known: f32")
    assert list(tmp_path.iterdir()) == []


def test_what_goes_wrong_after_the_conversion_keeps_the_file(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("too short")
    out = tmp_path / "out"
    ran = packlight(
        "export", tiny_llama, "-o", out, "--quant", "q8_0", "--no-measure", "--text", tmp_path / "short.txt"
    )
    assert ran.returncode == 1, ran.stderr
    assert "Traceback" not in ran.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["verdict"] == "failed"
    assert (out / manifest["entry"]).is_file()


def test_a_source_that_does_not_load_is_one_line(tiny_llama: Path, tmp_path: Path) -> None:
    artifact = emit(tiny_llama, tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(tiny_llama, broken)
    (broken / "tokenizer.json").write_text('{"model": ')
    ran = packlight("verify", artifact.entry_path, "--against", broken, "--quiet")
    assert ran.returncode == 2, ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert "transformers cannot load it" in ran.stderr


def test_verify_finds_a_file_that_is_not_the_one_of_the_manifest(tiny_llama: Path, tmp_path: Path) -> None:
    artifact = emit(tiny_llama, tmp_path)
    write_manifest(artifact)
    raw = bytearray(artifact.entry_path.read_bytes())
    raw[-5] ^= 1
    artifact.entry_path.write_bytes(raw)
    ran = packlight("verify", tmp_path, "--against", tiny_llama, "--chunks", "1", "--json")
    assert ran.returncode == 1, ran.stderr
    lines = {line["name"]: line["ok"] for line in json.loads(ran.stdout)["lines"]}
    assert lines["files"] is False
