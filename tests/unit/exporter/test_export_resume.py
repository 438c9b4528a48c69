"""A GGUF export that was killed goes on where it was, and ends in the very bytes of one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.command_line import packlight
from support.golden_model import write_golden_model

from exporter.pipeline import ExportRequest, export
from exporter.progress import SilentReporter
from exporter.resume import DIGEST, RECORD
from runtime.errors import UserError
from targets.chunk_journal import NAME as CHUNKS

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[3]
DOCUMENTS = {"README.md", "report.json", "report.html", "Modelfile", "manifest.json"}


def command(model: Path, out: Path, point: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "support.export_kill", str(model), str(out), "q4_k_m", point, *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


def killed(point: str, model: Path, out: Path, *more: str) -> str:
    ran = subprocess.run(
        command(model, out, point, *more), env=environment(), capture_output=True, text=True, check=False, timeout=300
    )
    assert ran.returncode == -signal.SIGKILL, ran.stdout + ran.stderr
    return ran.stdout


def finished(model: Path, out: Path, *more: str) -> str:
    ran = subprocess.run(
        command(model, out, "never", *more), env=environment(), capture_output=True, text=True, check=False, timeout=300
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def weights(out: Path) -> dict[str, bytes]:
    """The GGUF files of a finished export, which holds nothing else but its documents."""
    found = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix == ".gguf"}
    assert {path.name for path in out.iterdir()} - set(found) <= DOCUMENTS
    return found


def written(said: str) -> int:
    """Bytes that a run wrote into the file, by its progress; 0 where it had nothing left to write."""
    totals = [line.split()[2] for line in said.splitlines() if line.startswith("quantize ")]
    return int(totals[-1]) if totals else 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_golden_model(tmp_path_factory.mktemp("model") / "golden")


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], int]:
    """The weights of an export that nobody kills, and the bytes that it wrote."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    said = finished(model, out, "--small")
    return weights(out), written(said)


POINTS = {
    "begun:-1": 1.0, "begun:1": 1.0, "chunk:-1": 1.0, "chunk:1": 1.0, "chunk:100": 0.8, "chunk:250": 0.4,
    "whole:-1": 0.0, "whole:1": 0.0, "write_documents:-1": 0.0, "write_documents:1": 0.0, "settle:-1": 0.0,
    "settle:1": 0.0, "publish:-1": 0.0, "publish:1": 0.0,
}  # fmt: skip
"""Where it is killed, and the share of the file that may be written again at most."""


