"""Measure this machine once: how long engines take for a matrix of every kind, so that a plan can tell speeds.

Small models of one kind of matrix are made here and run by the engines themselves, through the harness; what their
layers, attention and matrices cost is solved from the times. No kernel is timed alone: an engine's own way through it
is what counts.
"""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporter.report.report import utc_now
from runtime.artifact import open_artifact
from runtime.errors import EngineError, UserError
from runtime.host import default_threads, host_facts
from runtime.measure import measure
from runtime.measurement import RunOptions, Trials
from targets.speed import EngineSpeed, HostSpeed
from targets.synthetic import DEEP, WIDE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exporter.progress import Reporter
    from runtime.artifact import Artifact
    from runtime.measurement import Measurement
    from targets.synthetic import Shape

SHORT, LONG = 128, 1024
"""Tokens of the prompts."""
DECODED = 32
ROUNDS = 2
BUFFER_BYTES = 1 << 29
"""Read for the bandwidth: more than any cache holds."""


def calibrate(threads: int | None, formats: Sequence[str] | None, reporter: Reporter) -> HostSpeed:
    """Measure this machine. Raises UserError for a format whose speed is not planned, EngineError of an engine."""
    engines: dict[str, Callable[[Path, int, Reporter], tuple[EngineSpeed, str]]] = {"gguf": _gguf, "onnx": _onnx}
    for name in formats or ():
        if name not in engines:
            raise UserError(f"{name} is not calibrated, only {', '.join(engines)}")
    count = threads or default_threads()
    reporter.step("reading memory")
    bandwidth = bandwidth_bytes_per_s(count)
    speeds, versions = {}, {}
    with tempfile.TemporaryDirectory(prefix="packlight-calibrate-") as room:
        for name in formats or engines:
            speeds[name], versions[name] = engines[name](Path(room), count, reporter)
    return HostSpeed(host_facts()["cpu"], count, bandwidth, speeds, utc_now(), engine_versions=versions)


def bandwidth_bytes_per_s(threads: int, n_bytes: int = BUFFER_BYTES, rounds: int = 5) -> float:
    """Bytes a second that so many threads read from memory together: the best of some rounds."""
    words = np.ones(n_bytes // 8, np.int64)
    parts = np.array_split(words, threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            start = time.perf_counter()
            list(pool.map(np.sum, parts))
            best = max(best, n_bytes / (time.perf_counter() - start))
    return best


@dataclass(frozen=True)
class Times:
    """Seconds a token: decoded, and of a prompt."""

    decode_s: float
    prefill_s: float

    def better(self, other: Times) -> Times:
        """The less disturbed of two: nothing makes a machine faster than it is."""
        return Times(min(self.decode_s, other.decode_s), min(self.prefill_s, other.prefill_s))

    @classmethod
    def of(cls, found: Measurement) -> Times:
        """Of a measurement."""
        decode, prefill = found.decode_tokens_per_s, found.prefill_tokens_per_s
        if decode is None or prefill is None:
            raise EngineError(f"{found.host['engine']}: told no speed")
        return cls(1 / decode.median, 1 / prefill.median)


def _timed(artifact: Artifact, threads: int, prompt: int) -> tuple[Times, str]:
    options = RunOptions(threads=threads, context=prompt + 2 * DECODED, batch=512, kv_type=None)
    found = measure(artifact, options, Trials(prompt, DECODED, 3))
    return Times.of(found), str(found.host["engine"])


def solve(label: str, wide: Times, deep: Times, far: Times, others: dict[str, Times]) -> EngineSpeed:
    """What matrices, layers and attention cost, from the times of models that have them in different shares.

    wide: WIDE in `label` with a prompt of SHORT; deep: DEEP in the same; far: WIDE with a prompt of LONG
    others: WIDE in other labels with a prompt of SHORT
    """
    attention = max((far.decode_s - wide.decode_s) / ((LONG - SHORT) * WIDE.attention), 0.0)
    past = SHORT + DECODED / 2
    matrices = wide.decode_s - attention * WIDE.attention * past
    layers = deep.decode_s - attention * DEEP.attention * past
    # Two equations: elements * element_s + layers * layer_s = seconds.
    determinant = WIDE.elements * DEEP.layers - DEEP.elements * WIDE.layers
    element_s = (matrices * DEEP.layers - layers * WIDE.layers) / determinant
    layer_s = max((WIDE.elements * layers - DEEP.elements * matrices) / determinant, 0.0)
    rest = WIDE.layers * layer_s + attention * WIDE.attention * past
    decode = {label: element_s} | {name: (times.decode_s - rest) / WIDE.elements for name, times in others.items()}
    prompt = max((far.prefill_s - wide.prefill_s) / ((LONG - SHORT) / 2 * WIDE.attention), 0.0)
    read = prompt * WIDE.attention * SHORT / 2
    prefill = {name: (times.prefill_s - read) / WIDE.elements for name, times in {label: wide, **others}.items()}
    return EngineSpeed(_positive(decode), _positive(prefill), layer_s, attention, prompt)


def _positive(costs: dict[str, float]) -> dict[str, float]:
    """Those that make sense: what a disturbed machine has timed as nothing is left out, as not measured."""
    return {name: cost for name, cost in costs.items() if cost > 0}


def _in_rounds(
    timed: Callable[[Shape, str, int], tuple[Times, str]],
    base: str,
    labels: Sequence[str],
    engine: str,
    reporter: Reporter,
) -> tuple[EngineSpeed, str]:
    """Every model ROUNDS times, all in turn, and the better time of each."""
    asked = {
        ("wide", base): (WIDE, base, SHORT),
        ("deep", base): (DEEP, base, SHORT),
        ("far", base): (WIDE, base, LONG),
    }
    asked |= {("wide", label): (WIDE, label, SHORT) for label in labels if label != base}
    best: dict[tuple[str, str], Times] = {}
    version = ""
    for number in range(ROUNDS):
        for which, (name, label) in enumerate(asked):
            reporter.step(f"timing {engine}, round {number + 1} of {ROUNDS}: {label} ({which + 1} of {len(asked)})")
            found, version = timed(*asked[name, label])
            best[name, label] = found.better(best.get((name, label), found))
    others = {label: times for (name, label), times in best.items() if name == "wide" and label != base}
    return solve(base, best["wide", base], best["deep", base], best["far", base], others), version


def _gguf(room: Path, threads: int, reporter: Reporter) -> tuple[EngineSpeed, str]:
    from targets.gguf.synthetic import write_gguf
    from targets.gguf.types import TYPES

    def timed(shape: Shape, label: str, prompt: int) -> tuple[Times, str]:
        path = room / "calibration.gguf"
        write_gguf(path, shape, TYPES[label])
        return _timed(open_artifact(path), threads, prompt)

    return _in_rounds(timed, "F16", list(TYPES), "llama.cpp", reporter)


def _onnx(room: Path, threads: int, reporter: Reporter) -> tuple[EngineSpeed, str]:
    from targets.onnx.synthetic import BASE, presets, write_onnx, write_source

    sources = {shape: write_source(room / f"source-{shape.layers}", shape) for shape in (WIDE, DEEP)}
    known = presets()

    def timed(shape: Shape, label: str, prompt: int) -> tuple[Times, str]:
        with tempfile.TemporaryDirectory(dir=room) as directory:
            return _timed(write_onnx(sources[shape], known[label], Path(directory)), threads, prompt)

    return _in_rounds(timed, BASE, list(known), "ONNX Runtime", reporter)
