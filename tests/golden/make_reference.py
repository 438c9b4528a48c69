"""Make the golden references with llama-quantize.

    PYTHONPATH=tests python tests/golden/make_reference.py LLAMA_QUANTIZE

`golden-q4_k_m.gguf` is llama-quantize's own file; `tensors.json` has type and SHA-256 of every tensor of every preset.
Run it again only when llama.cpp changes what a preset means.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from support.digests import tensor_digests
from support.golden_model import write_golden_model
from support.parity import emit

from targets.gguf.presets import PRESETS

HERE = Path(__file__).parent


def main(quantize: str) -> None:
    """Write both references beside this file."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "f32").mkdir()
        source = emit(write_golden_model(work / "golden"), work / "f32").entry_path
        digests = {}
        for preset in PRESETS:
            out = work / f"{preset}.gguf"
            subprocess.run([quantize, source, out, preset.upper(), "2"], check=True, capture_output=True)
            digests[preset] = tensor_digests(out)
        shutil.copy(work / "q4_k_m.gguf", HERE / "golden-q4_k_m.gguf")
    (HERE / "tensors.json").write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
