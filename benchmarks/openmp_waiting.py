"""What OpenMP threads that wait cost llama.cpp's decoding: they sleep at once, spin as we let them, or as libgomp does.

    python -m benchmarks.openmp_waiting [--runs 5]

llama.cpp's own llama-completion on two threads, SmolLM2 at Q8_0: on a machine that does nothing else, and beside two
processes that keep both processors busy. In turns, medians over the runs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import record
from benchmarks.kl_parity import export
from benchmarks.paths import CACHE
from benchmarks.smollm2 import smollm2
from benchmarks.tools import tool
from runtime.openmp import SPINS, without_openmp

if TYPE_CHECKING:
    from collections.abc import Iterator

WAYS = {
    "sleep at once": {"OMP_WAIT_POLICY": "PASSIVE"},
    "ours": {"GOMP_SPINCOUNT": str(SPINS)},
    "libgomp's default": {},
    "spin": {"OMP_WAIT_POLICY": "ACTIVE"},
}
TOKENS, THREADS = 48, 2


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute nothing useful."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def decode(file: Path, way: dict[str, str]) -> float:
    """Tokens per second."""
    command = [str(tool("llama-completion")), "-m", str(file), "-p", "The sea", "-n", str(TOKENS), "-t", str(THREADS)]
    done = subprocess.run(
        [*command, "-no-cnv", "--temp", "0", "--ignore-eos"], env={**without_openmp(os.environ), **way},
        capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    found = re.search(r"(?<!prompt) eval time.*?([\d.]+) tokens per second", done.stderr)
    if found is None:
        raise RuntimeError(f"llama-completion says no speed: {done.stderr[-1000:]}")
    return float(found[1])


def rows(file: Path, runs: int) -> list[dict[str, Any]]:
    """Medians of every way, alone and beside others."""
    found = []
    for others in (0, THREADS):
        speeds: dict[str, list[float]] = {name: [] for name in WAYS}
        with busy(others):
            for _ in range(runs):
                for name, way in WAYS.items():
                    speeds[name].append(decode(file, way))
        found += [{"way": name, "others": others, "runs": values, "median": statistics.median(values)}
                  for name, values in speeds.items()]  # fmt: skip
    return found


def table(content: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["| threads that wait | decode alone, tokens/s | beside two busy processes |", "| --- | ---: | ---: |"]
    for name in WAYS:
        medians = {one["others"]: one["median"] for one in content["rows"] if one["way"] == name}
        lines.append(f"| {name} | {medians[0]:.0f} | {medians[THREADS]:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Run, print the table, write the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.openmp_waiting", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    content: dict[str, Any] = record.provenance()
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        content["rows"] = rows(export(smollm2(), "q8_0", Path(directory) / "q8_0"), args.runs)
    record.save("openmp_waiting", content)
    print(table(content))


if __name__ == "__main__":
    main()
