"""How far an encoder's artifact is from its source model: `EncoderDrift`, its mathematics, its limits and the verdict.

An encoder gives vectors or labels, so it is judged by what those are used for: the cosine of an embedding to the
source's, the order in which embeddings rank texts, and the labels that classifiers choose.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.budget import Line, at_least, at_most
from targets.drift import Drift, Parity, special_line, tensor_line, token_line

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.floating[Any]]

WORST_FACTOR = 10
"""The worst text may be so many times as far from a cosine of 1 as the mean may: one broken length shows there."""

MAX_LENGTH_CHANGE = 0.1
"""How far the length of embeddings may be from the source's. Cosines do not see a normalization that was left out."""


@dataclass(frozen=True)
class EncoderStatistics:
    """The numeric part of an `EncoderDrift`; None where the task has no such quantity.

    mean_cosine, min_cosine: between the two embeddings of a text, over the texts
    token_cosine: mean cosine between the two last hidden states of a token, over all tokens
    length_ratio: mean length of the artifact's embeddings over that of the source's
    rank_correlation: Spearman's, between the similarities of all pairs of texts (embeddings), or between the scores
        of the texts (a classifier with one label)
    label_agreement: share of texts (tokens, where those are classified), 0 to 1, with the same best label
    max_abs_difference: largest difference of any number that was compared, embeddings or logits
    n_texts, n_tokens: what was compared
    """

    mean_cosine: float | None
    min_cosine: float | None
    token_cosine: float | None
    length_ratio: float | None
    rank_correlation: float | None
    label_agreement: float | None
    max_abs_difference: float
    n_texts: int
    n_tokens: int


@dataclass(frozen=True)
class EncoderDrift(EncoderStatistics):
    """Distance of an encoder's artifact from its source model, on the same token ids.

    task: "feature-extraction", "text-classification" or "token-classification"
    max_tokens: length of the longest text
    text_name, text_sha256: the evaluation text that the texts were cut from
    engine: what ran the artifact; reference: what ran the source
    dead_tensors: matrices of the artifact that are all zeros, where the source's are not; None where nobody looked
    notes: what a reader has to know
    """

    task: str
    max_tokens: int
    text_name: str
    text_sha256: str
    parity: Parity
    engine: str
    reference: str
    dead_tensors: tuple[str, ...] | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> EncoderDrift:
        """The inverse of `to_json`, also after a trip through JSON text."""
        dead = data.get("dead_tensors")
        lists = {"dead_tensors": None if dead is None else tuple(dead), "notes": tuple(data.get("notes", ()))}
        return cls(**{**data, "parity": Parity.from_json(data["parity"]), **lists})


def drift_from_json(data: dict[str, Any]) -> Drift | EncoderDrift:
    """The drift in a report, of either kind."""
    return EncoderDrift.from_json(data) if "task" in data else Drift.from_json(data)


def cosine(a: Floats, b: Floats) -> npt.NDArray[np.float64]:
    """Cosines over the last axis, in float64. Two zero vectors are alike (1), a zero and another are not (0)."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths_a, lengths_b = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
    product = lengths_a * lengths_b
    found = (a * b).sum(axis=-1) / np.where(product > 0, product, 1.0)
    both_zero = (lengths_a == 0) & (lengths_b == 0)
    result: npt.NDArray[np.float64] = np.where(both_zero, 1.0, np.clip(found, -1.0, 1.0))
    return result


def pair_similarities(embeddings: Floats) -> npt.NDArray[np.float64]:
    """Cosines between all pairs of rows, each pair once: n rows give n * (n - 1) / 2."""
    rows, columns = np.triu_indices(len(embeddings), k=1)
    return cosine(embeddings[rows], embeddings[columns])


def ranks(values: Floats) -> npt.NDArray[np.float64]:
    """Ranks from 0; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    shared: npt.NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return shared


def spearman(source: Floats, artifact: Floats) -> float | None:
    """Spearman's rank correlation of two lists of values; 0 where only the artifact's have no order (all are equal).

    None where the source's have none: there is nothing to keep.
    """
    if len(source) < 2:
        return None
    ranks_s, ranks_a = (side - side.mean() for side in (ranks(source), ranks(artifact)))
    spread_s, spread_a = float((ranks_s**2).sum()), float((ranks_a**2).sum())
    if not spread_s:
        return None
    return float((ranks_s * ranks_a).sum()) / math.sqrt(spread_s * spread_a) if spread_a else 0.0


