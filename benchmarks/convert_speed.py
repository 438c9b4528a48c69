"""Our conversion against llama.cpp's own two steps: wall time, peak memory, bytes written.

    python -m benchmarks.convert_speed [--runs 3] [--models smollm2 1B 3B] [--quants q8_0 q4_0 q4_k_m iq4_xs]

Official: `convert_hf_to_gguf.py --outtype bf16`, then `llama-quantize`. Ours: `packlight export … --no-verify
--no-measure`. Whole processes on two processors, one after the other in turn, medians over the runs. The 3 B
model is converted by ours alone, for the growth of peak memory. Random weights are for speed only. IQ4_XS goes with an
importance matrix, of random numbers too, the same file for both.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import record
from benchmarks.models import random_llama
from benchmarks.paths import CACHE
from benchmarks.smollm2 import smollm2
from benchmarks.spawn import Cost, run
from benchmarks.tools import converter, tool
from exporter.checkpoint import resolve
from targets.gguf.imatrix import ImportanceMatrix, Sums, write_imatrix
from targets.gguf.plan import read_content

if TYPE_CHECKING:
    from collections.abc import Callable

THREADS = 2
MODELS: dict[str, Callable[[], Path]] = {
    "smollm2": smollm2,
    "1B": lambda: random_llama(params=1e9),
    "3B": lambda: random_llama(params=3e9),
}
OURS_ONLY = ("3B",)
WEIGHTED = ("iq4_xs",)
"""Presets that are converted with an importance matrix."""

LIMITS = {("smollm2", "q8_0"): 0.3, ("smollm2", "q4_k_m"): 0.3, ("1B", "q8_0"): 0.35, ("1B", "q4_0"): 0.35,
          ("1B", "q4_k_m"): 0.65, ("1B", "iq4_xs"): 0.9}  # fmt: skip
"""Largest allowed share of the official wall time, by model and preset."""
MEMORY_LIMITS = {"smollm2": 0.4, "1B": 0.3}
"""Largest allowed share of the official peak memory, by model."""
WRITTEN_LIMIT = 1.05
"""Largest allowed ratio of bytes written to the final file's bytes."""
GROWTH_LIMIT = 1.3
"""Largest allowed growth of our peak memory from 1 B to 3 B parameters."""


def official(model: Path, quant: str, work: Path) -> tuple[Cost, int]:
    """The two-step conversion: its cost, and the final file's bytes."""
    script, env = converter()
    middle, final = work / "bf16.gguf", work / "official.gguf"
    first = run([sys.executable, str(script), str(model), "--outtype", "bf16", "--outfile", str(middle)], THREADS, env)
    weighted = ["--imatrix", str(importance(model, work))] if quant in WEIGHTED else []
    quantize = [str(tool("llama-quantize")), *weighted, str(middle), str(final), quant.upper(), str(THREADS)]
    second = run(quantize, THREADS)
    size = final.stat().st_size
    middle.unlink()
    final.unlink()
    return first.then(second), size


def importance(model: Path, work: Path) -> Path:
    """An importance matrix of random numbers for the layers' matrices of a model, made once."""
    path = work / f"{model.name}.imatrix.gguf"
    if not path.is_file():
        content, problems = read_content(resolve(str(model)))
        if content is None or problems:
            raise ValueError(f"{model}: {problems}")
        rng = np.random.default_rng(0)
        sums = {
            tensor.name: Sums(rng.random((1, tensor.shape[-1]), np.float32), np.ones(1, np.int64))
            for tensor in content.tensors
            if tensor.name.startswith("blk.") and len(tensor.shape) > 1
        }
        write_imatrix(path, ImportanceMatrix(sums, ("random",), 1))
    return path


def ours(model: Path, quant: str, work: Path) -> tuple[Cost, int]:
    """Our conversion: its cost, and the final file's bytes."""
    out = work / "ours"
    weighted = ["--imatrix", str(importance(model, work))] if quant in WEIGHTED else []
    cost = run(ours_command(model, quant, out, *weighted), THREADS)
    (final,) = out.glob("*.gguf")
    size = final.stat().st_size
    for path in out.iterdir():
        path.unlink()
    out.rmdir()
    return cost, size


def ours_command(model: Path, quant: str, out: Path, *more: str) -> list[str]:
    """The command line of our conversion, verification and measuring off."""
    packlight = Path(sys.executable).with_name("packlight")
    named = ["--format", "gguf", "--quant", quant, "-o", str(out)]
    return [str(packlight), "export", str(model), *named, "--no-verify", "--no-measure", *more]


