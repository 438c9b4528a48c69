"""What each method of compression costs the real model, alone and chained with others: the honest outcome.

    python -m benchmarks.compression_methods [--only NAME …]

Every case is a recipe for the off-grid copy of SmolLM2, run by `packlight compress`; those that end in a quantization
are exported and judged in their engine by `packlight verify`, the others in torch by the report of their last step.
Calibration: Python's own help, first half; judged on the second. A finished case is kept in .cache and not run again.
Speed: decode in llama.cpp of the file at Q8_0, beside that of the whole model, in turns.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.cases import chosen, finished
from benchmarks.models import offgrid
from benchmarks.paths import CACHE
from benchmarks.smollm2 import smollm2

KEPT = CACHE / "compression-methods"
PACKLIGHT = str(Path(sys.executable).with_name("packlight"))
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1"}
RUNS = 5
"""Decode runs of each file."""


@dataclass(frozen=True)
class Case:
    """A recipe. what: in words; steps: as YAML has them; format: of the last one; speed: decode is timed

    own_text: calibrated on text that the model writes, the default of a recipe
    """

    what: str
    steps: tuple[dict[str, Any], ...]
    format: str | None = None
    speed: bool = False
    own_text: bool = False

    def recipe(self) -> dict[str, Any]:
        """What its YAML file says."""
        head = {"format": self.format} if self.format else {}
        return {**head, **({} if self.own_text else {"calibration": CALIBRATION}), "steps": list(self.steps)}


CALIBRATION = {"source": "help", "chunks": 16, "tokens": 512}


def _prune(method: str, **more: object) -> dict[str, Any]:
    how = {"sparsity": 0.5} if "pattern" not in more else {}
    return {"step": "prune", "method": method, **how, **more}


def _gguf(preset: str, types: str = "measured") -> dict[str, Any]:
    return {"step": "quantize", "preset": preset, "types": types, "method": "gptq"}


def _q4_0(method: str) -> dict[str, Any]:
    return {"step": "quantize", "preset": "q4_0", "method": method}


_AWQ = {"step": "smooth", "method": "awq"}
_VALUES = {"step": "rotate", "spaces": ["values"]}
_ALL = {"step": "rotate"}
_LAYERS = {"step": "remove", "units": "layers", "count": 8}
_NEURONS = {"step": "remove", "units": "neurons", "share": 0.3333, "widths": "even"}
_HEADS = {"step": "remove", "units": "heads", "count": 1, "widths": "even"}
_UNEVEN_NEURONS, _UNEVEN_HEADS = ({**step, "widths": "uneven"} for step in (_NEURONS, _HEADS))
_FACTORS = {"step": "factorize", "method": "svd-llm", "keep": 0.8}
CASES = {
    "magnitude": Case("magnitude, 50 % of every matrix", (_prune("magnitude"),)),
    "magnitude-global": Case("magnitude, 50 % of all together", (_prune("magnitude", scope="global"),)),
    "wanda": Case("Wanda, 50 %", (_prune("wanda"),)),
    "sparsegpt": Case("SparseGPT, 50 %", (_prune("sparsegpt"),)),
    "wanda-2:4": Case("Wanda, 2:4", (_prune("wanda", pattern="2:4"),)),
    "sparsegpt-2:4": Case("SparseGPT, 2:4", (_prune("sparsegpt", pattern="2:4"),)),
    "svd": Case("SVD, 80 % of the weights", ({**_FACTORS, "method": "svd"},)),
    "svd-llm": Case("SVD-LLM, 80 % of the weights", (_FACTORS,)),
    "layers": Case("8 of 30 layers removed by block influence", (_LAYERS,), speed=True),
    "neurons": Case("a third of the feed-forward neurons removed", (_NEURONS,), speed=True),
    "heads": Case("1 of 3 groups of heads removed", (_HEADS,), speed=True),
    "uneven neurons": Case("a third of all neurons removed, where they matter least", (_UNEVEN_NEURONS,), speed=True),
    "uneven heads": Case(
        "a third of all groups of heads removed, where they matter least", (_UNEVEN_HEADS,), speed=True
    ),
    "gptq": Case("GPTQ alone, Q4_K_M's bytes", (_gguf("q4_k_m"),), "gguf"),
    "gptq, own text": Case("the same, on 32 pieces that the model writes", (_gguf("q4_k_m"),), "gguf", own_text=True),
    "sparsegpt, gptq": Case("SparseGPT 50 %, then GPTQ", (_prune("sparsegpt"), _gguf("q4_k_m")), "gguf"),
    "layers, gptq": Case("8 layers removed, then GPTQ", (_LAYERS, _gguf("q4_k_m")), "gguf"),
    "neurons, gptq": Case("a third of the neurons removed, then GPTQ", (_NEURONS, _gguf("q4_k_m")), "gguf"),
    "uneven neurons, gptq": Case(
        "the same third where it matters least, then GPTQ", (_UNEVEN_NEURONS, _gguf("q4_k_m")), "gguf"
    ),
    "rtn q4_0": Case("Q4_0, round to nearest", (_q4_0("rtn"),), "gguf"),
    "awq, rtn q4_0": Case("AWQ, then Q4_0, round to nearest", (_AWQ, _q4_0("rtn")), "gguf"),
    "values, rtn q4_0": Case("values rotated, then Q4_0, round to nearest", (_VALUES, _q4_0("rtn")), "gguf"),
    "rotated, rtn q4_0": Case("all rotated, then Q4_0, round to nearest", (_ALL, _q4_0("rtn")), "gguf"),
    "onnx gptq": Case("GPTQ alone, ONNX int4", ({"step": "quantize", "preset": "int4"},), "onnx"),
    "svd-llm, onnx gptq": Case(
        "SVD-LLM 80 %, then GPTQ, ONNX int4", (_FACTORS, {"step": "quantize", "preset": "int4"}), "onnx"
    ),
}


def run(case: Case, model: Path) -> dict[str, Any]:
    """Compress, and judge what comes of it."""
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        work = Path(directory)
        recipe, out = work / "case.yaml", work / "out"
        recipe.write_text(json.dumps(case.recipe()), encoding="utf-8")  # JSON is YAML
        steps = _json("compress", str(model), "--recipe", str(recipe), "-o", str(out), "--threads", "2")["steps"]
        last = steps[-1]
        found = {key: last[key] for key in ("n_params", "sparsity", "mean_kl", "perplexity_ratio", "same_top1")}
        found |= {"seconds": sum(step["seconds"] for step in steps), "judge": "torch"}
        if case.format:
            artifact = work / "artifact"
            _export(out, artifact, "--format", case.format)
            found |= _judged(artifact, model)
        if case.speed:
            found |= _speeds(out, model, work)
        return found


def _json(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [PACKLIGHT, *arguments, "--json"], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    if not done.stdout:
        raise RuntimeError(f"packlight {' '.join(arguments)}: {done.stderr[-2000:]}")
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def _export(source: Path, out: Path, *more: str) -> None:
    command = [PACKLIGHT, "export", str(source), "-o", str(out), "--no-verify", "--no-measure", "--quiet", *more]
    subprocess.run(command, env=ENVIRONMENT, check=True)


def _judged(artifact: Path, model: Path) -> dict[str, Any]:
    """Bytes, and drift in the artifact's own engine."""
    report = _json("verify", str(artifact), "--against", str(model), "--threads", "2")
    lines = {line["name"]: line["value"] for line in report["lines"]}
    return {
        "bytes": lines["size"], "mean_kl": lines["KL divergence"], "perplexity_ratio": lines["perplexity ratio"],
        "same_top1": lines["same top-1"], "judge": report["drift"]["engine"],
    }  # fmt: skip


