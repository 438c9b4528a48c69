"""The figures of one report, each from its part of the document; None or nothing where the report has no such part."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from exporter.report.figures import Bar, Chart, Plot, Strip, Table, bar, highest, strip
from exporter.report.scale import number
from runtime.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Json = dict[str, Any]

NONE = "\N{EN DASH}"
"""In place of a number that there is not."""

_STRIPS = (
    ("first_token_ms", "first token", "ms", ",.0f"),
    ("latency_ms", "latency of a text", "ms", ",.2f"),
    ("prefill_tokens_per_s", "reading", "tokens/s", ",.1f"),
    ("decode_tokens_per_s", "decode", "tokens/s", ",.1f"),
)


def text_of(value: object, form: str, unit: str = "") -> str:
    """A number for people; a dash for what is none."""
    found = number(value)
    return NONE if found is None else f"{found:{form}}{f' {unit}' if unit else ''}"


def size_of(value: object) -> str:
    """Bytes for people; a dash for what is no number."""
    found = number(value)
    return NONE if found is None else format_bytes(found)


def memory(measured: Json) -> Iterator[Bar | None]:
    """Where the resident bytes of the peak lie."""
    names = {
        "weights_bytes": "weights", "kv_cache_bytes": "KV cache", "compute_bytes": "compute buffers",
        "other_bytes": "the rest of the process",
    }  # fmt: skip
    split, peak = measured.get("memory") or {}, number(measured.get("peak_rss_bytes"))
    for key, name in names.items():
        value = number(split.get(key))
        if value is None or not peak or (key == "kv_cache_bytes" and measured.get("latency_ms")):
            continue
        yield bar(name, f"{format_bytes(value)}, {value / peak:.0%} of the peak", value, full=peak)


def resident(measured: Json) -> Iterator[Bar | None]:
    """What backs the resident bytes at the end of the run."""
    names = {
        "anonymous_bytes": "anonymous: cannot be dropped", "file_bytes": "of mapped files: can be read again",
        "shared_bytes": "shared memory", "proportional_bytes": "PSS, as Android counts",
    }  # fmt: skip
    kinds, peak = measured.get("resident") or {}, number(measured.get("peak_rss_bytes"))
    for key, name in names.items():
        if (value := number(kinds.get(key))) is not None and peak:
            yield bar(name, format_bytes(value), value, full=peak)


def timeline(samples: Sequence[Json], id: str) -> Plot | None:
    """Resident memory over the run."""
    known = [(number(one["seconds"]), number(one["rss_bytes"]), one) for one in samples]
    points = [(seconds, rss / 1e6, one) for seconds, rss, one in known if seconds is not None and rss is not None]
    if not points:
        return None
    points.sort(key=lambda point: point[0])
    resident = tuple((seconds, rss) for seconds, rss, _ in points)
    anonymous = tuple((s, n / 1e6) for s, _, one in points if (n := number(one.get("anonymous_bytes"))) is not None)
    runs = [(str(name), list(group)) for name, group in itertools.groupby(points, key=lambda point: point[2]["phase"])]
    ends = [group[0][0] for _, group in runs[1:]] + [points[-1][0]]
    # Not every sample: as many as are drawn.
    drawn = {seconds for seconds, _ in highest(resident)}
    phases, rows = [], []
    for (name, group), end in zip(runs, ends, strict=True):
        top = max(rss for _, rss, _ in group)
        phases.append((f"{name}, {group[0][0]:.2f} to {end:.2f} s: up to {top:,.1f} MB", group[0][0], end))
        rows += [(f"{seconds:.2f}", f"{rss:,.1f}", size_of(one.get("anonymous_bytes")), name)
                 for seconds, rss, one in group if seconds in drawn]  # fmt: skip
    series = [("first", "resident", resident)]
    if anonymous:
        series.append(("second", "anonymous", anonymous))
    peak = max(rss for _, rss in resident)
    said = f"Resident memory over {points[-1][0]:.1f} s in {len(phases)} phases, at most {peak:,.1f} MB among samples."
    table = Table(("seconds", "resident, MB", "anonymous", "phase"), tuple(rows))
    return Chart(
        f"{id}-timeline",
        "Memory over time",
        said,
        "seconds since the start",
        "MB",
        tuple(series),
        table,
        tuple(phases),
        0.0,
    ).plot()


def strips(measured: Json, id: str) -> Iterator[Strip]:
    """The distribution of every quantity that was timed in several trials."""
    for key, title, unit, form in _STRIPS:
        stat = measured.get(key) or {}
        values = [value for one in stat.get("values") or () if (value := number(one)) is not None]
        if values and (p95 := number(stat.get("p95"))) is not None:
            yield strip(f"{id}-{key}", title, unit, values, p95, form=form)


def sustained(sustained: Json, id: str) -> Plot | None:
    """Speed over a long run."""
    windows = [
        (seconds, speed, one)
        for one in sustained.get("windows") or ()
        if (seconds := number(one["seconds"])) is not None and (speed := number(one["tokens_per_s"])) is not None
    ]
    if not windows:
        return None
    rows = tuple(
        (f"{seconds:.1f}", f"{speed:,.1f}", text_of(one.get("temperature_c"), ".1f"),
         text_of(hertz / 1e6 if (hertz := number(one.get("frequency_hz"))) is not None else None, ",.0f"))
        for seconds, speed, one in windows
    )  # fmt: skip
    first, last = windows[0][1], windows[-1][1]
    said = f"Speed over {windows[-1][0]:.0f} s: {first:,.1f} tokens/s at first, {last:,.1f} at the end."
    table = Table(("seconds", "tokens/s", "temperature, °C", "clock, MHz"), rows)
    line = (("first", "speed", tuple((seconds, speed) for seconds, speed, _ in windows)),)
    return Chart(
        f"{id}-sustained", "Speed over time", said, "seconds since the start", "tokens/s", line, table, start=0.0
    ).plot()


def energy(sustained: Json) -> str:
    """What a token took, in words; empty where nobody measured it."""
    joules, tokens = number(sustained.get("energy_j")), number(sustained.get("tokens"))
    if joules is None or not tokens:
        return ""
    source = sustained.get("energy_source") or "source unknown"
    return f"Energy: {joules:,.1f} J for {tokens:,.0f} tokens, {joules / tokens:.3f} J each ({source})."


def positions(drift: Json, id: str) -> Plot | None:
    """The divergence along the context."""
    spans = [(one, value) for one in drift.get("kl_by_position") or () if (value := number(one["mean_kl"])) is not None]
    if not spans:
        return None
    points: list[tuple[float, float]] = []
    for one, value in spans:
        points += [(one["first"], value), (one["last"] + 1, value)]
    values = [value for _, value in spans]
    said = (
        f"Mean KL divergence at positions {spans[0][0]['first']} to {spans[-1][0]['last']} of the context, in "
        f"{len(spans)} spans: from {min(values):.4g} to {max(values):.4g} nats."
    )
    table = Table(("positions", "mean KL, nats"), tuple((f"{o['first']} to {o['last']}", f"{v:.4g}") for o, v in spans))
    return Chart(
        f"{id}-positions", "Drift along the context", said, "position in the context, tokens", "nats",
        (("first", "mean KL", tuple(points)),), table,
    ).plot()  # fmt: skip
