"""Peak memory of a conversion over the size of the model, from 0.1 to 8 billion parameters.

    python -m benchmarks.size_curve [--sizes 0.1B … 8B] [--quants q4_k_m q8_0] [--keep]

`packlight export … --no-verify --no-measure`, a whole process on two processors. SmolLM2 and Llamas of random weights
in bf16 (benchmarks.models); the largest has the shape of Llama 3 8B: 16 GB, which are removed afterwards unless they
were there before, or --keep is given.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import record
from benchmarks.convert_speed import THREADS, ours
from benchmarks.models import random_llama
from benchmarks.paths import CACHE, MODELS
from benchmarks.smollm2 import smollm2

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "size_curve"
SIZES: dict[str, Callable[[], Path]] = {
    "0.1B": smollm2,
    "0.5B": lambda: random_llama(params=5e8, hidden=1024),
    "1B": lambda: random_llama(params=1e9),
    "3B": lambda: random_llama(params=3e9),
    "8B": lambda: random_llama(params=8e9),
}
LIMIT = 2e9
"""Largest allowed peak memory of any size, bytes."""


def measure(model: Path, quant: str, work: Path) -> dict[str, Any]:
    """One conversion: its cost, the model's bytes and the file's."""
    cost, size = ours(model, quant, work)
    source = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    return {"quant": quant, **asdict(cost), "source_bytes": source, "file_bytes": size}


def holds(row: dict[str, Any]) -> bool:
    """Whether a row's peak memory is within the limit."""
    return bool(row["peak_rss_bytes"] <= LIMIT)


def table(content: dict[str, Any]) -> str:
    """The result as Markdown."""
    header = ("model", "preset", "source, GB", "file, GB", "peak, MB (limit)")
    lines = [f"| {' | '.join(header)} |", "| --- | --- |" + " ---: |" * (len(header) - 2)]
    for row in content["rows"]:
        peak = record.judged(f"{row['peak_rss_bytes'] / 1e6:.0f} ({LIMIT / 1e6:.0f})", holds(row))
        figures = f"{row['source_bytes'] / 1e9:.2f} | {row['file_bytes'] / 1e9:.2f}"
        lines.append(f"| {row['model']} | {row['quant'].upper()} | {figures} | {peak} |")
    return "\n".join(lines)


def main() -> None:
    """Run, print the table, write the result; exit status 1 where the limit does not hold."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--quants", nargs="+", default=["q4_k_m", "q8_0"])
    parser.add_argument("--keep", action="store_true", help="leave the models that were made")
    args = parser.parse_args()
    content: dict[str, Any] = {**record.provenance(), "threads": THREADS, "rows": []}
    CACHE.mkdir(exist_ok=True)
    for size in args.sizes:
        before = set(MODELS.glob("*"))
        model = SIZES[size]()
        with tempfile.TemporaryDirectory(dir=CACHE) as work:
            for quant in args.quants:
                content["rows"].append({"model": size, **measure(model, quant, Path(work))})
                print(content["rows"][-1], file=sys.stderr, flush=True)
                record.save(NAME, content)
        if model not in before and not args.keep:
            shutil.rmtree(model)
    print(table(content))
    sys.exit(not all(map(holds, content["rows"])))


if __name__ == "__main__":
    main()
