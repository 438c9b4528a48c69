"""What was measured, on which host, by which command, over how many trials."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass, field
from typing import Any

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""Element types of a KV cache."""


@dataclass(frozen=True)
class RunOptions:
    """How an engine is to run an artifact.

    threads: compute threads; None lets the harness take the host's physical cores, at most 4
    context: tokens of context to allocate
    batch: prompt tokens evaluated at once
    mmap: map the weights instead of reading them
    kv_type: element type of the KV cache, one of KV_TYPES
    """

    threads: int | None = None
    context: int = 2048
    batch: int = 512
    mmap: bool = True
    kv_type: str = "f16"


@dataclass(frozen=True)
class Trials:
    """How much to measure: prompt and generated tokens a trial, trials after one warm-up.

    timeout_s: seconds after which the whole run is given up
    """

    prompt_tokens: int = 512
    decode_tokens: int = 64
    count: int = 5
    timeout_s: float = 3600.0


@dataclass(frozen=True)
class Stat:
    """A quantity over several trials: median, 95th percentile of the *bad* side, and the spread.

    spread: (max - min) / median, 0 for a single trial.
    """

    median: float
    p95: float
    spread: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: list[float], *, higher_is_better: bool = False) -> Stat:
        """The Stat of at least one value."""
        ordered = sorted(values, reverse=higher_is_better)
        rank = 0.95 * (len(ordered) - 1)
        low = int(rank)
        high = min(low + 1, len(ordered) - 1)
        p95 = ordered[low] + (rank - low) * (ordered[high] - ordered[low])
        median = statistics.median(ordered)
        spread = (max(values) - min(values)) / median if median else 0.0
        return cls(median=median, p95=p95, spread=spread, values=tuple(values))


@dataclass(frozen=True)
class MemorySplit:
    """Where the resident bytes of the measured process lie, read at the end of the run.

    weights_bytes: weights, mapped from the file or held in memory (a repacked copy included)
    kv_cache_bytes: allocated by the engine
    compute_bytes: the part of the engine's compute buffers that was touched; it reserves more
    other_bytes: peak minus all of the above: the interpreter, the engine's code, the tokenizer
    """

    weights_bytes: int
    kv_cache_bytes: int
    compute_bytes: int
    other_bytes: int


@dataclass(frozen=True)
class Measurement:
    """One measuring run of one artifact. Sizes in bytes, times in seconds or milliseconds as named.

    load_s: opening the file, which is not in the page cache: header, tokenizer, buffers, and the weights, read or, with
        mmap, as far as the engine asks for them ahead (llama.cpp does on Linux)
    cold_first_token_ms: of the first prompt after that, which pays for what is left; 0 where it was not measured
    first_token_ms: of later prompts
    peak_rss_bytes: the kernel's high-water mark (VmHWM) of the child process
    second_turn_growth_bytes: high-water mark after a second conversation turn minus that after the first
    host: what ran it (machine, cpu, os, engine version); it is never the target device's own figure
    cap: None, or how memory was capped: {"method": "cgroup-v1", "bytes": …, "counts": …, "limit_hits": …}
    """

    load_s: float
    first_token_ms: Stat
    prefill_tokens_per_s: Stat
    decode_tokens_per_s: Stat
    peak_rss_bytes: int
    memory: MemorySplit
    second_turn_growth_bytes: int
    major_page_faults: int
    options: RunOptions
    trials: Trials
    host: dict[str, Any]
    command: str
    cap: dict[str, Any] | None = None
    cold_first_token_ms: float = 0.0
    notes: tuple[str, ...] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Measurement:
        """The inverse of `to_json`."""
        stats = ("first_token_ms", "prefill_tokens_per_s", "decode_tokens_per_s")
        built: dict[str, Any] = {name: Stat(**{**data[name], "values": tuple(data[name]["values"])}) for name in stats}
        built["memory"] = MemorySplit(**data["memory"])
        built["options"] = RunOptions(**data["options"])
        built["trials"] = Trials(**data["trials"])
        built["notes"] = tuple(data.get("notes", ()))
        return cls(**{**data, **built})
