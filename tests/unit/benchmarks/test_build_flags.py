"""What llama.cpp is compiled with here: .ci/build-flags."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / ".ci" / "build-flags"


@pytest.mark.parametrize(
    ("cpuinfo", "flags"),
    [
        (
            "flags\t\t: fpu avx512f amx_bf16 avx512_fp16 amx_tile amx_int8\n",
            "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16",
        ),
        ("flags\t\t: fpu avx2 fma\n", ""),
        ("Features\t: fp asimd asimddp\n", ""),
        (None, ""),
    ],
)
def test_amx_is_left_out(tmp_path, cpuinfo, flags):
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(cpuinfo)
    done = subprocess.run(
        ["sh", SCRIPT], env={**os.environ, "CPUINFO": str(path)}, capture_output=True, text=True, check=True
    )
    assert (done.stdout.strip(), done.stderr) == (flags, "")
