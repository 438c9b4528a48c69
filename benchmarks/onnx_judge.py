"""The limits of benchmarks.onnx_peers, and what they make of its result."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

PAIRS = (("GenAI int4", "packlight int4"), ("GenAI k_quant_mixed", "packlight int4-mixed"))
"""Who is compared with whom; the other rows of the table are for orientation."""
ENGINES = {"plain": "onnxruntime", "genai": "onnxruntime-genai", "harness": "packlight's session"}
BUILD_LIMIT, SIZE_LIMIT, KL_LIMIT, SPEED_LIMIT = 3.0, 1.0, 0.8, 1.0
"""Ours over theirs: wall time of the whole command, bytes and mean KL at most; tokens/s at least."""
MEMORY_LIMIT = 2.5
"""Largest allowed quotient of the peak of a process that runs 512 tokens in our session and of the file."""
ENCODER, ENCODER_PEERS = "packlight dynamic-int8", (
    "quantize_dynamic", "quantize_dynamic per channel", "optimizer, quantize_dynamic",
    "optimizer, quantize_dynamic per channel",
)  # fmt: skip
COSINE_LIMIT, LATENCY_LIMIT = 0.99, 1.0
"""Least cosine of all texts at least; our latency over theirs at most."""


@dataclass(frozen=True)
class Verdict:
    """One figure against its limit.

    theirs, ours: the two figures in `unit`; theirs is None where ours is held against a fixed limit, either is None
        where it could not be measured
    value: what the limit is for: mostly the quotient ours / theirs; of speeds the median of the quotients of each run,
        whose two processes follow each other: the host is now fast, now slow, and the medians may be of different hours
    least: `limit` is the least that is allowed and not the most
    """

    pair: str
    what: str
    unit: str
    theirs: float | None
    ours: float | None
    value: float | None
    limit: float
    least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the limit holds; what could not be measured does not."""
        return self.value is not None and (self.value >= self.limit if self.least else self.value <= self.limit)


def figure(row: dict[str, Any], *keys: str) -> float | None:
    """The number that lies under `keys`; None where a step failed or was not taken."""
    found: Any = row
    for key in keys:
        if not isinstance(found, dict) or key not in found:
            return None
        found = found[key]
    return None if found is None else float(found)


def pairs(content: dict[str, Any]) -> list[Verdict]:
    """Every limit of the parts that were run."""
    found: list[Verdict] = []
    if "decoder" in content:
        rows = {row["name"]: row for row in content["decoder"]}
        for theirs, ours in PAIRS:
            found += _decoder(rows[theirs], rows[ours])
    if "encoder" in content:
        found += _encoder({row["name"]: row for row in content["encoder"]})
    if "greedy" in content:
        found.append(_greedy(content["greedy"], content["tokens"]))
    return found


def _ratio(what: str, unit: str, rows: tuple[dict[str, Any], dict[str, Any]], keys: tuple[str, ...],
           limit: tuple[float, bool]) -> Verdict:  # fmt: skip
    """The quotient of one figure of (theirs, ours); limit: its value, and whether it is the least allowed."""
    theirs, ours = (figure(row, *keys) for row in rows)
    value = ours / theirs if ours is not None and theirs else None
    return Verdict(f"{rows[1]['name']} / {rows[0]['name']}", what, unit, theirs, ours, value, *limit)


def _paired(what: str, unit: str, rows: tuple[dict[str, Any], dict[str, Any]], keys: tuple[str, ...],
            limit: tuple[float, bool]) -> Verdict:  # fmt: skip
    """As `_ratio`, of a speed or a latency: the quotient of what was measured one after the other, run by run."""
    one, found = _ratio(what, unit, rows, keys, limit), []
    if one.value is None:
        return one
    for pair in zip(*(_runs(row, *keys[:-1]) for row in rows), strict=True):
        theirs, ours = (statistics.median(run[keys[-1]]) for run in pair)
        found.append(ours / theirs)
    return dataclasses.replace(one, value=statistics.median(found))


def _runs(row: dict[str, Any], *keys: str) -> list[dict[str, Any]]:
    for key in keys:
        row = row[key]
    runs: list[dict[str, Any]] = row["runs"]
    return runs


def _decoder(theirs: dict[str, Any], ours: dict[str, Any]) -> list[Verdict]:
    rows = (theirs, ours)
    found = [
        _ratio("build", "s", rows, ("build", "wall_s"), (BUILD_LIMIT, False)),
        _ratio("graph and weights", "bytes", rows, ("build", "model_bytes"), (SIZE_LIMIT, False)),
        _ratio("mean KL", "nats", rows, ("drift", "mean_kl"), (KL_LIMIT, False)),
        _ratio("mean KL, second text", "nats", rows, ("drift_second", "mean_kl"), (KL_LIMIT, False)),
    ]
    for engine in ("plain", "genai"):
        for phase in ("prefill", "decode"):
            keys = ("engines", engine, phase)
            found.append(_paired(f"{phase}, {ENGINES[engine]}", "tokens/s", rows, keys, (SPEED_LIMIT, True)))
    peak, size = figure(ours, "engines", "harness", "peak_bytes"), figure(ours, "build", "model_bytes")
    value = peak / size if peak is not None and size else None
    what = f"peak / file, {ENGINES['harness']}"
    return [*found, Verdict(ours["name"], what, "bytes", None, peak, value, MEMORY_LIMIT)]


def _encoder(rows: dict[str, dict[str, Any]]) -> list[Verdict]:
    ours = rows[ENCODER]
    least = figure(ours, "cosine", "min")
    found = [Verdict(ENCODER, "least cosine", "", None, least, least, COSINE_LIMIT, least=True)]
    for name in ENCODER_PEERS:
        found.append(_paired("latency", "ms", (rows[name], ours), ("latency", "ms"), (LATENCY_LIMIT, False)))
    return found


def _greedy(prompts: Any, tokens: int) -> Verdict:  # noqa: ANN401 - JSON
    if isinstance(prompts, dict):  # it failed
        return Verdict(
            "packlight fp32 / transformers", "equal greedy tokens", "prompts", None, None, None, 1, least=True
        )
    equal = sum(one["equal_tokens"] == tokens for one in prompts)
    what, n = f"prompts whose {tokens} greedy tokens are equal", len(prompts)
    return Verdict("packlight fp32 / transformers", what, "prompts", n, equal, equal / n, 1, least=True)


def failures(content: dict[str, Any]) -> list[str]:
    """Every limit that does not hold, one line each."""
    lines = []
    for one in pairs(content):
        if not one.holds:
            value = "not measured" if one.value is None else f"{one.value:.3f}"
            lines.append(f"{one.pair}: {one.what}: {value}, limit {one.limit} {'at least' if one.least else 'at most'}")
    return lines


def sizes_of(directory: Path) -> dict[str, Any]:
    """The graph's name, bytes of graph and weights, and of the whole exported directory."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    model = [path for path in files if ".onnx" in path.name]
    graph = next(path.name for path in model if path.suffix == ".onnx")
    return {
        "file": graph,
        "model_bytes": sum(path.stat().st_size for path in model),
        "directory_bytes": sum(path.stat().st_size for path in files),
    }
