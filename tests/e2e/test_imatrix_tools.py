"""Importance matrices between packlight and llama.cpp's own tools, on the real model, both ways."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.command_line import packlight
from support.digests import tensor_digests
from support.parity import emit

from benchmarks.tools import tool
from targets.gguf.imatrix import read_imatrix
from targets.text import default_text

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

CHUNKS = 4


@pytest.fixture(scope="module")
def room(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, the model in float32, and the importance matrices of both of us."""
    room = tmp_path_factory.mktemp("imatrix")
    (room / "text.txt").write_text(default_text("calibration").text[:20_000], encoding="utf-8")
    emit(smollm2_dir, room).entry_path.rename(room / "f32.gguf")
    ran = packlight(
        "imatrix", smollm2_dir, "-o", room / "ours.gguf", "--text", room / "text.txt", "--chunks", str(CHUNKS), "-q"
    )
    assert ran.returncode == 0, ran.stderr
    for form in ("gguf", "dat"):
        command = [tool("llama-imatrix"), "-m", "f32.gguf", "-f", "text.txt", "-o", f"theirs.{form}", "-c", "512"]
        command += ["--chunks", str(CHUNKS), "--no-ppl", "--output-format", form]
        subprocess.run(command, cwd=room, check=True, capture_output=True, timeout=600)
    return room


def test_the_sums_are_llama_imatrixs(room: Path) -> None:
    ours, theirs = read_imatrix(room / "ours.gguf"), read_imatrix(room / "theirs.gguf")
    assert ours.chunks == theirs.chunks == CHUNKS
    assert ours.sums.keys() == theirs.sums.keys()
    for name, sums in theirs.sums.items():
        assert ours.sums[name].counts.tolist() == sums.counts.tolist() == [CHUNKS * 512], name
        # llama.cpp keeps the cache in f16, and sums up in float32; 0.0003 was seen
        np.testing.assert_allclose(ours.sums[name].squares.sum(), sums.squares.sum(), rtol=0.002, err_msg=name)
        logs = np.log(ours.sums[name].squares + 1e-6) - np.log(sums.squares + 1e-6)
        assert np.abs(logs).mean() < 0.002, name


@pytest.mark.parametrize(
    ("preset", "matrix"),
    [("q4_k_s", "ours.gguf"), ("q4_k_s", "theirs.gguf"), ("q4_k_s", "theirs.dat"), ("iq3_xxs", "ours.gguf")],
)
def test_llama_quantize_and_export_write_the_same_by_it(
    preset: str, matrix: str, room: Path, smollm2_dir: Path, tmp_path: Path
) -> None:
    command = [tool("llama-quantize"), "--imatrix", room / matrix, room / "f32.gguf", tmp_path / "theirs.gguf", preset]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    ran = packlight(
        "export", smollm2_dir, "-o", tmp_path / "out", "--quant", preset, "--imatrix", room / matrix, "--no-verify",
        "--no-measure", "-q",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    (ours,) = (tmp_path / "out").glob("*.gguf")
    assert tensor_digests(ours) == tensor_digests(tmp_path / "theirs.gguf")
