"""Other machines from the command line; what they do is in unit/runtime/hosts and, with a real sshd, in e2e."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.ssh import fake_client
from typer.testing import CliRunner

from exporter.cli.app import app
from runtime.hosts.ssh import COMMAND

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "golden-q4_k_m.gguf"
SHORT = ("--trials", "1", "--prompt-tokens", "8", "--decode-tokens", "2", "--context", "64", "--threads", "1")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def there(monkeypatch, tmp_path):
    client, _home = fake_client(tmp_path)
    monkeypatch.setenv(COMMAND, str(client))
    return ("--on", "ssh:board", "--remote-python", sys.executable, *SHORT)


def test_measured_there(there):
    done = run("measure", GOLDEN, "--device", "raspberry-pi-5", *there)
    assert done.exit_code == 0, done.output
    assert "measuring in a fresh process on ssh:board" in done.stderr
    assert " on ssh:board" in next(line for line in done.stdout.splitlines() if line.startswith("fits raspberry-pi-5"))
    assert "measured on ssh:board; whether that is a machine like the Raspberry Pi 5 (8 GB) packlight" in done.stdout


def test_a_budget_is_held_there(there):
    done = run("measure", GOLDEN, "--max-memory", "1MB", "--json", *there)
    assert done.exit_code == 1
    assert json.loads(done.stdout)["measurement"]["host"]["on"] == "ssh:board"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("measure", GOLDEN, "--on", "board"), "'board' names no host: use local, ssh:"),
        (("measure", GOLDEN, "--engine", "."), "--engine is for --on adb"),
        (("measure", GOLDEN, "--on", "ssh:"), "'ssh:' is no machine"),
        (("check", GOLDEN, "--max-memory", "1GB", "--remote-python", "python3"), "--remote-python, --remote-dir and"),
        (("measure", "no-such.gguf", "--on", "ssh:board"), "no-such.gguf: no such file or directory"),
    ],
)
def test_mistakes(arguments, said):
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {said}")
    assert len(done.stderr.splitlines()) == 1


def test_an_export_that_measures_nothing_needs_no_machine(there, tiny_llama, tmp_path):
    done = run("export", tiny_llama, "-o", tmp_path / "out", "--no-measure", *there)
    assert done.exit_code == 2
    assert done.stderr == "error: --on names a machine that measures; leave out --no-measure or --on\n"


def test_a_machine_without_python_is_known_before_the_export(there, tiny_llama, tmp_path):
    done = run("export", tiny_llama, "-o", tmp_path / "out", *there, "--remote-python", "/usr/bin/false")
    assert done.exit_code == 2
    assert "ssh:board: no Python 3.11 or newer there (/usr/bin/false)" in done.stderr
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_the_harness_as_a_file(tmp_path):
    out = tmp_path / "harness.pyz"
    done = run("harness", "-o", out)
    assert (done.exit_code, done.stdout) == (0, f"written: {out}\nthere: python3 harness.pyz ARTIFACT\n")
    assert json.loads(run("harness", "-o", out, "--json").stdout) == {"out": str(out), "bytes": out.stat().st_size}
    assert run("harness", "-o", out, "--quiet").stdout == ""
    shown = subprocess.run([sys.executable, "-I", out, "--help"], capture_output=True, text=True, check=True).stdout
    assert "an exported directory, or a .gguf file" in shown
    assert run("harness", "-o", tmp_path / "no" / "harness.pyz").exit_code == 2
    assert run("harness", "-o", "/").stderr == "error: /: is a directory; name a file, such as /packlight-runtime.pyz\n"
