"""How far an artifact is from its source model: `Drift`, its mathematics, its limits and the verdict on it.

The definitions are those of llama.cpp's llama-perplexity, so that the figures can be compared with its own: every
scored position gives one KL(P_source || Q_artifact) in nats and one negative log-likelihood of the token that
follows in the text, for each of the two models.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.budget import Line, at_least, at_most

if TYPE_CHECKING:
    import numpy.typing as npt

SLICE_POSITIONS = 16
"""Positions that are held in float64 at a time: 16 * 49,152 * 8 bytes = 6.3 MB an array."""
POSITION_SPANS = 16
"""Parts of the scored positions that the divergence is told for, one by one."""


@dataclass(frozen=True)
class TokenMismatch:
    """A text that source and artifact turn into different token ids; add_special: with BOS and the like."""

    text: str
    add_special: bool
    source_ids: tuple[int, ...]
    artifact_ids: tuple[int, ...]


@dataclass(frozen=True)
class Parity:
    """Whether text reaches the two models as the same token ids.

    n_strings: hard strings that were compared without special tokens added; mismatches: those that differ
    bos: adding special tokens gives the same ids too; bos_difference: the first difference, for people
    chat_template: rendered conversations and their ids are equal; None where neither side has a template
    chat_difference: the first difference, for people
    n_noted: hard strings that differ by a habit of the engine, which it has with every file; a note says so
    """

    n_strings: int
    mismatches: tuple[TokenMismatch, ...]
    bos: bool
    bos_difference: str | None
    chat_template: bool | None
    chat_difference: str | None
    n_noted: int = 0

    @property
    def n_equal(self) -> int:
        """Hard strings with equal ids."""
        return self.n_strings - len(self.mismatches) - self.n_noted

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Parity:
        """The inverse of `dataclasses.asdict`, also after a trip through JSON text."""
        mismatches = tuple(
            TokenMismatch(**{**m, "source_ids": tuple(m["source_ids"]), "artifact_ids": tuple(m["artifact_ids"])})
            for m in data["mismatches"]
        )
        return cls(**{**data, "mismatches": mismatches})


@dataclass(frozen=True)
class Statistics:
    """The numeric part of a `Drift`: over the scored positions of an evaluation text.

    mean_kl, p99_kl: KL(P_source || Q_artifact) in nats over the scored positions, mean and 99th percentile
    perplexity, source_perplexity: of the text's next tokens; perplexity_ratio: artifact / source
    same_top1: share of positions, 0 to 1, whose most probable token is the same
    n_tokens_scored: positions
    """

    mean_kl: float
    p99_kl: float
    perplexity: float
    source_perplexity: float
    perplexity_ratio: float
    same_top1: float
    n_tokens_scored: int


@dataclass(frozen=True)
class SpanKl:
    """The divergence at neighbouring positions of the context, over all chunks.

    first, last: positions, counted from 0, both included; mean_kl: in nats
    """

    first: int
    last: int
    mean_kl: float


@dataclass(frozen=True)
class Drift(Statistics):
    """Distance of an artifact from its source model, on the same token ids.

    n_chunks: windows of chunk_tokens tokens, the second half of each scored
    text_name, text_sha256: the evaluation text
    engine: what ran the artifact; reference: what ran the source
    dead_tensors: matrices of the artifact that are all zeros, where the source's are not; None where nobody looked
    notes: what a reader has to know, such as columns left out of padded vocabularies
    kl_by_position: the scored positions in POSITION_SPANS parts, in order; empty where an older packlight verified
    """

    n_chunks: int
    chunk_tokens: int
    text_name: str
    text_sha256: str
    parity: Parity
    engine: str
    reference: str
    dead_tensors: tuple[str, ...] | None = ()
    notes: tuple[str, ...] = field(default_factory=tuple)
    kl_by_position: tuple[SpanKl, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Drift:
        """The inverse of `to_json`, also after a trip through JSON text."""
        dead = data.get("dead_tensors", ())
        lists = {
            "dead_tensors": None if dead is None else tuple(dead),
            "notes": tuple(data.get("notes", ())),
            "kl_by_position": tuple(SpanKl(**span) for span in data.get("kl_by_position", ())),
        }
        return cls(**{**data, "parity": Parity.from_json(data["parity"]), **lists})


def log_softmax(logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Natural logarithms of the softmax over the last axis, in float64, shifted by the maximum first."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def kl_divergence(log_p: npt.NDArray[np.float64], log_q: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """KL(P || Q) in nats over the last axis, from log-probabilities.

    Never negative: what rounding leaves below zero is zero.
    """
    kl: npt.NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    return np.maximum(kl, 0.0)


class DriftAccumulator:
    """Streaming statistics: keeps one KL value a position, its place and three sums, never the logits."""

    def __init__(self) -> None:
        self._kl: list[npt.NDArray[np.float64]] = []
        self._places: list[npt.NDArray[np.int64]] = []
        self._nll_source = 0.0
        self._nll_artifact = 0.0
        self._same = 0

    def add(
        self,
        source: npt.NDArray[np.float32],
        artifact: npt.NDArray[np.float32],
        next_tokens: npt.NDArray[np.int64],
    ) -> None:
        """Take finite logits of shape (n, vocab) of both models and the n token ids that follow in the text."""
        for start in range(0, len(next_tokens), SLICE_POSITIONS):
            part = slice(start, start + SLICE_POSITIONS)
            log_p, log_q = log_softmax(source[part]), log_softmax(artifact[part])
            following = next_tokens[part, None]
            self._kl.append(kl_divergence(log_p, log_q))
            self._places.append(np.arange(start, start + len(log_p)))
            self._nll_source -= float(np.take_along_axis(log_p, following, axis=1).sum())
            self._nll_artifact -= float(np.take_along_axis(log_q, following, axis=1).sum())
            self._same += int((log_p.argmax(axis=1) == log_q.argmax(axis=1)).sum())

    def statistics(self) -> Statistics:
        """Over everything that was added. Raises ValueError where that is nothing."""
        if not self._kl:
            raise ValueError("no positions were added")
        kl = np.concatenate(self._kl)
        nll_source, nll_artifact = self._nll_source / len(kl), self._nll_artifact / len(kl)
        return Statistics(
            mean_kl=float(kl.mean()),
            p99_kl=float(np.percentile(kl, 99)),
            perplexity=_exp(nll_artifact),
            source_perplexity=_exp(nll_source),
            perplexity_ratio=_exp(nll_artifact - nll_source),
            same_top1=self._same / len(kl),
            n_tokens_scored=len(kl),
        )

    def by_position(self, first: int) -> tuple[SpanKl, ...]:
        """The divergence along the context; first: the position of the first row of every `add`."""
        if not self._kl:
            return ()
        places, kl = np.concatenate(self._places), np.concatenate(self._kl)
        counts, sums = np.bincount(places), np.bincount(places, weights=kl)
        spans = np.array_split(np.arange(len(counts)), min(POSITION_SPANS, len(counts)))
        return tuple(
            SpanKl(first + int(span[0]), first + int(span[-1]), float(sums[span].sum() / counts[span].sum()))
            for span in spans
        )


def _exp(value: float) -> float:
    """exp, but never infinite: a ruined model gets a huge perplexity, and JSON knows no infinity."""
    return float(np.exp(min(value, 700.0)))


@dataclass(frozen=True)
class Thresholds:
    """Limits of a Drift, in its own units; None is no limit. Parity has no limit to set: it has to hold."""

    max_mean_kl: float | None = None
    max_p99_kl: float | None = None
    max_perplexity_ratio: float | None = None
    min_same_top1: float | None = None


THRESHOLDS: tuple[tuple[float, Thresholds], ...] = (
    # bits   mean KL, 99th percentile, perplexity ratio, same top-1
    (15.0, Thresholds(0.005, 0.03, 1.01, 0.97)),
    (8.0, Thresholds(0.03, 0.15, 1.05, 0.90)),
    (6.5, Thresholds(0.10, 0.50, 1.10, 0.80)),
    (5.9, Thresholds(0.20, 1.00, 1.30, 0.74)),
    (5.3, Thresholds(0.55, 2.80, 1.60, 0.60)),
    (4.4, Thresholds(0.90, 4.00, 2.00, 0.50)),
    (0.0, Thresholds(2.50, 8.00, 5.00, 0.30)),
)
"""Default limits: (at least so many bits per weight, limits), the largest first.