class EncoderDriftAccumulator:
    """Collects what two encoders give for the same texts. Keeps one embedding or row of logits a text, no states."""

    def __init__(self) -> None:
        self._pairs: list[tuple[Floats, Floats]] = []
        self._token_cosines: list[npt.NDArray[np.float64]] = []
        self._same: list[npt.NDArray[np.bool_]] = []
        self._scores: list[tuple[float, float]] = []
        self._largest = 0.0
        self._n_texts = self._n_tokens = 0

    def count(self, n_tokens: int) -> None:
        """One more text."""
        self._n_texts += 1
        self._n_tokens += n_tokens

    def add_embeddings(self, source: Floats, artifact: Floats) -> None:
        """The two embeddings of a text, shape (hidden,)."""
        self._pairs.append((source, artifact))
        self._differ(source, artifact)

    def add_states(self, source: Floats, artifact: Floats) -> None:
        """The two last hidden states of a text, shape (tokens, hidden)."""
        self._token_cosines.append(cosine(source, artifact))

    def add_logits(self, source: Floats, artifact: Floats) -> None:
        """The two rows of logits of a text, shape (labels,), or of its tokens, shape (tokens, labels)."""
        self._differ(source, artifact)
        if source.shape == (1,):
            self._scores.append((float(source[0]), float(artifact[0])))
        else:
            self._same.append(np.atleast_1d(source.argmax(axis=-1) == artifact.argmax(axis=-1)))

    def statistics(self) -> EncoderStatistics:
        """Over everything that was added. Raises ValueError where that is nothing."""
        if not self._n_texts:
            raise ValueError("no texts were added")
        mean_cosine = min_cosine = length_ratio = rank_correlation = None
        if self._pairs:
            source, artifact = (np.stack(side) for side in zip(*self._pairs, strict=True))
            cosines = cosine(source, artifact)
            mean_cosine, min_cosine = float(cosines.mean()), float(cosines.min())
            length_ratio = _length_ratio(source, artifact)
            rank_correlation = spearman(pair_similarities(source), pair_similarities(artifact))
        elif self._scores:
            scores = np.array(self._scores)
            rank_correlation = spearman(scores[:, 0], scores[:, 1])
        return EncoderStatistics(
            mean_cosine=mean_cosine, min_cosine=min_cosine, token_cosine=_mean(self._token_cosines),
            length_ratio=length_ratio, rank_correlation=rank_correlation, label_agreement=_mean(self._same),
            max_abs_difference=self._largest, n_texts=self._n_texts, n_tokens=self._n_tokens,
        )  # fmt: skip

    def _differ(self, source: Floats, artifact: Floats) -> None:
        self._largest = max(self._largest, float(np.abs(source.astype(np.float64) - artifact).max(initial=0.0)))


def _mean(parts: list[Any]) -> float | None:
    """Mean over the concatenated arrays; None without any number."""
    whole = np.concatenate(parts) if parts else np.empty(0)
    return float(whole.mean()) if whole.size else None


def _length_ratio(source: Floats, artifact: Floats) -> float | None:
    """Mean length of the artifact's rows over that of the source's; None where the source's are all zero."""
    lengths = [float(np.linalg.norm(side.astype(np.float64), axis=-1).mean()) for side in (source, artifact)]
    return lengths[1] / lengths[0] if lengths[0] else None


@dataclass(frozen=True)
class EncoderThresholds:
    """Limits of an EncoderDrift, in its own units; None is no limit. min_cosine: of the mean; see WORST_FACTOR."""

    min_cosine: float | None = None
    min_label_agreement: float | None = None
    min_rank_correlation: float | None = None


ENCODER_THRESHOLDS: tuple[tuple[float, EncoderThresholds], ...] = (
    # bits                    cosine, label agreement, rank correlation
    (15.0, EncoderThresholds(0.9999, 0.99, 0.999)),
    (8.0, EncoderThresholds(0.99, 0.95, 0.98)),
    (0.0, EncoderThresholds(0.93, 0.90, 0.90)),
)
"""Default limits: (at least so many bits per weight, limits), the largest first. They separate a broken file from an
honest one, they do not say what is good enough: a user's own limits do that."""


def encoder_thresholds_for(bits_per_weight: float) -> EncoderThresholds:
    """The limits of `ENCODER_THRESHOLDS` for a file of that many bits per weight."""
    return next((limits for least, limits in ENCODER_THRESHOLDS if bits_per_weight >= least), ENCODER_THRESHOLDS[-1][1])


def judge_encoder(drift: EncoderDrift, thresholds: EncoderThresholds) -> list[Line]:
    """The lines of the verdict on an EncoderDrift: every number that its task has, then what has to hold in any file.

    Limits on numbers that the task does not have are not looked at: the default limits are for all tasks.
    """
    lowest = thresholds.min_cosine
    worst = None if lowest is None else max(-1.0, 1.0 - WORST_FACTOR * (1.0 - lowest))
    lines = [
        *_share_lines("cosine", drift.mean_cosine, lowest, "{:.5f}"),
        *_share_lines("cosine, worst text", drift.min_cosine, worst, "{:.5f}"),
        *_share_lines("cosine of tokens", drift.token_cosine, None, "{:.5f}"),
        *_share_lines("rank correlation", drift.rank_correlation, thresholds.min_rank_correlation, "{:.5f}"),
        *_share_lines("label agreement", drift.label_agreement, thresholds.min_label_agreement, "{:.1%}"),
        at_most("largest difference", drift.max_abs_difference, None, f"{drift.max_abs_difference:.3g}"),
    ]
    if drift.length_ratio is not None:
        change = abs(drift.length_ratio - 1.0)
        text = f"{drift.length_ratio:.4f} of the source's"
        lines.append(at_most("length of embeddings", change, MAX_LENGTH_CHANGE, text, f"{MAX_LENGTH_CHANGE:.0%} off"))
    lines += [token_line(drift.parity), special_line("special tokens", drift.parity)]
    return lines if drift.dead_tensors is None else [*lines, tensor_line(drift.dead_tensors)]


def _share_lines(name: str, value: float | None, limit: float | None, form: str) -> list[Line]:
    """The line of a number that is best at 1; none where there is no such number."""
    if value is None:
        return []
    return [at_least(name, value, limit, form.format(value), form.format(limit or 0.0))]
