"""Help, lists, the runtime and a conversion work where torch and transformers cannot be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers"):
            raise ImportError(f"{name} is blocked by the test")

sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture
def python(tmp_path):
    """Run Python with torch and transformers blocked from its very start."""
    (tmp_path / "block").mkdir()
    (tmp_path / "block" / "sitecustomize.py").write_text(BLOCK)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "block"), "HF_HUB_OFFLINE": "1"}

    def run(*arguments):
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)

    return run


HEAVY = {
    "torch", "transformers", "numpy", "gguf", "jinja2", "llama_cpp", "huggingface_hub", "pydantic", "rich.markdown",
}  # fmt: skip
MAIN = "from exporter.cli import main; main()"


def test_the_block_blocks(python):
    for name in ("torch", "transformers"):
        done = python("-c", f"import {name}")
        assert f"{name} is blocked by the test" in done.stderr


@pytest.mark.parametrize("verb", ["--help", "devices", "formats"])
def test_verbs(python, verb):
    done = python("-c", MAIN, verb)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_help_imports_nothing_heavy(python):
    code = "import sys, exporter.cli.app; print(*sys.modules)"
    done = python("-c", code)
    imported = set(done.stdout.split())
    assert "exporter.cli.app" in imported
    assert not imported & HEAVY


def test_import_runtime(python):
    done = python("-c", "import runtime, runtime.measure, runtime.check, runtime.artifact, runtime.sessions")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_conversion(python, tiny_llama, tmp_path):
    out = tmp_path / "out"
    done = python(
        "-c", MAIN, "export", tiny_llama, "--quant", "q8_0", "--no-verify", "--no-measure", "--json", "-q", "-o", out
    )
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["verdict"] == "not verified, not measured"
    entry = out / report["artifact"]["entry"]
    assert entry.read_bytes()[:4] == b"GGUF"
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["Modelfile", "README.md", "manifest.json", "report.html", "report.json", entry.name]
    )
    assert f"FROM ./{entry.name}" in (out / "Modelfile").read_text()
