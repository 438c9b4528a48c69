"""Several reports beside each other: a table, and what bytes and memory buy, with the Pareto front."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exporter.report.article import verdict_of
from exporter.report.figures import Plot, Table
from exporter.report.pareto import Point, pareto, plot
from exporter.report.parts import NONE, size_of, text_of
from exporter.report.report import MET
from exporter.report.scale import number
from exporter.report.stored import bytes_of
from runtime.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exporter.report.stored import Found

Json = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """What artifacts are compared by. of: from a report's drift, 0 where it is as its source."""

    name: str
    of: Callable[[Json], float | None]


@dataclass(frozen=True)
class Comparison:
    """The page's part on several artifacts together."""

    title: str
    table: Table
    plots: tuple[Plot, ...]
    notes: tuple[str, ...]


def compare(founds: Sequence[Found]) -> Comparison:
    """The Comparison of at least two reports. Raises UserError for encoders beside models that generate."""
    encoder = next((found for found in founds if found.of_encoder), None)
    other = next((found for found in founds if not found.of_encoder), None)
    if encoder is not None and other is not None:
        what = f"{encoder.where} is an encoder and {other.where} generates text"
        raise UserError(f"{what}: their drift has no measure in common; make a page of each kind")
    names = labels(founds)
    measure = _measure(founds)
    plots, notes = [], _notes(founds)
    fronts: dict[str, dict[str, bool]] = {name: {} for name in names}
    sides: tuple[tuple[str, str, Callable[[Json], float | None]], ...] = (
        ("size", "size of the artifact", bytes_of), ("memory", "peak memory", _peak),
    )  # fmt: skip
    for id, what, size in sides:
        known = [(name, size(found.document), _drift_of(found, measure))
                 for name, found in zip(names, founds, strict=True)]  # fmt: skip
        points = [Point(name, x / 1e6, y) for name, x, y in known if x is not None and y is not None]
        missing = [name for name, x, y in known if x is None or y is None]
        if missing:
            notes.append(f"not in the plot of {what}, because a figure for it is missing: {', '.join(missing)}")
        if points:
            points = pareto(points)
            for point in points:
                fronts[point.name][id] = point.front
            plots.append(plot(id, what, points, measure.name))
    title = f"{len(founds)} artifacts compared"
    return Comparison(title, _table(founds, fronts), tuple(plots), tuple(notes))


def labels(founds: Sequence[Found]) -> list[str]:
    """A letter and what tells the artifacts apart."""
    artifacts = [found.artifact for found in founds]
    parts: list[Callable[[int], str]] = [lambda at: artifacts[at].quant.upper() or artifacts[at].format]
    if len({artifact.format for artifact in artifacts}) > 1:
        parts.insert(0, lambda at: artifacts[at].format.upper())
    if len({artifact.name for artifact in artifacts}) > 1:
        parts.insert(0, lambda at: artifacts[at].name[:24])
    return [f"{letter(at)} {' '.join(part(at) for part in parts)}" for at in range(len(founds))]


