"""The harness on another architecture: 64-bit Arm by QEMU's user mode, reached by a real ssh, with Arm wheels.

What is computed is a board's; time and memory are QEMU's, and nothing is said of them here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.command_line import packlight
from support.sshd import board as started
from support.tiny_encoders import make_tiny_bert

from benchmarks.aarch64 import WHEELS, Unavailable, python

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.sshd import Board

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="QEMU's user mode is Linux's")]
SHORT = ("--trials", "1", "--prompt-tokens", "16", "--decode-tokens", "4", "--context", "64", "--json")


@pytest.fixture(scope="module")
def arm() -> Path:
    try:
        return python()
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with started(tmp_path_factory.mktemp("sshd")) as one, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACKLIGHT_SSH", one.client)
        yield one


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_measured_on_arm(board: Board, arm: Path, tiny_llama: Path, tmp_path: Path, kind: str) -> None:
    model = tiny_llama if kind == "decoder" else make_tiny_bert(tmp_path / "model")
    out = tmp_path / "out"
    made = packlight("export", model, "--format", "onnx", "-o", out, "--no-verify", "--no-measure")
    assert made.returncode == 0, made.stderr
    there = ("--on", "ssh:board", "--remote-python", str(arm), "--remote-dir", str(tmp_path / "kept"))
    done = packlight("measure", out, *there, *SHORT)
    assert done.returncode == 0, done.stdout + done.stderr
    host = json.loads(done.stdout)["measurement"]["host"]
    assert (host["machine"], host["on"]) == ("aarch64", "ssh:board")
    assert WHEELS[0].split("==")[1] in host["engine"]
    small = packlight("check", out, "--max-memory", "20MB", *there, *SHORT)
    assert small.returncode == 1, small.stdout + small.stderr
    assert "fits the cap" in json.loads(small.stdout)["failing"]


def test_a_format_whose_engine_is_not_there(board: Board, arm: Path, tmp_path: Path) -> None:
    golden = Path(__file__).resolve().parents[1] / "golden" / "golden-q4_k_m.gguf"
    done = packlight("measure", golden, "--on", "ssh:board", "--remote-python", str(arm), "--remote-dir", str(tmp_path))
    assert done.returncode == 2
    assert f"{arm} (3." in done.stderr
    assert "has no llama_cpp; install it there" in done.stderr
