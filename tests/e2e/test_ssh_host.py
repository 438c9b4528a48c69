"""Measuring on another machine: a real ssh client, a real sshd, the real model, through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.command_line import packlight
from support.processes import gone
from support.sshd import board as started

from benchmarks.paths import CACHE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.sshd import Board

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="sshd as Linux has it")]
GGUF = CACHE / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "golden-q4_k_m.gguf"
SHORT = ("--trials", "1", "--prompt-tokens", "16", "--decode-tokens", "4", "--context", "128", "--json")


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with started(tmp_path_factory.mktemp("sshd")) as one, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACKLIGHT_SSH", one.client)
        yield one


def on(directory: Path, host: str = "board") -> tuple[str, ...]:
    return ("--on", f"ssh:{host}", "--remote-python", sys.executable, "--remote-dir", str(directory))


def parts(directory: Path) -> list[Path]:
    return list(directory.rglob("*.part"))


def test_the_real_model_sent_again_after_a_cut_and_measured(board: Board, smollm2_dir: Path, tmp_path: Path) -> None:
    """The client is killed in the middle of sending: the second time sends the rest, the third nothing."""
    assert smollm2_dir.is_dir()  # what wrote it has fetched the file
    wrapper = tmp_path / "ssh"
    wrapper.write_text(f'#!/bin/sh\necho $$ > {tmp_path}/pid\nexec {board.client} "$@"\n')
    wrapper.chmod(0o755)
    program = Path(sys.executable).with_name("packlight")
    kept = tmp_path / "kept"
    # A link that carries 8 MB a second, so that there is a middle.
    throttled = {**os.environ, "PACKLIGHT_SSH": f"{wrapper} -o ProxyCommand='{sys.executable} {SLOW} {board.port}'"}
    first = subprocess.Popen(
        [program, "measure", GGUF, *on(kept), *SHORT], env=throttled, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    end = time.monotonic() + 120
    while not any(path.stat().st_size > 10_000_000 for path in parts(kept)):
        assert time.monotonic() < end
        assert first.poll() is None
        time.sleep(0.05)
    os.kill(int((tmp_path / "pid").read_text()), 9)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 1
    assert "ssh:board: the connection broke while a file was sent" in out + err
    assert "Traceback" not in err
    assert gone(f"TMPDIR={board.temporary}")
    (part,) = parts(kept)
    came = part.stat().st_size
    assert 0 < came < GGUF.stat().st_size

    second = packlight("measure", GGUF, *on(kept), *SHORT)
    assert second.returncode == 0, second.stderr
    assert f"goes on behind {came / 1e6:,.1f} MB" in second.stderr
    found = json.loads(second.stdout)["measurement"]
    assert found["host"]["on"] == "ssh:board"
    assert found["peak_rss_bytes"] > GGUF.stat().st_size
    assert found["decode_tokens_per_s"]["median"] > 0
    assert parts(kept) == []
    (whole,) = kept.rglob("*.gguf")
    before = whole.stat()
    third = packlight("measure", GGUF, *on(kept), *SHORT)
    assert third.returncode == 0
    assert (whole.stat().st_ino, whole.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert list(board.temporary.iterdir()) == []


SLOW = Path(__file__).resolve().parents[1] / "support" / "slow_link.py"


def test_a_cap_there(board: Board, tmp_path: Path) -> None:
    fits = packlight("check", GOLDEN, "--max-memory", "500MB", *on(tmp_path), *SHORT)
    assert fits.returncode == 0, fits.stdout + fits.stderr
    assert json.loads(fits.stdout)["measurement"]["cap"]["bytes"] == 500_000_000
    small = packlight("check", GOLDEN, "--max-memory", "8MB", *on(tmp_path), "--remote-clean", *SHORT)
    assert small.returncode == 1
    found = json.loads(small.stdout)
    assert found["failing"][0] == "fits the cap"
    line = next(line for line in found["lines"] if line["name"] == "fits the cap")
    assert " died while " in line["text"]
    assert list(tmp_path.rglob("*.gguf")) == []


def test_memory_and_speed_over_time_there(board: Board, tmp_path: Path) -> None:
    more = ("--trials", "2", "--sustained", "2s", "--fill-context", "--turns", "4", "--timeout", "60")
    done = packlight("measure", GOLDEN, *on(tmp_path), *SHORT, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)["measurement"]
    assert found["host"]["on"] == "ssh:board"
    assert len(found["sustained"]["windows"]) == 2
    assert found["sustained"]["tokens"] > 0
    assert {"loading", "full context", "turn 4", "sustained load"} <= {sample["phase"] for sample in found["timeline"]}
    assert len(found["turn_rss_bytes"]) == 4
    assert found["full_context_tokens_per_s"] > 0
    assert found["warm_load_s"] > 0


def test_an_export_that_is_measured_there(board: Board, tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    limits = ("--device", "raspberry-pi-5", "--chunks", "1")
    done = packlight("export", tiny_llama, "-o", out, *limits, *on(tmp_path / "kept"), *SHORT)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["measurement"]["host"]["on"] == "ssh:board"
    card = (out / "README.md").read_text()
    assert "were measured on ssh:board: " in card
    assert "whether that is a machine like the Raspberry Pi 5 (8 GB) packlight does not know" in " ".join(card.split())


@pytest.mark.parametrize(
    ("host", "options", "said"),
    [
        ("stranger@board", "", "Permission denied"),
        ("board", "-o UserKnownHostsFile=/dev/null", "Host key verification failed"),
        ("127.0.0.1:1", "", "Connection refused"),
    ],
)
def test_what_ssh_refuses_is_one_line_before_any_work(
    board: Board, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path, tmp_path: Path, host: str, options: str, said: str
) -> None:
    monkeypatch.setenv("PACKLIGHT_SSH", f"{board.client} {options}")
    for job in (("measure", GOLDEN), ("export", tiny_llama, "-o", tmp_path / "out")):
        done = packlight(*job, *on(tmp_path / "kept", host), "--quiet")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: ssh:{host}: cannot be used (")
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