def letter(at: int) -> str:
    """A, B, … Z, AA, AB, …"""
    return (letter(at // 26 - 1) if at >= 26 else "") + chr(ord("A") + at % 26)


def _measure(founds: Sequence[Found]) -> Measure:
    """What all of them have: of decoders the divergence, of encoders what their task gives."""
    if not founds[0].of_encoder:
        return Measure("KL divergence, nats", lambda drift: number(drift.get("mean_kl")))
    cosine = Measure("1 - mean cosine", lambda drift: _one_minus(drift.get("mean_cosine")))
    labels = Measure("share of other labels", lambda drift: _one_minus(drift.get("label_agreement")))
    has_cosine = [found.document.get("drift", {}) and found.document["drift"].get("mean_cosine") for found in founds]
    return cosine if any(value is not None for value in has_cosine) else labels


def _one_minus(value: object) -> float | None:
    found = number(value)
    return None if found is None else max(1 - found, 0.0)


def _drift_of(found: Found, measure: Measure) -> float | None:
    return measure.of(found.document.get("drift") or {})


def _peak(document: Json) -> float | None:
    return number((document.get("measurement") or {}).get("peak_rss_bytes"))


def _fronts(of: dict[str, bool]) -> str:
    """On which fronts an artifact is: "size", "memory", "both" or "no"; a dash for what is in no plot."""
    on = [id for id, front in of.items() if front]
    return ("both" if len(on) > 1 else on[0] if on else "no") if of else NONE


def _cell_of_verdict(document: Json) -> str:
    """What the list above the table says, in few words."""
    state, _ = verdict_of(document)
    if state != "unknown":
        return state
    return "nothing judged" if document["verdict"] == MET else str(document["verdict"])


def _table(founds: Sequence[Found], fronts: dict[str, dict[str, bool]]) -> Table:
    decoder = ("first token", "decode", "KL divergence", "perplexity ratio", "same top-1")
    encoder = ("latency", "cosine", "rank correlation", "label agreement")
    own = encoder if founds[0].of_encoder else decoder
    header = ("artifact", "verdict", "size", "bits per weight", "peak memory", *own, "Pareto front")
    rows = []
    for (name, of), found in zip(fronts.items(), founds, strict=True):
        document = found.document
        bits = text_of(document["artifact"]["bits_per_weight"] or None, ".2f")
        cells = (_cell_of_verdict(document), size_of(bytes_of(document)), bits, size_of(_peak(document)))
        rows.append((name, *cells, *_own(document, encoder=own is encoder), _fronts(of)))
    return Table(header, tuple(rows))


def _own(document: Json, *, encoder: bool) -> tuple[str, ...]:
    """The columns of that kind of model."""
    measured, drift = document.get("measurement") or {}, document.get("drift") or {}

    def median(key: str) -> object:
        return (measured.get(key) or {}).get("median")

    if encoder:
        return (
            text_of(median("latency_ms"), ",.1f", "ms"), text_of(drift.get("mean_cosine"), ".5f"),
            text_of(drift.get("rank_correlation"), ".4f"), text_of(drift.get("label_agreement"), ".1%"),
        )  # fmt: skip
    return (
        text_of(median("first_token_ms"), ",.0f", "ms"), text_of(median("decode_tokens_per_s"), ",.1f", "tokens/s"),
        text_of(drift.get("mean_kl"), ".4g", "nats"), text_of(drift.get("perplexity_ratio"), ".4f"),
        text_of(drift.get("same_top1"), ".1%"),
    )  # fmt: skip


def _notes(founds: Sequence[Found]) -> list[str]:
    """What keeps the numbers from being compared as they stand."""
    documents = [found.document for found in founds]
    artifacts = [document["artifact"] for document in documents]
    drifts = [document["drift"] for document in documents if document.get("drift")]
    measured = [document["measurement"] for document in documents if document.get("measurement")]
    notes = []
    # A bare file does not say what it was made from.
    if len(sources := {str(one["source"]) for one in artifacts if one["files"]}) > 1:
        notes.append(f"made from different models: {', '.join(sorted(sources))}; drift is each from its own source")
    if len({(one["text_sha256"], one.get("n_tokens_scored"), one.get("n_texts")) for one in drifts}) > 1:
        notes.append("verified on different texts or numbers of tokens: their drift cannot be compared closely")
    if len({(one["host"].get("on"), one["host"].get("cpu")) for one in measured}) > 1:
        notes.append("measured on different machines: memory and speed cannot be compared closely")
    runs = [{**one["options"], **one["trials"]} for one in measured]
    return notes + _differing("measured", runs, _RUN) + _differing("verified", drifts, _COMPARED)


_RUN = (
    ("context", "contexts", "memory and speed"), ("kv_type", "types of KV cache", "memory and speed"),
    ("threads", "numbers of threads", "speed"), ("batch", "batches", "memory and speed"),
    ("mmap", "ways to load the weights (mapped or read)", "memory and speed"),
    ("prompt_tokens", "lengths of the prompt", "speed"), ("decode_tokens", "numbers of generated tokens", "speed"),
)  # fmt: skip
"""Options of a run: the key, in words, and what depends on it."""
_COMPARED = (("chunk_tokens", "lengths of a chunk", "drift"), ("reference", "references", "drift"))
"""The same of verifying."""


def _differing(done: str, ones: Sequence[Json], keys: Sequence[tuple[str, str, str]]) -> list[str]:
    """A note for each key that is not the same in all."""
    return [
        f"{done} with different {what}: their {depends} cannot be compared closely"
        for key, what, depends in keys
        if len({str(one.get(key)) for one in ones}) > 1
    ]
