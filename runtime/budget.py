"""What must hold of an artifact, and the verdict on what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.measurement import TURNS
from runtime.units import format_bytes

if TYPE_CHECKING:
    from runtime.measurement import Measurement, Stat
    from runtime.series import Sustained


@dataclass(frozen=True)
class Budget:
    """Limits that the user named; None is no limit. Speeds are medians, in tokens per second.

    max_first_token_ms and min_decode_tokens_per_s hold for models that generate, max_latency_ms for encoders,
    min_sustained_tokens_per_s for a sustained load.
    """

    max_memory_bytes: int | None = None
    max_artifact_bytes: int | None = None
    max_load_s: float | None = None
    max_first_token_ms: float | None = None
    min_prefill_tokens_per_s: float | None = None
    min_decode_tokens_per_s: float | None = None
    max_latency_ms: float | None = None
    min_sustained_tokens_per_s: float | None = None


@dataclass(frozen=True)
class Line:
    """One line of a verdict: a quantity, its value and its limit as text for people, and whether it holds.

    ok is None where nobody asked for a limit. `value` and `limit` are the plain numbers for machines.
    """

    name: str
    text: str
    limit_text: str
    ok: bool | None
    value: float
    limit: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {"name": self.name, "value": self.value, "limit": self.limit, "ok": self.ok}


def at_most(name: str, value: float, limit: float | None, text: str, limit_text: str = "") -> Line:
    """A line that holds when value <= limit."""
    shown = "" if limit is None else f"≤ {limit_text}"
    return Line(name, text, shown, None if limit is None else value <= limit, value, limit)


def at_least(name: str, value: float, limit: float | None, text: str, limit_text: str = "") -> Line:
    """A line that holds when value >= limit."""
    shown = "" if limit is None else f"≥ {limit_text}"
    return Line(name, text, shown, None if limit is None else value >= limit, value, limit)


def judge(artifact_bytes: int, measurement: Measurement, budget: Budget) -> list[Line]:
    """The size, memory and speed lines of the verdict, every quantity once, in the order people read them."""
    return [size_line(artifact_bytes, budget), *run_lines(measurement, budget)]


def size_line(artifact_bytes: int, budget: Budget) -> Line:
    """The line of the file's size."""
    limit = budget.max_artifact_bytes
    return at_most("size", artifact_bytes, limit, format_bytes(artifact_bytes), format_bytes(limit or 0))


def run_lines(measurement: Measurement, budget: Budget) -> list[Line]:
    """The lines of memory and speed, in the order people read them.

    A limit on what was not measured, such as an encoder's decode speed, is a line that fails.
    """
    peak, cold = measurement.peak_rss_bytes, measurement.cold_first_token_ms
    cold_name = "latency" if measurement.of_encoder else "first token"
    cold_name += ", file in cache, first run" if measurement.load_is_cold is False else ", cold file"
    cold_lines = [at_most(cold_name, cold, None, f"{cold:,.0f} ms")] if cold else []
    reading = "throughput" if measurement.of_encoder else "prefill"
    warm, full = measurement.warm_load_s, measurement.full_context_tokens_per_s
    return [
        at_most("peak memory", peak, budget.max_memory_bytes, format_bytes(peak),
                format_bytes(budget.max_memory_bytes or 0)),
        *_mapped_lines(measurement),
        *_load_lines(measurement.load_s, budget.max_load_s),
        *([] if warm is None else [at_most("load, file in cache", warm, None, f"{warm:.2f} s")]),
        *cold_lines,
        *_time_lines("first token", measurement.first_token_ms, budget.max_first_token_ms, ".0f"),
        *_time_lines("latency", measurement.latency_ms, budget.max_latency_ms, ".1f"),
        *_speed_lines(reading, measurement.prefill_tokens_per_s, budget.min_prefill_tokens_per_s),
        *_speed_lines("decode", measurement.decode_tokens_per_s, budget.min_decode_tokens_per_s),
        *([] if full is None else [at_least("decode, full context", full, None, f"{full:,.1f} tokens/s")]),
        *_turn_lines(measurement),
        *_sustained_lines(measurement.sustained, budget.min_sustained_tokens_per_s),
    ]  # fmt: skip


def _load_lines(load_s: float | None, limit: float | None) -> list[Line]:
    """The line of loading; none where there is neither a figure nor a limit."""
    if load_s is None:
        return _absent("load", limit, f"≤ {limit} s")
    return [at_most("load", load_s, limit, f"{load_s:.2f} s", f"{limit} s")]


def _mapped_lines(measurement: Measurement) -> list[Line]:
    """Whether the weights are mapped, which the kernel may drop and read again, or read."""
    mapped = measurement.mapped_weights_bytes
    if mapped is None:
        return []
    return [at_most("of it mapped weights", mapped, None, format_bytes(mapped) if mapped else "none")]


def _turn_lines(measurement: Measurement) -> list[Line]:
    """Growth over a conversation that is longer than the usual one."""
    turns = measurement.turn_rss_bytes
    if len(turns) <= TURNS:
        return []
    what = "passes" if measurement.of_encoder else "turns"
    grown = turns[-1] - turns[0]
    return [at_most(f"growth over {len(turns)} {what}", grown, None, format_bytes(grown))]


def _sustained_lines(load: Sustained | None, limit: float | None) -> list[Line]:
    """The speed that a sustained load comes down to: the median of its last fifth."""
    limit_text = f"{limit} tokens/s"
    if load is None:
        missing = Line("sustained", "not measured", f"≥ {limit_text}", ok=False, value=0.0, limit=limit)
        return [] if limit is None else [missing]
    return [at_least("sustained", load.settled_tokens_per_s, limit, load.text, limit_text)]


def _time_lines(name: str, stat: Stat | None, limit: float | None, form: str) -> list[Line]:
    """The line of a time in milliseconds; none where there is neither a figure nor a limit."""
    if stat is None:
        return _absent(name, limit, f"≤ {limit} ms")
    return [at_most(name, stat.median, limit, f"{stat.median:,{form}} ms", f"{limit} ms")]


def _speed_lines(name: str, stat: Stat | None, limit: float | None) -> list[Line]:
    """The line of a speed in tokens per second; none where there is neither a figure nor a limit."""
    if stat is None:
        return _absent(name, limit, f"≥ {limit} tokens/s")
    return [at_least(name, stat.median, limit, f"{stat.median:,.1f} tokens/s", f"{limit} tokens/s")]


def _absent(name: str, limit: float | None, limit_text: str) -> list[Line]:
    """A limit on what this kind of model does not have, or what could not be measured, cannot be met."""
    return [] if limit is None else [Line(name, "none was measured", limit_text, ok=False, value=0.0, limit=limit)]
