"""How much one measurement differs from the next: the harness's own noise, over runs of the same file.

    python -m benchmarks.harness_noise [--runs 10]

SmolLM2 at Q4_K_M, `runtime.measure` as `packlight measure` calls it, every run a fresh process with a cold file. The
coefficient of variation is the standard deviation of a sample by its mean; a figure of a run is the median of its
trials where it has any.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import record
from benchmarks.kl_parity import export
from benchmarks.paths import CACHE
from benchmarks.smollm2 import smollm2
from runtime.artifact import open_artifact
from runtime.measure import measure
from runtime.measurement import RunOptions, Trials

if TYPE_CHECKING:
    from runtime.measurement import Measurement

FIGURES = {
    "peak memory, MB": ("peak_rss_bytes", 1e6),
    "load, cold file, s": ("load_s", 1.0),
    "load, file in cache, s": ("warm_load_s", 1.0),
    "first token, ms": ("first_token_ms", 1.0),
    "prefill, tokens/s": ("prefill_tokens_per_s", 1.0),
    "decode, tokens/s": ("decode_tokens_per_s", 1.0),
}
"""Field of a Measurement, and what it is divided by."""


def figures(found: Measurement) -> dict[str, float]:
    """Of one run; a figure that was not measured is left out."""
    values = {name: (getattr(found, field), unit) for name, (field, unit) in FIGURES.items()}
    return {name: getattr(value, "median", value) / unit for name, (value, unit) in values.items() if value is not None}


def variation(values: list[float]) -> float:
    """The coefficient of variation of at least two values."""
    return statistics.stdev(values) / statistics.fmean(values)


def rows(runs: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Every figure over the runs."""
    found = []
    for name in FIGURES:
        values = [run[name] for run in runs if name in run]
        if len(values) > 1:
            found.append(
                {"figure": name, "values": values, "median": statistics.median(values), "cv": variation(values)}
            )
    return found


def table(content: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [f"| over {content['runs']} runs | median | coefficient of variation |", "| --- | ---: | ---: |"]
    lines += [f"| {row['figure']} | {row['median']:,.2f} | {row['cv']:.2%} |" for row in content["rows"]]
    return "\n".join(lines)


def main() -> None:
    """Run, print the table, write the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.harness_noise", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    args = parser.parse_args()
    if args.runs < 2:
        parser.error("one run differs from no other: use --runs 2 or more")
    content: dict[str, Any] = record.provenance()
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        artifact = open_artifact(export(smollm2(), "q4_k_m", Path(directory) / "q4_k_m"))
        found = [figures(measure(artifact, RunOptions(), Trials())) for _ in range(args.runs)]
    content |= {"runs": args.runs, "rows": rows(found)}
    record.save("harness_noise", content)
    print(table(content))


if __name__ == "__main__":
    main()