def measure(name: str, quant: str, runs: int, work: Path) -> dict[str, Any]:
    """One row: every run of both roads, and what is made of them."""
    model = MODELS[name]()
    roads = {"ours": ours} if name in OURS_ONLY else {"official": official, "ours": ours}
    if name in OURS_ONLY:
        runs = 1  # for its peak memory, which does not vary
    costs: dict[str, list[Cost]] = {road: [] for road in roads}
    sizes: dict[str, int] = {}
    for number in range(runs):
        for road, convert in roads.items():
            cost, sizes[road] = convert(model, quant, work)
            costs[road].append(cost)
            print(f"{name} {quant} {number + 1}/{runs} {road}: {cost}", file=sys.stderr, flush=True)
    row: dict[str, Any] = {"model": name, "quant": quant, "file_bytes": sizes, "runs": {}}
    for road, found in costs.items():
        row[road] = {key: statistics.median(asdict(cost)[key] for cost in found) for key in asdict(found[0])}
        row["runs"][road] = [asdict(cost) for cost in found]
    row["written_ratio"] = row["ours"]["written_bytes"] / sizes["ours"]
    if "official" in row:
        row["wall_ratio"] = row["ours"]["wall_s"] / row["official"]["wall_s"]
        row["memory_ratio"] = row["ours"]["peak_rss_bytes"] / row["official"]["peak_rss_bytes"]
        row["wall_limit"] = LIMITS.get((name, quant))
    return row


def growth(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Our peak memory at 3 B over that at 1 B, by preset, where both were run."""
    peaks = {(row["model"], row["quant"]): row["ours"]["peak_rss_bytes"] for row in rows}
    quants = dict.fromkeys(row["quant"] for row in rows)
    return {q: peaks["3B", q] / peaks["1B", q] for q in quants if ("3B", q) in peaks and ("1B", q) in peaks}


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """Every limit that does not hold."""
    found = []
    for row in rows:
        where = f"{row['model']} {row['quant']}"
        limits = (
            ("written_ratio", WRITTEN_LIMIT),
            ("memory_ratio", MEMORY_LIMITS.get(row["model"])),
            ("wall_ratio", row.get("wall_limit")),
        )
        for key, limit in limits:
            if limit is not None and key in row and row[key] > limit:
                found.append(f"{where}: {key} {row[key]:.3f} over {limit}")
    found += [f"{q}: peak memory grows by {ratio:.2f}" for q, ratio in growth(rows).items() if ratio > GROWTH_LIMIT]
    return found


def _pair(row: dict[str, Any], key: str, unit: float, form: str) -> list[str]:
    """Theirs and ours; empty where the road was not taken or the figure not recorded."""
    found = (row.get(road, {}).get(key) for road in ("official", "ours"))
    return ["" if value is None else f"{value / unit:{form}}" for value in found]


def _ratio(row: dict[str, Any], key: str, limit: float | None) -> str:
    """A ratio beside its limit, marked where it is over; empty where the official road was not taken."""
    if key not in row:
        return ""
    text = f"{row[key]:.2f}" if limit is None else f"{row[key]:.2f} ({limit})"
    return record.judged(text, limit is None or row[key] <= limit)


def table(content: dict[str, Any]) -> str:
    """The result as Markdown; what does not hold is marked."""
    header = (
        "model", "preset", "official, s", "ours, s", "ratio (limit)", "official CPU, s", "ours CPU, s",
        "official peak, MB", "ours, MB", "ratio (limit)", "official wrote, MB", "ours wrote, MB", "file, MB",
    )  # fmt: skip
    lines = [f"| {' | '.join(header)} |", "| --- | --- |" + " ---: |" * (len(header) - 2)]
    for row in content["rows"]:
        cells = [row["model"], row["quant"].upper()]
        cells += _pair(row, "wall_s", 1, ".2f")
        cells.append(_ratio(row, "wall_ratio", row.get("wall_limit")))
        cells += _pair(row, "cpu_s", 1, ".2f")
        cells += _pair(row, "peak_rss_bytes", 1e6, ".0f")
        cells.append(_ratio(row, "memory_ratio", MEMORY_LIMITS.get(row["model"])))
        theirs, written = _pair(row, "written_bytes", 1e6, ".1f")
        written = record.judged(written, row["written_ratio"] <= WRITTEN_LIMIT)
        cells += [theirs, written, f"{row['file_bytes']['ours'] / 1e6:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    for quant, ratio in growth(content["rows"]).items():
        growth_text = record.judged(f"{ratio:.2f} times (limit {GROWTH_LIMIT})", ratio <= GROWTH_LIMIT)
        lines += ["", f"Peak memory of ours from 1 B to 3 B, {quant.upper()}: {growth_text}."]
    return "\n".join(lines)


def main() -> None:
    """Run, print the table, write the result; exit status 1 where a limit does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convert_speed", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--quants", nargs="+", default=["q8_0", "q4_0", "q4_k_m", "iq4_xs"])
    args = parser.parse_args()
    content: dict[str, Any] = {**record.provenance(), "threads": THREADS, "runs": args.runs, "rows": []}
    content["method"] = {
        "official": "convert_hf_to_gguf.py --outtype bf16, then llama-quantize FILE OUT PRESET 2",
        "ours": " ".join(["packlight", *ours_command(Path("MODEL"), "PRESET", Path("OUT"))[1:]]),
    }
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        for name in args.models:
            for quant in args.quants:
                content["rows"].append(measure(name, quant, args.runs, Path(work)))
                record.save("convert_speed", content)
    print(table(content))
    broken = failures(content["rows"])
    print("\n".join(broken) or "every limit holds", file=sys.stderr)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
