"""Measuring on a phone: a real adb client and llama.cpp's real tools, with a fake adb server. No phone was used.

The server speaks adb's protocol and runs what the phone is asked to run on this machine (support.fake_adb_server).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.command_line import packlight
from support.fake_adb_server import FakePhone, fake_server
from support.processes import gone, named_in_environment

from benchmarks.paths import CACHE
from benchmarks.tools import tool

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="a phone has /proc")]
REAL = CACHE / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "golden-q4_k_m.gguf"
SHORT = (
    "--trials",
    "2",
    "--prompt-tokens",
    "16",
    "--decode-tokens",
    "4",
    "--context",
    "256",
    "--threads",
    "1",
    "--json",
)
LONG_ENOUGH = ("--context", "4096")
"""For llama-bench's run for the memory of a tiny model: one that ends between two readings is an error."""


@pytest.fixture
def phone(tmp_path: Path) -> Iterator[FakePhone]:
    one = FakePhone("FAKE1", tmp_path / "phone")
    with fake_server(one):
        yield one


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory laid out as CMake installs it."""
    root = tmp_path_factory.mktemp("tools")
    (root / "bin").mkdir()
    for name in ("llama-bench", "llama-completion"):
        (root / "bin" / name).symlink_to(tool(name))
    return root


def on(engine: Path, *more: str) -> tuple[str | Path, ...]:
    return ("--on", "adb:FAKE1", "--engine", engine, *more)


def kept(phone: FakePhone) -> list[str]:
    return sorted(path.name for path in phone.temporary.rglob("*") if path.is_file())


def one_line(done: subprocess.CompletedProcess[str], status: int) -> str:
    assert (done.returncode, done.stdout) == (status, ""), done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    return line.removeprefix("error: ")


@pytest.mark.parametrize("features", ["shell_v2,cmd,stat_v2,ls_v2", "cmd"], ids=["shell v2", "shell v1"])
def test_the_real_model_by_both_tools(phone: FakePhone, tools: Path, smollm2_dir: Path, features: str) -> None:
    """Sent, measured, and sent no second time; an old phone tells no exit status."""
    assert smollm2_dir.is_dir()  # what wrote it has fetched the file
    phone.features = features
    first = packlight("measure", REAL, *on(tools), *SHORT)
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)["measurement"]
    assert found["host"]["on"] == "adb:FAKE1"
    assert found["host"]["engine"].startswith("llama.cpp ")
    assert found["peak_rss_bytes"] > REAL.stat().st_size
    assert found["resident"]["file_bytes"] > 0
    assert found["decode_tokens_per_s"]["median"] > 0
    assert len(found["prefill_tokens_per_s"]["values"]) == 2
    assert (found["load_s"], found["memory"], found["cap"]) == (None, None, None)
    assert kept(phone) == sorted([REAL.name, "llama-bench", "llama-completion"])
    phone.pushed.clear()
    second = packlight("measure", REAL, *on(tools), *SHORT)
    assert second.returncode == 0, second.stderr
    assert all(name.endswith(".sh") for name in phone.pushed)
    assert gone(phone.mark)


def test_the_only_phone_and_one_tool(phone: FakePhone, tmp_path: Path) -> None:
    """llama-bench alone; everything is removed afterwards, and the peak is compared with a cap."""
    alone = ("--on", "adb", "--engine", tool("llama-bench"), "--remote-clean")
    fits = packlight("check", GOLDEN, "--max-memory", "900MB", *alone, *SHORT[:-1], *LONG_ENOUGH, "--json")
    assert fits.returncode == 0, fits.stdout + fits.stderr
    (line,) = [line for line in json.loads(fits.stdout)["lines"] if line["name"] == "fits the cap"]
    assert line["ok"]
    small = packlight("check", GOLDEN, "--max-memory", "1MB", *alone, *SHORT[:-1], *LONG_ENOUGH)
    assert small.returncode == 1
    assert "memory was not capped" in small.stdout
    assert kept(phone) == []
    assert gone(phone.mark)


def test_an_export_that_is_measured_there(phone: FakePhone, tools: Path, tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = packlight("export", tiny_llama, "-o", out, "--device", "pixel-8", "--chunks", "1",
                     *on(tools / "bin" / "llama-bench"), *SHORT, *LONG_ENOUGH, "--min-same-top1", "0")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["measurement"]["host"]["on"] == "adb:FAKE1"
    assert "were measured on adb:FAKE1: F1, " in (out / "README.md").read_text()


def test_phones_that_cannot_be_used_are_one_line_before_any_work(tools: Path, tiny_llama: Path, tmp_path: Path) -> None:
    cases = {
        "device": "adb: several phones are attached: FAKE0 (device), FAKE1 (device); name one, such as --on adb:FAKE0",
        "offline": "adb:FAKE1: cannot be used, adb says 'offline'; plug it in again, or: adb reconnect",
        "": "adb: no phone is attached; plug it in and allow USB debugging in its developer options",
    }
    phones = [FakePhone(f"FAKE{number}", tmp_path / str(number)) for number in range(2)]
    with fake_server(*phones):
        assert one_line(packlight("measure", GOLDEN, "--on", "adb", "--engine", tools, "--quiet"), 2) == cases["device"]
        phones[0].state = ""
        phones[1].state = "offline"
        job = ("export", tiny_llama, "-o", tmp_path / "out", *on(tools), "--quiet")
        assert one_line(packlight(*job), 2) == cases["offline"]
        phones[1].state = "unauthorized"
        assert "'unauthorized'; unlock the phone and accept the dialog" in one_line(packlight(*job), 2)
        phones[1].state = ""
        assert one_line(packlight("measure", GOLDEN, "--on", "adb", "--engine", tools, "--quiet"), 2) == cases[""]
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_on_the_phone_is_one_line(phone: FakePhone, tools: Path, tmp_path: Path) -> None:
    other = tmp_path / "arm"
    other.mkdir()
    binary = bytearray(tool("llama-bench").read_bytes())
    binary[18:20] = (183).to_bytes(2, "little")
    (other / "llama-bench").write_bytes(binary)
    assert "is built for arm64-v8a, adb:FAKE1 runs x86_64, x86; build it" in one_line(
        packlight("measure", GOLDEN, *on(other), "--quiet"), 2
    )
    phone.command("getprop", "echo arm64-v8a")  # where the processor is right and the program will not start
    said = one_line(packlight("measure", GOLDEN, *on(other), "--quiet"), 2)
    assert "adb:FAKE1: llama-bench cannot be run there (" in said
    phone.command("getprop", "echo x86_64")
    phone.command("df", 'echo "Filesystem 1K-blocks Used Available Use% Mounted on\n/dev/dm-5 100 90 10 90% /data"')
    assert "0.0 MB free, " in one_line(packlight("measure", GOLDEN, *on(tools), "--quiet"), 2)
    assert kept(phone) == [GOLDEN.name]  # tools of before are removed before room is asked for


def test_a_model_that_the_engine_refuses(phone: FakePhone, tools: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(GOLDEN.read_bytes()[:5000])
    done = packlight("measure", broken, *on(tools), *SHORT)
    assert done.returncode == 1
    assert (
        "adb:FAKE1: llama-bench failed (exit status 1) while measuring speed by llama-bench: "
        in done.stderr + done.stdout
    )
    assert "Traceback" not in done.stderr


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    program = Path(sys.executable).with_name("packlight")
    return subprocess.Popen(
        [program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # A shell starts what runs in the background, such as a whole test run, with interrupts ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def engine_runs(phone: FakePhone, process: subprocess.Popen[str]) -> None:
    """Wait until the engine runs on the phone."""
    end = time.monotonic() + 120
    while not any(b"llama-bench" in _program(number) for number in named_in_environment(phone.mark)):
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def _program(number: int) -> bytes:
    try:
        return Path(f"/proc/{number}/comm").read_bytes()
    except OSError:
        return b""


LONG = ("--trials", "100000", "--prompt-tokens", "16", "--decode-tokens", "4", "--context", "256")


def test_ctrl_c_ends_the_engine_on_the_phone(phone: FakePhone, tools: Path) -> None:
    process = start("measure", GOLDEN, *on(tools), *LONG)
    engine_runs(phone, process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "Traceback" not in err
    assert gone(phone.mark)
    assert kept(phone) == sorted([GOLDEN.name, "llama-bench", "llama-completion"])


def test_unplugged_while_the_engine_runs(phone: FakePhone, tools: Path) -> None:
    """Nobody can stop it from here: the phone's own shell does."""
    process = start("measure", GOLDEN, *on(tools), *LONG)
    engine_runs(phone, process)
    phone.unplug()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, out + err
    assert gone(phone.mark)
    assert "adb:FAKE1: the connection broke while measuring speed by llama-bench" in out + err
    assert "the phone is not attached any more; plug it in and run this again" in out + err
    assert "Traceback" not in err


def test_unplugged_while_a_file_is_sent(phone: FakePhone, tools: Path) -> None:
    """What came is no artifact; the next run sends it whole."""
    phone.unplug_after = 3_000_000
    first = packlight("measure", GOLDEN, *on(tools), *SHORT)
    assert first.returncode == 1
    assert "the connection broke while llama-" in first.stderr + first.stdout
    assert "Traceback" not in first.stderr
    (part,) = kept(phone)
    assert part.endswith(".part")
    phone.unplug_after, phone.state = None, "device"
    second = packlight("measure", GOLDEN, *on(tools / "bin" / "llama-bench"), *SHORT, *LONG_ENOUGH)
    assert second.returncode == 0, second.stderr
    assert GOLDEN.name in kept(phone)