@pytest.mark.parametrize("point", POINTS)
def test_the_same_bytes_after_a_kill(
    point: str, model: Path, undisturbed: tuple[dict[str, bytes], int], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    killed(point, model, out, "--small")
    assert out.exists() == (point == "publish:1")
    said = finished(model, out, "--small", "--resume")
    assert weights(out) == undisturbed[0]
    assert written(said) <= POINTS[point] * undisturbed[1]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_second_kill_and_a_third(model: Path, undisturbed: tuple[dict[str, bytes], int], tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed("chunk:60", model, out, "--small")
    killed("chunk:60", model, out, "--small", "--resume")
    killed("whole:-1", model, out, "--small", "--resume")
    assert written(finished(model, out, "--small", "--resume")) == 0
    assert weights(out) == undisturbed[0]


def test_parts_are_gone_on_with_too(model: Path, tmp_path: Path) -> None:
    split = ("--small", "--split", "300000")
    finished(model, tmp_path / "whole", *split)
    expected = weights(tmp_path / "whole")
    assert len(expected) > 2
    out = tmp_path / "out"
    for point in ("begun:2", "chunk:90", "whole:2"):
        killed(point, model, out, *split, "--resume")
    finished(model, out, *split, "--resume")
    assert weights(out) == expected


def room_of(out: Path) -> Path:
    (room,) = out.parent.glob(f".{out.name}.*.partial")
    return room


def test_without_resume_the_leftovers_go(
    model: Path, undisturbed: tuple[dict[str, bytes], int], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    killed("chunk:100", model, out, "--small")
    assert {CHUNKS, RECORD} < {path.name for path in room_of(out).iterdir()}
    assert written(finished(model, out, "--small")) == undisturbed[1]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_damaged_meanwhile_is_written_again(
    model: Path, undisturbed: tuple[dict[str, bytes], int], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    killed("chunk:250", model, out, "--small")
    (partial,) = room_of(out).glob(".*.gguf.partial")
    with partial.open("r+b") as file:
        file.seek(partial.stat().st_size // 3)
        file.write(b"\xff" * 100)
    assert 0 < written(finished(model, out, "--small", "--resume")) < undisturbed[1]
    assert weights(out) == undisturbed[0]


@pytest.mark.parametrize("damage", ["torn line", "power cut", "no journal", "not JSON", "no file", "shorter file"])
def test_a_journal_or_file_that_is_not_whole(
    damage: str, model: Path, undisturbed: tuple[dict[str, bytes], int], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    killed("chunk:250", model, out, "--small")
    journal, (partial,) = room_of(out) / CHUNKS, room_of(out).glob(".*.gguf.partial")
    if damage == "torn line":
        journal.write_bytes(journal.read_bytes()[:-9])
    elif damage == "power cut":  # the lines have reached the disk, the chunks behind a sync have not
        half = partial.stat().st_size // 2
        with partial.open("r+b") as file:
            file.seek(half)
            file.write(bytes(half))
    elif damage == "no journal":
        journal.unlink()
    elif damage == "not JSON":
        journal.write_bytes(b"\0" * 4096)
    elif damage == "no file":
        partial.unlink()
    else:
        os.truncate(partial, partial.stat().st_size - 1)
    again = written(finished(model, out, "--small", "--resume"))
    assert weights(out) == undisturbed[0]
    assert again < undisturbed[1] if damage in ("torn line", "power cut") else again == undisturbed[1]


def request(model: Path, out: Path, **more: object) -> ExportRequest:
    return ExportRequest(str(model), out, "gguf", measure=False, **{"quant": "q4_k_m", "resume": True, **more})  # type: ignore[arg-type]


def refusal(asked: ExportRequest) -> str:
    with pytest.raises(UserError) as caught:
        export(asked, SilentReporter())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_request_is_refused_and_what_differs_is_named(model: Path, tmp_path: Path) -> None:
    out, copy = tmp_path / "out", write_golden_model(tmp_path / "copy")
    killed("chunk:100", copy, out, "--small")
    room = room_of(out)
    before = sorted((path.name, path.stat().st_size) for path in room.iterdir())
    for differs, asked in (
        ("quantization", request(copy, out, quant="q8_0")),
        ("model", request(model, out)),
        ("set of options", request(copy, out, split_max_bytes=1 << 20)),
    ):
        assert refusal(asked) == (
            f"--resume: {room} was begun with another {differs}; leave --resume out to begin anew"
        )
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rope_theta": 20000.0}))
    assert "begun with another content of the model's files" in refusal(request(copy, out))
    assert sorted((path.name, path.stat().st_size) for path in room.iterdir()) == before


def test_resume_where_there_is_nothing_to_go_on_with(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(request(model, out), SilentReporter())
    first = weights(out)
    stamp = out.stat().st_ino
    export(request(model, out), SilentReporter())  # finished already: its report is made again
    assert weights(out) == first
    assert out.stat().st_ino != stamp
    assert DIGEST in json.loads((out / "manifest.json").read_text())


def test_resume_does_not_write_over_another_export(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(request(model, out, quant="q8_0"), SilentReporter())
    assert "is not empty; name another directory, or add --overwrite" in refusal(request(model, out))
    export(request(model, out, overwrite=True), SilentReporter())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interrupt_of_a_run_with_resume_keeps_what_is_done(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("exporter.pipeline.examine", interrupt)
    out = tmp_path / "deep" / "out"
    with pytest.raises(KeyboardInterrupt, match="holds what is done, the same command goes on there"):
        export(request(model, out), SilentReporter())
    assert room_of(out).is_dir()
    with pytest.raises(KeyboardInterrupt):
        export(request(model, out, resume=False), SilentReporter())
    assert not (tmp_path / "deep").exists() or list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--format", "onnx", "--resume"), "--resume is for --format gguf; leave it out for onnx"),
        (("--format", "onnx", "--split-max-size", "1GB"), "--split-max-size is for --format gguf; leave it out"),
        (("--recipe", "gptq-q4_k_m", "--resume"), "export --recipe does not keep its work; use 'packlight compress"),
    ],
)
def test_what_does_not_go_with_it(arguments: Sequence[str], words: str, model: Path, tmp_path: Path) -> None:
    ran = packlight("export", model, *arguments, "--no-measure", "--no-verify", "-o", tmp_path / "out")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith(f"error: {words}")
    assert ran.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def write_larger_model(directory: Path) -> Path:
    """A Llama of 52 million random weights in float16, which takes seconds to quantize."""
    from safetensors.numpy import save_file

    hidden, ffn, layers = 768, 2048, 8
    write_golden_model(directory)
    config = json.loads((directory / "config.json").read_text())
    config |= {"hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers}
    (directory / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(1)

    def matrix(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape, np.float32) * np.float32(0.02)).astype(np.float16)

    kv = hidden // 4
    tensors = {"model.embed_tokens.weight": matrix(64, hidden), "model.norm.weight": matrix(hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        tensors |= {f"{prefix}{name}_layernorm.weight": matrix(hidden) for name in ("input", "post_attention")}
        tensors |= {
            f"{prefix}self_attn.q_proj.weight": matrix(hidden, hidden),
            f"{prefix}self_attn.k_proj.weight": matrix(kv, hidden),
            f"{prefix}self_attn.v_proj.weight": matrix(kv, hidden),
            f"{prefix}self_attn.o_proj.weight": matrix(hidden, hidden),
            f"{prefix}mlp.gate_proj.weight": matrix(ffn, hidden),
            f"{prefix}mlp.up_proj.weight": matrix(ffn, hidden),
            f"{prefix}mlp.down_proj.weight": matrix(hidden, ffn),
        }
    save_file(tensors, directory / "model.safetensors")
    return directory


def killed_after(seconds: float, run: list[str], log: Path, *, from_the_first_chunk: bool) -> int:
    """Bytes that a run had written when SIGKILL ended it, or when it ended by itself."""
    with log.open("wb") as said:
        process = subprocess.Popen(run, env=environment(), stdout=said, stderr=subprocess.STDOUT)
        try:
            while from_the_first_chunk and process.poll() is None and b"quantize" not in log.read_bytes():
                time.sleep(0.005)
            end = time.monotonic() + seconds
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.002)
        finally:
            process.kill()
            process.wait()
    assert process.returncode in (0, -signal.SIGKILL), log.read_text()
    done = [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("quantize ")]
    return done[-1] if done else 0


@pytest.mark.slow
def test_twenty_kills_at_random_moments(tmp_path: Path) -> None:
    model, log = write_larger_model(tmp_path / "model"), tmp_path / "log"
    start = time.monotonic()
    said = finished(model, tmp_path / "whole")
    whole_s = time.monotonic() - start
    expected, total = weights(tmp_path / "whole"), written(said)
    allowed = total / 10
    rng, shares = random.Random(20), []
    for number in range(20):
        # Most of them while chunks are written, some of them before and after.
        in_chunks = number % 4 != 0
        delay = rng.uniform(0, whole_s * (0.6 if in_chunks else 1.05))
        out = tmp_path / f"out-{number}"
        run = command(model, out, "never", *(["--resume"] if number % 2 else []))
        done = killed_after(delay, run, log, from_the_first_chunk=in_chunks)
        again = written(finished(model, out, "--resume"))
        if done:
            assert done + again - total <= allowed, f"kill {number}, after {done} of {total}: {again} again"
            shares.append((done, again))
        assert weights(out) == expected, f"kill {number}, after {delay:.2f} s"
        assert not list(tmp_path.glob(".out-*")), f"kill {number}"
    assert len([done for done, again in shares if 0 < done < total and again]) >= 5, shares
