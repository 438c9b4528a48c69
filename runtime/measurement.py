"""What was measured, on which host, by which command, over how many trials."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from runtime.series import MemorySample, Sustained

if TYPE_CHECKING:
    from collections.abc import Mapping

KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
KV_TYPES: tuple[str, ...] = get_args(KvType)
"""Element types of a KV cache."""
KV_FLOATS = KV_TYPES[:3]
KV_BLOCK = 32
"""Elements that a quantized cache keeps together; they lie in one head."""
KV_TYPE = "f16"
"""What llama.cpp and its clients take where nobody says anything."""

PROMPT_TOKENS = 512
"""Tokens of a trial's prompt."""
TEXT_TOKENS = 128
"""Tokens of the text that an encoder reads in a trial: a paragraph."""
NOT_BY_TOOLS = "leave out --turns, --fill-context and --sustained, which packlight's own harness does"
TURNS = 2
"""Turns of the conversation that is measured; of an encoder, passes over texts."""

_STATS = ("first_token_ms", "prefill_tokens_per_s", "decode_tokens_per_s", "latency_ms")


@dataclass(frozen=True)
class RunOptions:
    """How an engine is to run an artifact.

    threads: compute threads; None lets the harness take the host's physical cores, at most 4
    context: tokens of context to allocate
    batch: prompt tokens evaluated at once
    mmap: map the weights instead of reading them
    kv_type: element type of the KV cache, one of KV_TYPES; None for the one that the artifact was made for; an artifact
        that fixes the type itself ignores it
    """

    threads: int | None = None
    context: int = 2048
    batch: int = 512
    mmap: bool = True
    kv_type: str | None = None

    def kv_type_for(self, contract: Mapping[str, Any]) -> str:
        """The type that is asked for, else the one that an artifact's contract names, else llama.cpp's own."""
        return self.kv_type or str(contract.get("kv_type") or KV_TYPE)


@dataclass(frozen=True)
class Trials:
    """How much to measure: prompt and generated tokens a trial, trials after one warm-up.

    prompt_tokens: None is PROMPT_TOKENS, for an encoder (whose prompt is the text that it reads) TEXT_TOKENS
    decode_tokens: an encoder generates none
    timeout_s: seconds after which the whole run is given up, a sustained load not counted
    turns: of a conversation that fills the context, each as long as the others; of an encoder, passes over texts
    fill_context: fill the context to its last token, for a model that generates
    sustained_s: seconds of a load that goes on after all else; 0 for none
    """

    prompt_tokens: int | None = None
    decode_tokens: int = 64
    count: int = 5
    timeout_s: float = 3600.0
    turns: int = TURNS
    fill_context: bool = False
    sustained_s: float = 0.0

    @property
    def allowed_s(self) -> float:
        """Seconds that the measured process may take."""
        return self.timeout_s + self.sustained_s

    @property
    def of_harness(self) -> bool:
        """Whether it asks for what packlight's own harness alone can do, not an engine's tools."""
        return self.turns != TURNS or self.fill_context or self.sustained_s > 0

    def resolved(self, *, encoder: bool) -> Trials:
        """The same with the defaults of that kind of model filled in."""
        if self.prompt_tokens is not None:
            return self
        return dataclasses.replace(self, prompt_tokens=TEXT_TOKENS if encoder else PROMPT_TOKENS)


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
class ResidentKinds:
    """Resident bytes of the measured process at the end of the run, with all still open, by what backs them.

    Of an engine's tools on a phone they are those of the reading with the most, since nothing is open at their end.

    anonymous_bytes: nothing but swap: what the process allocated and touched; a phone cannot drop it
    file_bytes: files, mapped: weights, the engine's code; the kernel may drop and read them again
    shared_bytes: tmpfs and shared anonymous memory (RssShmem); shared libraries are files
    proportional_bytes: PSS, where pages that several processes have are divided by their number: what Android's tools
        report; None where the kernel does not say
    peak_proportional_bytes: the highest PSS that was seen. The kernel keeps no mark of it, and reading it is dear: it
        was read at the end of every phase and once a second in the turns, never while something was timed. A peak
        between, such as a prefill's buffers, it does not show: it is a lower bound
    """

    anonymous_bytes: int
    file_bytes: int
    shared_bytes: int
    proportional_bytes: int | None = None
    peak_proportional_bytes: int | None = None


