"""One report as the page shows it: the verdict, then what it rests on, every part left out where it was not found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from exporter.report import parts
from exporter.report.commands import commands
from exporter.report.figures import Bar, Plot, Strip, Table, bar
from exporter.report.parts import NONE, text_of
from exporter.report.report import FAILED, MET
from exporter.report.scale import number
from exporter.report.tensor_map import TensorMap, tensor_map
from runtime.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exporter.report.stored import Found

Json = dict[str, Any]

_HOLDS = {True: "holds", False: "fails", None: ""}


@dataclass(frozen=True)
class Article:
    """What the page says of one artifact; figures that the report has nothing for are None or empty.

    state: "met", "failed" or "unknown", how the verdict looks; verdict: in words
    facts, drift, where_from: (name, value); lines: rows of name, measured, budget, in words whether it holds
    untold: why there is no map of the tensors
    """

    id: str
    title: str
    state: str
    verdict: str
    facts: tuple[tuple[str, str], ...]
    lines: Table
    budget: tuple[Bar, ...]
    peak: str
    memory: tuple[Bar, ...]
    resident: tuple[Bar, ...]
    timeline: Plot | None
    strips: tuple[Strip, ...]
    sustained: Plot | None
    energy: str
    measured_by: str
    map: TensorMap | None
    untold: str
    drift: tuple[tuple[str, str], ...]
    positions: Plot | None
    notes: tuple[str, ...]
    where_from: tuple[tuple[str, str], ...]
    commands: tuple[str, ...] = field(default_factory=tuple)


def article(found: Found, id: str = "artifact") -> Article:
    """The Article of a report. Raises KeyError, TypeError or ValueError for a report that is damaged."""
    document, artifact = found.document, found.artifact
    measured, drift = document.get("measurement") or {}, document.get("drift") or {}
    state, verdict = verdict_of(document)
    return Article(
        id=id,
        title=f"{artifact.name}, {artifact.format.upper()} {artifact.quant.upper()}".strip(),
        state=state,
        verdict=verdict,
        facts=_facts(found),
        lines=_lines(document["lines"]),
        budget=tuple(_drawn(_budget(line) for line in document["lines"])),
        peak=parts.size_of(measured.get("peak_rss_bytes")),
        memory=tuple(_drawn(parts.memory(measured))),
        resident=tuple(_drawn(parts.resident(measured))),
        timeline=parts.timeline(measured.get("timeline") or (), id),
        strips=tuple(parts.strips(measured, id)),
        sustained=parts.sustained(measured.get("sustained") or {}, id),
        energy=parts.energy(measured.get("sustained") or {}),
        measured_by=_measured_by(measured),
        map=tensor_map(found.tensors) if found.tensors is not None else None,
        untold=found.untold,
        drift=tuple(_drift(drift)),
        positions=parts.positions(drift, id),
        notes=tuple(map(str, document.get("notes") or ())),
        where_from=tuple(_where_from(found)),
        commands=tuple(commands(found)),
    )


def _drawn(bars: Iterator[Bar | None]) -> Iterator[Bar]:
    return (one for one in bars if one is not None)


def verdict_of(document: Json) -> tuple[str, str]:
    """The verdict: "met", "failed" or "unknown", and in words."""
    device = document.get("device") or {}
    where = f" for the {device['name']}" if device.get("name") else ""
    failing = [line for line in document["lines"] if line["ok"] is False]
    if failing or document["verdict"] == FAILED:
        names = ", ".join(str(line["name"]) for line in failing)
        return "failed", f"Failed{where}: {names}"
    if document["verdict"] != MET:
        return "unknown", f"{str(document['verdict']).capitalize()}{where}: what nobody looked at is not met."
    judged = sum(line["ok"] is not None for line in document["lines"])
    if not judged:
        return "unknown", "Nothing was judged: no budget was named."
    return "met", f"Met{where}: all {judged} limits hold." if judged > 1 else f"Met{where}: the one limit holds."


def _facts(found: Found) -> tuple[tuple[str, str], ...]:
    artifact = found.artifact
    weights = f"{artifact.n_params / 1e6:,.1f} million" if artifact.n_params else NONE
    bits = f"{artifact.bits_per_weight:.2f}" if artifact.bits_per_weight else NONE
    size = sum(entry.bytes for entry in artifact.files.values())
    return (
        ("file", artifact.entry),
        ("made from", NONE if found.bare else artifact.source),
        ("size", format_bytes(size) if size else NONE),
        ("weights", weights),
        ("bits per weight", bits),
        ("trained for a context of", f"{artifact.context_length:,} tokens" if artifact.context_length else NONE),
    )


def _lines(lines: list[Json]) -> Table:
    rows = tuple(
        (str(line["name"]), " ".join(str(line["text"]).split()), str(line["limit_text"]), _HOLDS[line["ok"]])
        for line in lines
    )
    return Table(("quantity", "measured", "budget", "holds?"), rows)


def _budget(line: Json) -> Bar | None:
    """The bar of a line with a limit; None where its number does not show why it fails: nothing was measured."""
    if line["ok"] is None:
        return None
    state, value, limit = _HOLDS[line["ok"]], number(line["value"]), number(line["limit"])
    below = value is not None and limit is not None and value <= limit and str(line["limit_text"]).startswith("≤")
    if line["ok"] is False and (below or not value):
        return None
    share = f", {value / limit:.0%} of it" if value is not None and limit else ""
    said = f"{' '.join(str(line['text']).split())}, budget {line['limit_text']}{share}: {state}"
    return bar(str(line["name"]), said, value, limit, state) if limit else None


def _measured_by(measured: Json) -> str:
    """Where and how it was measured."""
    if not measured:
        return ""
    host, options, trials = measured["host"], measured["options"], measured["trials"]
    where = host.get("on", "the machine that ran packlight")
    reads = f"{trials.get('count')} trials of {trials.get('prompt_tokens')} tokens read"
    if not measured.get("latency_ms"):
        reads += f" and {trials.get('decode_tokens')} generated, context {options.get('context')}"
    threads = options.get("threads") or "default"
    return f"Measured on {where}: {host.get('cpu', 'unknown cpu')}, {threads} threads; {reads}."


def _drift(drift: Json) -> Iterator[tuple[str, str]]:
    """Top facts of how far the artifact is from its source."""
    if not drift:
        return
    numbers = (
        ("mean_kl", "KL divergence, mean", ".4g", "nats"), ("p99_kl", "KL divergence, 99th percentile", ".4g", "nats"),
        ("perplexity_ratio", "perplexity ratio", ".4f", ""), ("same_top1", "same top-1", ".1%", ""),
        ("mean_cosine", "cosine, mean", ".5f", ""), ("min_cosine", "cosine, lowest", ".5f", ""),
        ("token_cosine", "cosine of tokens", ".5f", ""), ("rank_correlation", "rank correlation", ".4f", ""),
        ("label_agreement", "label agreement", ".1%", ""),
    )  # fmt: skip
    for key, name, form, unit in numbers:
        if drift.get(key) is not None:
            yield name, text_of(drift[key], form, unit)
    parity = drift["parity"]
    equal = parity["n_strings"] - len(parity["mismatches"]) - parity.get("n_noted", 0)
    yield "token ids", f"{equal} of {parity['n_strings']} hard texts equal"
    yield "BOS and other special tokens", "equal" if parity["bos"] else f"differ: {parity['bos_difference']}"
    if parity.get("chat_template") is not None:
        yield "chat template", "equal" if parity["chat_template"] else f"differs: {parity['chat_difference']}"
    text = f"{drift['n_tokens_scored']:,} tokens of" if "n_tokens_scored" in drift else f"{drift['n_texts']} texts from"
    yield "compared on", f"{text} {drift['text_name']}"
    yield "compared by", f"{drift['engine']} against {drift['reference']}"


def _where_from(found: Found) -> Iterator[tuple[str, str]]:
    artifact, made = found.artifact, found.document["provenance"]
    host = (found.document.get("measurement") or {}).get("host") or made["host"]
    yield "command", str(made["command"])
    yield "packlight", str(made["version"])
    yield "created", str(made["created"])
    commit = f", commit {made['source_commit']}" if made.get("source_commit") else ""
    if not found.bare:
        yield "source", f"{artifact.source}{commit}"
    yield "host", ", ".join(str(host[key]) for key in ("on", "cpu", "os", "engine") if host.get(key)) or "unknown"
    for name, entry in artifact.files.items():
        yield f"sha256 of {name}", str(entry.sha256)
