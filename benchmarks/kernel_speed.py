"""ggml's quantization kernels against the vector kernels that write the same bytes, one thread each.

    python -m benchmarks.kernel_speed [--rounds 7]

Rows like weights, half a million at once, as a conversion has them. Both in turn, a tenth of a second each, since a
processor takes a while to get used to wide vectors; medians over the rounds, and the bytes compared.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import record
from targets.gguf.kernels import by_ggml
from targets.gguf.simd import verified
from targets.gguf.types import TYPES

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]

NAME = "kernel_speed"
ROWS, COLUMNS = 256, 2048


LEAST = 0.1
"""Seconds of calls that a turn takes at least."""


def seconds(work: Callable[[], object]) -> float:
    """Of one call, the mean of a turn."""
    start, calls = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < LEAST or not calls:
        work()
        calls += 1
    return passed / calls


def measure(name: str, weighted: bool, rounds: int) -> dict[str, Any] | None:
    """One row; None for a kernel that there is not, or that is not used with this ggml."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32) * np.float32(0.02)
    importance = rng.random(COLUMNS).astype(np.float32) if weighted else None
    reference = functools.partial(by_ggml, TYPES[name])
    found = verified.quantize(name, values, importance, reference)
    if found is None:
        return None
    times: dict[str, list[float]] = {"ggml": [], "ours": []}
    for _ in range(rounds):
        times["ggml"].append(seconds(lambda: reference(values, importance)))
        times["ours"].append(seconds(lambda: verified.quantize(name, values, importance, reference)))
    speeds = {road: values.size / statistics.median(found) / 1e6 for road, found in times.items()}
    equal = bool(np.array_equal(found, reference(values, importance)))
    return {"type": name, "weighted": weighted, "equal": equal, **speeds, "ratio": speeds["ours"] / speeds["ggml"]}


def table(content: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["| type | importance matrix | ggml, Mweights/s | ours | times as fast | same bytes |",
             "| --- | --- | ---: | ---: | ---: | --- |"]  # fmt: skip
    for row in content["rows"]:
        same = record.judged("yes" if row["equal"] else "no", row["equal"])
        with_it = "yes" if row["weighted"] else ""
        figures = f"{row['ggml']:.1f} | {row['ours']:.1f} | {row['ratio']:.1f}"
        lines.append(f"| {row['type']} | {with_it} | {figures} | {same} |")
    return "\n".join(lines)


def main() -> None:
    """Run, print the table, write the result; exit status 1 where bytes differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel_speed", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    content: dict[str, Any] = {**record.provenance(), "rounds": args.rounds, "rows": []}
    for name in verified.NAMES:
        for weighted in (False, True):
            if (row := measure(name, weighted, args.rounds)) is not None:
                content["rows"].append(row)
    record.save(NAME, content)
    print(table(content))
    sys.exit(not all(row["equal"] for row in content["rows"]))


if __name__ == "__main__":
    main()
