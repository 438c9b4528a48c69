"""What `packlight compress` takes: peak memory and time, for the real model and for one of 1 B parameters.

    python -m benchmarks.compress_memory [--models smollm2 1B] [--recipe gptq-q4_k_m]

Whole processes on two processors, calibrated on 32 pieces of 512 tokens of Python's own help. The peak is the kernel's
high-water mark of the resident set, pages of mapped files counted too. The large model's weights are random: they say
nothing of quality.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.models import offgrid, random_llama
from benchmarks.paths import CACHE
from benchmarks.smollm2 import smollm2
from benchmarks.spawn import run
from exporter.recipe import load_recipe
from targets.safetensors import read_facts

THREADS = 2
PEAK_LIMIT, TIME_LIMIT_S = 6e9, 300.0
MODELS = {
    "smollm2": ("SmolLM2-135M off-grid", lambda: offgrid(smollm2()), TIME_LIMIT_S),
    "1B": ("Llama of 1 B random weights", random_llama, None),
}
"""Models by name: what to call each, how to get it, and the largest allowed time in seconds."""
CALIBRATION = {"source": "help", "chunks": 32, "tokens": 512}


def row(name: str, recipe: str) -> dict[str, Any]:
    """One compression."""
    what, made, limit = MODELS[name]
    model = made()
    content = load_recipe(recipe).model_dump(mode="json", exclude_defaults=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        file, out = Path(directory) / "recipe.yaml", Path(directory) / "out"
        file.write_text(json.dumps({**content, "calibration": CALIBRATION}), encoding="utf-8")  # JSON is YAML
        packlight = str(Path(sys.executable).with_name("packlight"))
        command = [packlight, "compress", str(model), "--recipe", str(file), "-o", str(out), "--threads", str(THREADS)]
        cost = run([*command, "--quiet"], THREADS, {**os.environ, "HF_HUB_OFFLINE": "1"})
        (step,) = json.loads((out / "packlight_recipe.json").read_text(encoding="utf-8"))["steps"]
    weights = sum(fact.n_bytes for fact in read_facts(model, str(model), name).tensors.values())
    return {
        "model": what, "recipe": recipe, "time_limit_s": limit, "weights_bytes": weights, "n_params": step["n_params"],
        "step_s": step["seconds"], **asdict(cost),
    }  # fmt: skip


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """Every limit that does not hold."""
    found = [f"{one['model']}: peak {one['peak_rss_bytes'] / 1e9:.2f} GB" for one in rows if not _fits(one)]
    return found + [f"{one['model']}: {one['wall_s']:.0f} s" for one in rows if not _in_time(one)]


def _fits(one: dict[str, Any]) -> bool:
    return bool(one["peak_rss_bytes"] <= PEAK_LIMIT)


def _in_time(one: dict[str, Any]) -> bool:
    return one["time_limit_s"] is None or one["wall_s"] <= one["time_limit_s"]


def table(content: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "| model | recipe | parameters, M | its weights, GB | peak, GB (limit) | time, s (limit) "
        "| of which quantizing, s | CPU, s |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in content["rows"]:
        limit = f" ({one['time_limit_s']:.0f})" if one["time_limit_s"] else ""
        time = f"{one['wall_s']:.0f}{limit}"
        peak = f"{one['peak_rss_bytes'] / 1e9:.2f} ({PEAK_LIMIT / 1e9:g})"
        lines.append(
            f"| {one['model']} | {one['recipe']} | {one['n_params'] / 1e6:.0f} | {one['weights_bytes'] / 1e9:.2f} "
            f"| {record.judged(peak, _fits(one))} | {record.judged(time, _in_time(one))} "
            f"| {one['step_s']:.0f} | {one['cpu_s']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run, print the table, write the result; exit status 1 where a limit does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compress_memory", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--recipe", default="gptq-q4_k_m")
    args = parser.parse_args()
    content: dict[str, Any] = {**record.provenance(), "rows": []}
    for name in args.models:
        content["rows"].append(row(name, args.recipe))
        print(f"{name}: {content['rows'][-1]}", file=sys.stderr, flush=True)
    record.save("compress_memory", content)
    print(table(content))
    sys.exit("; ".join(failures(content["rows"])) or 0)


if __name__ == "__main__":
    main()
