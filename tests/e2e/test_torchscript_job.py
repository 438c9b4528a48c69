"""TorchScript from end to end on the command line: SmolLM2, MiniLM, and the C++ program."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.command_line import export, packlight

from benchmarks.models import minilm, offgrid
from benchmarks.smollm2 import smollm2
from runtime.artifact import open_artifact
from runtime.measurement import RunOptions
from runtime.sessions import open_session

pytestmark = pytest.mark.slow
CPP = Path(__file__).resolve().parents[2] / "targets" / "torchscript" / "cpp"
NEW = 24


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2, off the grid, in 8 bits."""
    out = tmp_path_factory.mktemp("torchscript") / "decoder"
    status, lines = export(
        "torchscript", offgrid(smollm2()), out, "--quant", "int8", "--context", "512", "--chunks", "2"
    )
    assert status == 0, lines
    assert lines["KL divergence"]["value"] < 0.05
    assert lines["token ids"]["value"] == 0
    return out


def test_int8_is_a_quarter_of_the_floats(decoder: Path) -> None:
    artifact = open_artifact(decoder)
    assert artifact.n_params == 134_515_008
    assert artifact.model_bytes <= 0.27 * 4 * artifact.n_params


@pytest.mark.parametrize("verb", [("measure",), ("check", "--max-memory", "1500MB")])
def test_the_other_verbs(verb: tuple[str, ...], decoder: Path) -> None:
    ran = packlight(verb[0], decoder, *verb[1:], "--context", "256", "--trials", "1")
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_8_bit_activations_cost_a_decoder_more_and_verify_decides(tmp_path: Path) -> None:
    # Without smoothing perplexity goes from 11.6 to 31 (shared/FIELD.md).
    status, lines = export(
        "torchscript", offgrid(smollm2()), tmp_path / "out", "--quant", "dynamic-int8", "--chunks", "2", "--no-measure"
    )
    # Without VNNI activations have 7 bits, see DynamicLinear.
    assert 0.015 < lines["KL divergence"]["value"] < (0.04 if torch.cpu._is_vnni_supported() else 0.12)
    assert status == any(line["ok"] is False for line in lines.values())


def test_an_encoder(tmp_path: Path) -> None:
    status, lines = export("torchscript", minilm(), tmp_path / "out", "--quant", "dynamic-int8")
    assert status == 0, lines
    assert lines["cosine"]["value"] >= 0.99


def test_an_encoder_for_the_lite_interpreter_of_an_arm_board(tmp_path: Path) -> None:
    # Made, verified and measured on whatever host this is, with the engine of the board.
    status, lines = export("ptl", minilm(), tmp_path / "out", "--device", "raspberry-pi-5")
    assert status == 0, lines
    assert lines["cosine"]["value"] >= 0.99
    assert open_artifact(tmp_path / "out").contract["quantized_engine"] == "qnnpack"


def test_a_decoder_for_the_lite_interpreter_and_its_card(tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, lines = export("ptl", offgrid(smollm2()), out, "--quant", "int8", "--context", "512", "--chunks", "2")
    assert status == 0, lines
    assert lines["KL divergence"]["value"] < 0.05
    code = (out / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    run = [sys.executable, "-W", "ignore", "-c", code]
    ran = subprocess.run(run, capture_output=True, text=True, check=False, cwd=out)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("Once upon a time")


def test_the_cpp_program_generates_the_tokens_of_python(decoder: Path, tmp_path: Path) -> None:
    import torch

    cmake = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
    assert cmake is not None
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    for command in ([cmake, "-S", CPP, "-B", tmp_path, "-DCMAKE_BUILD_TYPE=Release", prefix],
                    [cmake, "--build", tmp_path]):  # fmt: skip
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    session = open_session(open_artifact(decoder), RunOptions(threads=2, context=128))
    ids = session.tokenize("The capital of France is", add_special=True)
    session.prefill(ids)
    expected = []
    for _ in range(NEW):
        expected.append(session.greedy())
        session.decode(expected[-1])
    session.close()
    program = str(tmp_path / "generate")
    arguments = [program, str(open_artifact(decoder).entry_path), str(NEW), *map(str, ids)]
    ran = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert [int(line) for line in ran.stdout.split()] == expected
    for wrong in ([program], [program, "model.pt", "3", "x"]):
        assert subprocess.run(wrong, capture_output=True, check=False).returncode == 2
    missing = subprocess.run([program, "missing.pt", "3", "1"], capture_output=True, text=True, check=False)
    assert missing.returncode == 1
    (line,) = missing.stderr.splitlines()
    assert line.startswith("generate: ")
    assert "missing.pt" in line
