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
from runtime.measurement import KV_TYPE, KV_TYPES, RunOptions, Trials
from targets.speed import EngineSpeed, HostSpeed
from targets.synthetic import DEEP, FAR, WIDE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from exporter.progress import Reporter
    from runtime.artifact import Artifact
    from runtime.measurement import Measurement
    from targets.synthetic import Shape

SHORT, LONG = 128, 1024
"""Tokens of the prompts."""
DECODED = 32
ROUNDS = 2
GGUF_BASE = "F16"
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


def _timed(artifact: Artifact, threads: int, run: Run) -> tuple[Times, str]:
    options = RunOptions(threads=threads, context=run.prompt + 2 * DECODED, batch=512, kv_type=run.kv_type)
    found = measure(artifact, options, Trials(run.prompt, DECODED, 3))
    return Times.of(found), str(found.host["engine"])


@dataclass(frozen=True)
class Run:
    """One model that is timed. label: of its matrices; kv_type: of its cache; prompt: tokens"""

    shape: Shape
    label: str
    kv_type: str
    prompt: int = SHORT


@dataclass(frozen=True)
class Asked:
    """What is to be known of an engine.

    base: the label of what layers are timed with; caches: types of cache, each with the label that it is timed with
    labels: all, each with the type of its cache
    """

    base: str
    caches: Mapping[str, str]
    labels: Mapping[str, str]

    @property
    def deep(self) -> Run:
        """Nearly all of its time goes into layers."""
        return Run(DEEP, self.base, self.labels[self.base])

    def wide(self, label: str) -> Run:
        """Nearly all of its time goes into matrices."""
        return Run(WIDE, label, self.labels[label])

    def around(self, kv_type: str) -> tuple[Run, Run]:
        """With a short prompt, and with a long one."""
        label = self.caches[kv_type]
        return Run(FAR, label, kv_type), Run(FAR, label, kv_type, LONG)

    @property
    def runs(self) -> list[Run]:
        """Every one once."""
        pairs = [run for kv_type in self.caches for run in self.around(kv_type)]
        return list(dict.fromkeys([self.deep, *map(self.wide, self.labels), *pairs]))


def solve(asked: Asked, times: Mapping[Run, Times]) -> EngineSpeed:
    """What matrices, layers and attention cost, from the times of models that have them in different shares."""
    attention, prompt = {}, {}
    for kv_type in asked.caches:
        short, long = (times[run] for run in asked.around(kv_type))
        attention[kv_type] = max((long.decode_s - short.decode_s) / ((LONG - SHORT) * FAR.attention), 0.0)
        prompt[kv_type] = max((long.prefill_s - short.prefill_s) / ((LONG - SHORT) / 2 * FAR.attention), 0.0)
    past, kv_type = SHORT + DECODED / 2, asked.labels[asked.base]
    matrices = times[asked.wide(asked.base)].decode_s - attention[kv_type] * WIDE.attention * past
    layers = times[asked.deep].decode_s - attention[kv_type] * DEEP.attention * past
    # Two equations: elements * element_s + layers * layer_s = seconds.
    determinant = WIDE.elements * DEEP.layers - DEEP.elements * WIDE.layers
    layer_s = max((WIDE.elements * layers - DEEP.elements * matrices) / determinant, 0.0)
    decode = {asked.base: (matrices * DEEP.layers - layers * WIDE.layers) / determinant}
    prefill = {}
    for label, cache in asked.labels.items():
        found = times[asked.wide(label)]
        rest = WIDE.layers * layer_s + attention[cache] * WIDE.attention * past
        decode.setdefault(label, (found.decode_s - rest) / WIDE.elements)
        prefill[label] = (found.prefill_s - prompt[cache] * WIDE.attention * SHORT / 2) / WIDE.elements
    return EngineSpeed(_positive(decode), _positive(prefill), layer_s, attention, prompt)


def _positive(costs: dict[str, float]) -> dict[str, float]:
    """Those that make sense: what a disturbed machine has timed as nothing is left out, as not measured."""
    return {name: cost for name, cost in costs.items() if cost > 0}


def _in_rounds(
    timed: Callable[[Run], tuple[Times, str]], asked: Asked, engine: str, reporter: Reporter
) -> tuple[EngineSpeed, str]:
    """Every model ROUNDS times, all in turn, and the better time of each."""
    runs = asked.runs
    best: dict[Run, Times] = {}
    version = ""
    for number in range(ROUNDS):
        for which, run in enumerate(runs):
            what, counted = f"{run.label}, cache of {run.kv_type}", f"{which + 1} of {len(runs)}"
            reporter.step(f"timing {engine}, round {number + 1} of {ROUNDS}: {what} ({counted})")
            found, version = timed(run)
            best[run] = found.better(best.get(run, found))
    return solve(asked, best), version


def _gguf(room: Path, threads: int, reporter: Reporter) -> tuple[EngineSpeed, str]:
    from targets.gguf.synthetic import write_gguf
    from targets.gguf.types import TYPES

    def timed(run: Run) -> tuple[Times, str]:
        path = room / "calibration.gguf"
        write_gguf(path, run.shape, TYPES[run.label])
        return _timed(open_artifact(path), threads, run)

    asked = Asked(GGUF_BASE, dict.fromkeys(KV_TYPES, GGUF_BASE), dict.fromkeys(TYPES, KV_TYPE))
    return _in_rounds(timed, asked, "llama.cpp", reporter)


def _onnx(room: Path, threads: int, reporter: Reporter) -> tuple[EngineSpeed, str]:
    from targets.onnx.synthetic import BASE, HALVES, presets, write_onnx, write_source

    sources = {shape: write_source(room / f"source-{shape.hidden}", shape) for shape in (WIDE, DEEP, FAR)}
    known = presets()

    def timed(run: Run) -> tuple[Times, str]:
        with tempfile.TemporaryDirectory(dir=room) as directory:
            return _timed(write_onnx(sources[run.shape], known[run.label], Path(directory)), threads, run)

    # The graph fixes the type of the cache.
    asked = Asked(BASE, {"f32": BASE, "f16": HALVES}, {label: "f16" if label == HALVES else "f32" for label in known})
    return _in_rounds(timed, asked, "ONNX Runtime", reporter)
