"""Make the golden references with llama.cpp's own tools.

    PYTHONPATH=tests python tests/golden/make_reference.py DIRECTORY-OF-THE-TOOLS

`golden-q4_k_m.gguf` is llama-quantize's own file; `tensors.json` has type and SHA-256 of every tensor of every preset,
`tensors-imatrix.json` the same with importance matrices; `types.json` a digest of the types that models of many kinds
get. `golden-imatrix.gguf` and `.dat` are llama-imatrix's own. Run it again only when llama.cpp changes what a preset
means.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from support.digests import tensor_digests, types_digest
from support.golden_model import write_golden_model
from support.parity import emit
from support.preset_models import EXPERTS, KINDS, NAMED, importance_of, write_importance, write_model

from targets.gguf.presets import PRESETS

HERE = Path(__file__).parent
DAT = ("q4_k_m", "iq2_xs")
OF_EXPERTS = ("q4_k_m", "q3_k_m", "iq2_xs", "iq1_m", "mxfp4_moe")
TEXT = "".join(chr(33 + (7 * i * i + i // 5) % 62) for i in range(700))
_LINE = re.compile(r"\] (\S+) +- \[.*?type = +f32, size = .*?MiB(?: -> .*?MiB \((\S+)\))?$", re.MULTILINE)


def main(tools: Path) -> None:
    """Write all references beside this file."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "f32").mkdir()
        model = write_golden_model(work / "golden")
        source = emit(model, work / "f32").entry_path
        make = _Quantize(tools / "llama-quantize", work)
        plain = {name: make.digests(source, name) for name, preset in PRESETS.items() if not preset.weighted}
        make.file(source, "q4_k_m", HERE / "golden-q4_k_m.gguf")
        _write("tensors.json", plain)
        files = {form: work / f"imatrix.{form}" for form in ("gguf", "dat")}
        importance_of(model, files["gguf"])
        importance_of(model, files["dat"], "dat")
        write_model(work / "experts.gguf", EXPERTS)
        write_importance(work / "experts.imatrix", EXPERTS.tensors())
        experts = (work / "experts.gguf", work / "experts.imatrix")
        _write("tensors-imatrix.json", {
            "gguf": {preset: make.digests(source, preset, files["gguf"]) for preset in PRESETS},
            "dat": {preset: make.digests(source, preset, files["dat"]) for preset in DAT},
            "experts": {preset: make.digests(experts[0], preset, experts[1]) for preset in OF_EXPERTS},
        })  # fmt: skip
        _write("types.json", {kind: make.types(kind) for kind in KINDS})
        _imatrix(tools / "llama-imatrix", source, work)


class _Quantize:
    """Runs of llama-quantize. work: a directory for its files."""

    def __init__(self, tool: Path, work: Path) -> None:
        self.tool, self.work = tool, work

    def file(self, source: Path, preset: str, out: Path, importance: Path | None = None) -> bool:
        weighted = [] if importance is None else ["--imatrix", importance]
        command = [self.tool, *weighted, source, out, preset.upper(), "2"]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def digests(self, source: Path, preset: str, importance: Path | None = None) -> dict[str, list[str]] | str:
        made = self.file(source, preset, self.work / "out.gguf", importance)
        return tensor_digests(self.work / "out.gguf") if made else "refused"

    def types(self, kind: str) -> dict[str, str]:
        """A digest of the types of each preset, with and without an importance matrix, and of what can be named."""
        model, importance = self.work / f"{kind}.gguf", self.work / f"{kind}.imatrix"
        write_model(model, KINDS[kind])
        write_importance(importance, KINDS[kind].tensors())
        found = {}
        for preset in PRESETS:
            found[preset] = self._types(model, preset)
            found[f"{preset} weighted"] = self._types(model, preset, "--imatrix", importance)
        for name, (arguments, _) in NAMED.items():
            found |= {f"{preset} {name}": self._types(model, preset, *arguments) for preset in ("q4_k_m", "iq2_s")}
        return found

    def _types(self, model: Path, preset: str, *arguments: Any) -> str:
        command = [self.tool, "--dry-run", *arguments, model, preset.upper(), "1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return "refused"
        return types_digest({name: kind or "f32" for name, kind in _LINE.findall(done.stdout + done.stderr)})


def _imatrix(tool: Path, source: Path, work: Path) -> None:
    """Both forms of llama-imatrix's file, on a text of the golden model's 62 characters."""
    (work / "golden.txt").write_text(TEXT, encoding="ascii")
    for form in ("gguf", "dat"):
        command = [tool, "-m", source, "-f", "golden.txt", "-o", f"golden-imatrix.{form}", "-c", "64", "-b", "64"]
        command += ["--chunks", "5", "--no-ppl", "-t", "1", "--output-format", form]
        subprocess.run(command, check=True, capture_output=True, cwd=work)
        shutil.copy(work / f"golden-imatrix.{form}", HERE)


def _write(name: str, content: dict[str, Any]) -> None:
    (HERE / name).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
