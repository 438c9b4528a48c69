"""How long `packlight --help` takes, against an interpreter that does nothing.

    python -m benchmarks.startup [--runs 10]

Whole processes on two processors, one after the other in turn, medians over the runs, after one of each that warms
the file cache and writes the byte code.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.spawn import Cost, run

THREADS = 2
LIMIT_S = 0.3
"""Largest allowed median wall time of `packlight --help`."""
HELP, BARE = "packlight --help", "python -c pass"


def commands() -> dict[str, list[str]]:
    """The command lines by their name in the table."""
    return {
        HELP: [str(Path(sys.executable).with_name("packlight")), "--help"],
        BARE: [sys.executable, "-c", "pass"],
    }


def measure(runs: int) -> dict[str, list[Cost]]:
    """The cost of every run, by command."""
    found: dict[str, list[Cost]] = {name: [] for name in commands()}
    for number in range(-1, runs):
        for name, command in commands().items():
            cost = run(command, THREADS)
            if number >= 0:
                found[name].append(cost)
    return found


def summary(costs: dict[str, list[Cost]]) -> list[dict[str, Any]]:
    """One row a command: medians, and every run."""
    rows = []
    for name, found in costs.items():
        runs = [asdict(cost) for cost in found]
        medians = {key: statistics.median(one[key] for one in runs) for key in runs[0]}
        rows.append({"command": name, **medians, "wall_limit_s": LIMIT_S if name == HELP else None, "runs": runs})
    return rows


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """Every limit that does not hold."""
    return [
        f"{row['command']}: {row['wall_s']:.3f} s over {row['wall_limit_s']} s"
        for row in rows
        if row["wall_limit_s"] is not None and row["wall_s"] > row["wall_limit_s"]
    ]


def table(content: dict[str, Any]) -> str:
    """The result as Markdown; what does not hold is marked."""
    lines = [
        "| command | median, s (limit) | fastest, s | slowest, s | CPU, s | peak, MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in content["rows"]:
        limit, walls = row["wall_limit_s"], [one["wall_s"] for one in row["runs"]]
        median = f"{row['wall_s']:.3f}" if limit is None else f"{row['wall_s']:.3f} ({limit})"
        cells = (
            f"`{row['command']}`",
            record.judged(median, limit is None or row["wall_s"] <= limit),
            f"{min(walls):.3f}", f"{max(walls):.3f}", f"{row['cpu_s']:.3f}", f"{row['peak_rss_bytes'] / 1e6:.0f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run, print the table, write the result; exit status 1 where the limit does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    args = parser.parse_args()
    content: dict[str, Any] = {**record.provenance(), "threads": THREADS, "n_runs": args.runs}
    content["rows"] = summary(measure(args.runs))
    record.save("startup", content)
    print(table(content))
    broken = failures(content["rows"])
    print("\n".join(broken) or "the limit holds", file=sys.stderr)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
