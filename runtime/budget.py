"""What must hold of an artifact, and the verdict on what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.units import format_bytes

if TYPE_CHECKING:
    from runtime.measurement import Measurement


@dataclass(frozen=True)
class Budget:
    """Limits that the user named; None is no limit. Speeds are medians, in tokens per second."""

    max_memory_bytes: int | None = None
    max_artifact_bytes: int | None = None
    max_load_s: float | None = None
    max_first_token_ms: float | None = None
    min_prefill_tokens_per_s: float | None = None
    min_decode_tokens_per_s: float | None = None


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
    """The lines of memory and speed, in the order people read them."""
    peak, first = measurement.peak_rss_bytes, measurement.first_token_ms
    prefill, decode = measurement.prefill_tokens_per_s, measurement.decode_tokens_per_s
    cold = measurement.cold_first_token_ms
    cold_lines = [at_most("first token, cold file", cold, None, f"{cold:,.0f} ms")] if cold else []
    return [
        at_most("peak memory", peak, budget.max_memory_bytes, format_bytes(peak),
                format_bytes(budget.max_memory_bytes or 0)),
        at_most("load", measurement.load_s, budget.max_load_s, f"{measurement.load_s:.2f} s", f"{budget.max_load_s} s"),
        *cold_lines,
        at_most("first token", first.median, budget.max_first_token_ms, f"{first.median:,.0f} ms",
                f"{budget.max_first_token_ms} ms"),
        at_least("prefill", prefill.median, budget.min_prefill_tokens_per_s, f"{prefill.median:,.1f} tokens/s",
                 f"{budget.min_prefill_tokens_per_s} tokens/s"),
        at_least("decode", decode.median, budget.min_decode_tokens_per_s, f"{decode.median:,.1f} tokens/s",
                 f"{budget.min_decode_tokens_per_s} tokens/s"),
    ]  # fmt: skip