They separate a broken file from an honest one, they do not say what is good enough: a user's own limits do that.
docs/reference/thresholds.md has the room that they leave to every preset of the off-grid SmolLM2-135M (rounding to
nearest, no importance matrix) and how far planted faults are beyond them: `python -m benchmarks.thresholds` measures
both. A row that no preset of that model falls into is a guess, such as the last, which only stops ruins: Llama-3-8B's
Q2_K, which falls into it, has a mean KL of 0.445 in llama.cpp's tools/perplexity/README.md.

A wrong BOS flag or pre-tokenizer does not reach the logits, since both models get the source's token ids, and a zeroed
matrix can stay within limits that honest rounding needs: they have lines of their own in `judge`.
"""


def thresholds_for(bits_per_weight: float) -> Thresholds:
    """The limits of `THRESHOLDS` for a file of that many bits per weight."""
    return next((limits for least, limits in THRESHOLDS if bits_per_weight >= least), THRESHOLDS[-1][1])


def judge(drift: Drift, thresholds: Thresholds) -> list[Line]:
    """The lines of the verdict on a Drift: every number against its limit, then what has to hold in any file."""
    limits, parity = thresholds, drift.parity
    return [
        at_most("KL divergence", drift.mean_kl, limits.max_mean_kl, f"{drift.mean_kl:.4f} nats",
                f"{limits.max_mean_kl} nats"),
        at_most("KL divergence, 99th percentile", drift.p99_kl, limits.max_p99_kl, f"{drift.p99_kl:.3f} nats",
                f"{limits.max_p99_kl} nats"),
        at_most("perplexity ratio", drift.perplexity_ratio, limits.max_perplexity_ratio,
                f"{drift.perplexity_ratio:.4f} ({drift.perplexity:.2f} / {drift.source_perplexity:.2f})",
                f"{limits.max_perplexity_ratio}"),
        at_least("same top-1", drift.same_top1, limits.min_same_top1, f"{drift.same_top1:.1%}",
                 f"{limits.min_same_top1 or 0:.1%}"),
        token_line(parity),
        special_line("BOS", parity),
        _equal("chat template", parity.chat_template, {None: "neither has one", True: "equal"}.get(
            parity.chat_template, f"differs: {parity.chat_difference}")),
        *([] if drift.dead_tensors is None else [tensor_line(drift.dead_tensors)]),
    ]  # fmt: skip


def tensor_line(dead: tuple[str, ...]) -> Line:
    """Matrices that are all zeros: value is how many."""
    text = f"{len(dead)} all zeros, the first: {dead[0]}" if dead else "none is all zeros"
    return Line("matrices", text, "none is all zeros", not dead, float(len(dead)), 0.0)


def token_line(parity: Parity) -> Line:
    """Token ids of the hard strings: value is how many differ."""
    wrong = len(parity.mismatches)
    equal = f"{parity.n_equal} of {parity.n_strings} texts equal{', the others as noted' if parity.n_noted else ''}"
    text = f"{wrong} of {parity.n_strings} texts differ, the first: {parity.mismatches[0].text!r}" if wrong else equal
    return Line("token ids", text, "equal", wrong == 0, float(wrong), 0.0)


def special_line(name: str, parity: Parity) -> Line:
    """Whether adding special tokens gives the same ids too."""
    return _equal(name, parity.bos, "equal" if parity.bos else f"differs: {parity.bos_difference}")


def _equal(name: str, holds: bool | None, text: str) -> Line:
    """A line without a number: value is 0 where it holds (or there is nothing to compare) and 1 where it does not."""
    return Line(name, text, "equal", holds is not False, float(holds is False), 0.0)
