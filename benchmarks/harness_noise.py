"""How much one measurement differs from the next: the harness's own noise, over runs of the same file.

    python -m benchmarks.harness_noise [--runs 10]

SmolLM2 at Q4_K_M, `runtime.measure` as `packlight measure` calls it, every run a fresh process with a cold file. The
coefficient of variation is the standard deviation of a sample by its mean; a figure of a run is the median of its
trials where it has any. Between the runs llama.cpp's own llama-bench does the same with the same file: what varies
there too is the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import record
from benchmarks.kl_parity import export
from benchmarks.paths import CACHE
from benchmarks.smollm2 import smollm2
from benchmarks.tools import tool
from runtime.artifact import open_artifact
from runtime.host import default_threads
from runtime.measure import measure
from runtime.measurement import PROMPT_TOKENS, RunOptions, Trials

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
BENCH = ("llama-bench: prefill, tokens/s", "llama-bench: decode, tokens/s")


def figures(found: Measurement) -> dict[str, float]:
    """Of one run; a figure that was not measured is left out."""
    values = {name: (getattr(found, field), unit) for name, (field, unit) in FIGURES.items()}
    return {name: getattr(value, "median", value) / unit for name, (value, unit) in values.items() if value is not None}


def bench(said: str) -> dict[str, float]:
    """Figures of what llama-bench prints as JSON: a prompt and a generation, the median of each one's trials."""
    by_kind = {bool(one["n_gen"]): statistics.median(one["samples_ts"]) for one in json.loads(said)}
    return {name: by_kind[generated] for name, generated in zip(BENCH, (False, True), strict=True)}


def run_bench(path: Path, trials: Trials) -> dict[str, float]:
    """The same prompt, tokens, trials and threads as the harness's."""
    command = [str(tool("llama-bench")), "--model", str(path), "--n-prompt", str(trials.prompt_tokens), "--n-gen",
               str(trials.decode_tokens), "--repetitions", str(trials.count), "--threads", str(default_threads()),
               "--batch-size", "512", "--output", "json"]  # fmt: skip
    return bench(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def variation(values: list[float]) -> float:
    """The coefficient of variation of at least two values."""
    return statistics.stdev(values) / statistics.fmean(values)


def rows(runs: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Every figure over the runs."""
    found = []
    for name in (*FIGURES, *BENCH):
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
        artifact, trials = open_artifact(export(smollm2(), "q4_k_m", Path(directory) / "q4_k_m")), Trials(PROMPT_TOKENS)
        found = [
            figures(measure(artifact, RunOptions(), trials)) | run_bench(artifact.entry_path, trials)
            for _ in range(args.runs)
        ]
    content |= {"runs": args.runs, "rows": rows(found)}
    record.save("harness_noise", content)
    print(table(content))


if __name__ == "__main__":
    main()
