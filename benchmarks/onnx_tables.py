"""What benchmarks.onnx_peers found, as Markdown: the limits, every figure, the sizes for the how-to pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks import record
from benchmarks.onnx_judge import ENGINES, figure, pairs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.onnx_judge import Verdict

FORMS = {"s": ("{:.2f} s", 1), "bytes": ("{:.1f} MB", 1e6), "nats": ("{:.4f}", 1), "tokens/s": ("{:.0f}", 1),
         "ms": ("{:.2f} ms", 1), "": ("{:.4f}", 1), "logits": ("{:.1e}", 1), "prompts": ("{:.0f}", 1)}  # fmt: skip
FAILED = "failed"


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]], texts: int = 1) -> str:
    """A table whose first `texts` columns are text and whose others are numbers."""
    cells = list(header)
    align = ["---"] * texts + ["---:"] * (len(cells) - texts)
    return "\n".join(f"| {' | '.join(line)} |" for line in [cells, align, *map(list, rows)])


def _shown(value: float | None, unit: str, none: str = "") -> str:
    form, divisor = FORMS[unit]
    return none if value is None else form.format(value / divisor)


def _limit(one: Verdict) -> list[str]:
    form = {"": ".4f", "logits": ".1e"}.get(one.unit, ".2f")
    value = FAILED if one.value is None else f"{one.value:{form}}"
    text = f"{value} ({'≥' if one.least else '≤'} {one.limit:g})"
    theirs = _shown(one.theirs, one.unit)
    return [one.pair, one.what, theirs, _shown(one.ours, one.unit, FAILED), record.judged(text, one.holds)]


def limits(content: dict[str, Any]) -> str:
    """Every limit, and whether it holds."""
    return limit_rows(pairs(content))


def limit_rows(verdicts: Iterable[Verdict]) -> str:
    """A table of limits; those that do not hold are marked."""
    header = ("ours / theirs", "what", "theirs", "ours", "ratio (limit)")
    return markdown(header, map(_limit, verdicts), texts=2)


def _rate(row: dict[str, Any], engine: str) -> str:
    if engine not in row["engines"]:
        return ""
    prefill, decode = (figure(row, "engines", engine, phase) for phase in ("prefill", "decode"))
    return FAILED if prefill is None or decode is None else f"{prefill:.0f} / {decode:.0f}"


def _peak(row: dict[str, Any], engine: str) -> str:
    if engine not in row["engines"]:
        return ""
    peak, size = figure(row, "engines", engine, "peak_bytes"), figure(row, "build", "model_bytes")
    return FAILED if peak is None or not size else f"{peak / 1e6:.0f} ({peak / size:.1f}x)"


def decoders(rows: list[dict[str, Any]]) -> str:
    """Every figure of the decoders."""
    header = ["decoder", "build, s", "build peak, MB", "file, MB", "mean KL (second text)", "perplexity"]
    header += ["same top-1"]
    header += [f"prefill / decode tokens/s, {name}" for name in ENGINES.values()]
    header += [f"peak, MB (of the file), {name}" for name in ENGINES.values()]
    lines = []
    for row in rows:
        cells = _built(row)
        cells += [_drift(row), _number(row, ".2f", 1, "drift", "perplexity")]
        cells.append(_number(row, ".3f", 1, "drift", "same_top1"))
        cells += [_rate(row, engine) for engine in ENGINES] + [_peak(row, engine) for engine in ENGINES]
        lines.append(cells)
    return markdown(header, lines)


def _drift(row: dict[str, Any]) -> str:
    """Mean KL on the text of evaluation, and on the other."""
    second = _number(row, ".4f", 1, "drift_second", "mean_kl")
    return _number(row, ".4f", 1, "drift", "mean_kl") + (f" ({second})" if second else "")


def _built(row: dict[str, Any]) -> list[str]:
    """The name, and what building took."""
    figures = ((".1f", 1, "wall_s"), (".0f", 1e6, "peak_rss_bytes"), (".1f", 1e6, "model_bytes"))
    return [row["name"], *(_number(row, form, divisor, "build", key) for form, divisor, key in figures)]


def _number(row: dict[str, Any], form: str, divisor: float, *keys: str) -> str:
    if keys[0] not in row:
        return ""
    value = figure(row, *keys)
    return FAILED if value is None else f"{value / divisor:{form}}"


def encoders(rows: list[dict[str, Any]]) -> str:
    """Every figure of the encoders."""
    header = ["encoder", "build, s", "build peak, MB", "file, MB"]
    header += ["least cosine", "mean cosine", "latency, ms", "peak, MB"]
    lines = []
    for row in rows:
        cells = _built(row)
        cells += [_number(row, ".4f", 1, "cosine", key) for key in ("min", "mean")]
        cells.append(_number(row, ".2f", 1, "latency", "ms"))
        cells.append(_number(row, ".0f", 1e6, "latency", "peak_bytes"))
        lines.append(cells)
    return markdown(header, lines)


def table(content: dict[str, Any]) -> str:
    """The result as Markdown; what does not hold is marked."""
    parts = [limits(content)] if pairs(content) else []
    parts += [draw(content[part]) for part, draw in (("decoder", decoders), ("encoder", encoders)) if part in content]
    if isinstance(content.get("greedy"), list):
        short = [one for one in content["greedy"] if one["equal_tokens"] < content["tokens"]]
        parts += [f"Greedy tokens part after {one['equal_tokens']} on “{one['prompt']}”." for one in short]
    if "sizes" in content:
        parts.append(sizes(content))
    return "\n\n".join(parts)


def sizes(content: dict[str, Any]) -> str:
    """Bytes of graph and weights by preset and model, and of the directory with tokenizer and configuration."""
    found: dict[str, dict[str, Any]] = content["sizes"]
    presets = list(dict.fromkeys(preset for rows in found.values() for preset in rows))
    header = ["preset", "file in `onnx/`", *(f"{name}, MB (whole directory)" for name in found)]
    lines = []
    for preset in presets:
        entries = {name: rows[preset] for name, rows in found.items() if preset in rows}
        file = next((entry["file"] for entry in entries.values() if "file" in entry), "")
        lines.append([f"`{preset}`", f"`{file}`" if file else "", *(_size(entries.get(name)) for name in found)])
    return markdown(header, lines, texts=2)


def _size(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    model, whole = (figure(entry, key) for key in ("model_bytes", "directory_bytes"))
    return FAILED if model is None or whole is None else f"{model / 1e6:.1f} ({whole / 1e6:.1f})"