@dataclass(frozen=True)
class Measurement:
    """One measuring run of one artifact. Sizes in bytes, times in seconds or milliseconds as named.

    None is what was not measured: on a phone the engine's own tools do not tell all of it.

    load_s: opening the file, which is not in the page cache: header, tokenizer, buffers, and the weights, read or, with
        mmap, as far as the engine asks for them ahead (llama.cpp does on Linux)
    cold_first_token_ms: of the first prompt (an encoder: text) after that, which pays for what is left; 0 where it was
        not measured
    first_token_ms: of later prompts; None for an encoder
    prefill_tokens_per_s: tokens of the prompt, for an encoder of the text, read in a second
    decode_tokens_per_s: None for an encoder
    latency_ms: of an encoder, one text of trials.prompt_tokens tokens; None for a model that generates
    peak_rss_bytes: the kernel's high-water mark (VmHWM) of the child process
    second_turn_growth_bytes: high-water mark after a second conversation turn minus that after the first; for an
        encoder after a second pass over texts of growing length, up to the longest that it takes
    host: what ran it (machine, cpu, os, engine version); it is never the target device's own figure
    resident: None where the kernel does not tell
    cap: None, or how memory was capped: {"method": "cgroup-v1", "bytes": …, "counts": …, "limit_hits": …}
    load_is_cold: whether the page cache held none of the file (at most a hundredth) when load_s began; None where the
        system does not tell
    warm_load_s: the same in a second fresh process, with the file in the page cache; None under a cap, where
        the pages would be charged to nobody
    mapped_weights_bytes: resident bytes of the model's files that are mapped, at the end; 0 where they were read
    full_context_tokens_per_s: decode speed over the last tokens of a full context; None where it was not filled
    turn_rss_bytes: resident bytes after each turn (an encoder's pass)
    timeline: resident memory over the run with its phases; empty where there is no /proc
    sustained: None where no sustained load was asked for
    """

    load_s: float | None
    first_token_ms: Stat | None
    prefill_tokens_per_s: Stat | None
    decode_tokens_per_s: Stat | None
    peak_rss_bytes: int
    memory: MemorySplit | None
    second_turn_growth_bytes: int | None
    major_page_faults: int | None
    options: RunOptions
    trials: Trials
    host: dict[str, Any]
    command: str
    cap: dict[str, Any] | None = None
    cold_first_token_ms: float = 0.0
    latency_ms: Stat | None = None
    resident: ResidentKinds | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)
    load_is_cold: bool | None = None
    warm_load_s: float | None = None
    mapped_weights_bytes: int | None = None
    full_context_tokens_per_s: float | None = None
    turn_rss_bytes: tuple[int, ...] = ()
    timeline: tuple[MemorySample, ...] = ()
    sustained: Sustained | None = None

    @property
    def of_encoder(self) -> bool:
        """Whether an encoder was measured."""
        return self.latency_ms is not None

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`; what this kind of model does not have is left out."""
        whole = dataclasses.asdict(self)
        return {name: value for name, value in whole.items() if name not in _STATS or value is not None}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Measurement:
        """The inverse of `to_json`."""
        built: dict[str, Any] = {
            name: Stat(**{**data[name], "values": tuple(data[name]["values"])}) if data.get(name) else None
            for name in _STATS
        }
        built["memory"] = MemorySplit(**data["memory"]) if data.get("memory") else None
        built["resident"] = ResidentKinds(**data["resident"]) if data.get("resident") else None
        built["options"] = RunOptions(**data["options"])
        built["trials"] = Trials(**data["trials"])
        built["notes"] = tuple(data.get("notes", ()))
        built["turn_rss_bytes"] = tuple(data.get("turn_rss_bytes", ()))
        built["timeline"] = tuple(MemorySample(**sample) for sample in data.get("timeline", ()))
        built["sustained"] = Sustained.from_json(data["sustained"]) if data.get("sustained") else None
        return cls(**{**data, **built})