def _speeds(compressed: Path, model: Path, work: Path) -> dict[str, Any]:
    """Decode of both at Q8_0, in turns."""
    files = {"whole": work / "whole", "smaller": work / "smaller"}
    for name, source in (("whole", model), ("smaller", compressed)):
        _export(source, files[name], "--quant", "q8_0")
    speeds: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(RUNS):
        for name, path in files.items():
            report = _json("measure", str(path), "--threads", "2")
            speeds[name].append(report["measurement"]["decode_tokens_per_s"]["median"])
    median = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        "decode": median,
        "decode_ratio": median["smaller"] / median["whole"],
        "bytes_q8_0": _size(files["smaller"]),
    }


def _size(artifact: Path) -> int:
    (file,) = artifact.glob("*.gguf")
    return file.stat().st_size


def limits(cases: dict[str, dict[str, Any]]) -> list[tuple[str, float, str, bool]]:
    """What has to hold: in words, the figure, its limit, and whether it does; only of cases that were run."""
    found = []

    def ordered(what: str, first: str, second: str, most: float, key: str = "perplexity_ratio") -> None:
        if first in cases and second in cases:
            value = cases[first][key] / cases[second][key]
            found.append((what, value, f"≤ {most:g}", value <= most))

    ordered("perplexity, Wanda / magnitude", "wanda", "magnitude", 0.7)
    ordered("perplexity, SparseGPT / Wanda", "sparsegpt", "wanda", 1.0)
    ordered("perplexity, SparseGPT / Wanda at 2:4", "sparsegpt-2:4", "wanda-2:4", 1.0)
    ordered("perplexity, SVD-LLM / SVD", "svd-llm", "svd", 0.5)
    for kind in ("neurons", "heads"):
        ordered(f"mean KL, {kind} removed unevenly / evenly", f"uneven {kind}", kind, 1.0, "mean_kl")
    for name in ("layers", "neurons", "uneven neurons"):
        if name in cases:
            value = cases[name]["decode_ratio"]
            found.append((f"decode, {CASES[name].what} / whole", value, "≥ 1.15", value >= 1.15))
    return found


def table(content: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "| recipe | parameters, M | zeros | file, MB | mean KL | perplexity ratio | same top-1 | judged in | time, s "
        "| decode, of the whole model's |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for name, one in content["cases"].items():
        size = f"{one['bytes'] / 1e6:.1f}" if "bytes" in one else ""
        speed = f"{one['decode_ratio']:.2f}" if "decode_ratio" in one else ""
        lines.append(
            f"| {CASES[name].what} | {one['n_params'] / 1e6:.1f} | {one['sparsity']:.0%} | {size} "
            f"| {one['mean_kl']:.4f} | {one['perplexity_ratio']:.3f} | {one['same_top1']:.1%} "
            f"| {one['judge'].split()[0]} | {one['seconds']:.0f} | {speed} |"
        )
    lines += ["", "| what has to hold | figure (limit) |", "| --- | ---: |"]
    for what, value, limit, holds in limits(content["cases"]):
        lines.append(f"| {what} | {record.judged(f'{value:.2f} ({limit})', holds)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is not there yet, print the table, write the result; exit status 1 where a limit does not hold."""
    names = chosen("compression_methods", __doc__.splitlines()[0], CASES)
    model = offgrid(smollm2())
    content: dict[str, Any] = record.provenance()
    recipes = {name: CASES[name].recipe() for name in names}
    content["cases"] = finished(KEPT, content["code_sha256"], recipes, lambda name, _path: run(CASES[name], model))
    record.save("compression_methods", content)
    print(table(content))
    sys.exit(not all(holds for *_, holds in limits(content["cases"])))


if __name__ == "__main__":
    main()
