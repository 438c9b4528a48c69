"""What a student learns from: pieces of text and what its teacher predicts of them, on the disk.

The teacher runs once, whatever the number of epochs; of what it expects behind a token the likeliest ones are kept. One
whose features are followed runs beside the student anyway, and is asked there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from exporter.compress.training.predictions import filled_up, predictions
from runtime.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from exporter.compress.journal import Arrays
    from exporter.compress.mapped import MappedEncoder, MappedReference
    from exporter.compress.subject import Subject
    from exporter.steps import Training

AT_A_TIME = 16
"""Pieces whose predictions are kept together: a run that is killed loses no more."""
NOTHING = -1
"""Stands in for a token behind the end of a text."""
HELD_OUT = 16
"""One piece in so many is not learned from and judges what was learned."""
MOST_HELD_OUT = 64
"""Pieces: they are all judged twenty times."""


@dataclass(frozen=True)
class Batch:
    """Some pieces.

    ids: (pieces, tokens); tokens: the teacher's, (pieces, tokens, k); outcomes: see `losses.outcomes`; both None where
        the text itself teaches, or a teacher that runs beside the student
    Of an encoder shorter pieces end in NOTHING, and outcomes, without tokens, are embeddings or logits:
    (pieces, width), (pieces, labels) or (pieces, tokens, labels).
    """

    ids: npt.NDArray[np.int32]
    tokens: npt.NDArray[np.int32] | None
    outcomes: npt.NDArray[np.float32] | None

    def bytes(self) -> Arrays:
        """As a journal keeps them."""
        found: dict[str, npt.NDArray[Any]] = {"ids": self.ids}
        found |= {} if self.tokens is None else {"tokens": self.tokens}
        found |= {} if self.outcomes is None else {"outcomes": self.outcomes}
        return {name: np.ascontiguousarray(array).view(np.uint8) for name, array in found.items()}

    @classmethod
    def of(cls, arrays: Arrays) -> Batch:
        """From what `bytes` gave."""
        tokens = arrays["tokens"].view(np.int32) if "tokens" in arrays else None
        outcomes = arrays["outcomes"].view(np.float32) if "outcomes" in arrays else None
        return cls(arrays["ids"].view(np.int32), tokens, outcomes)


class Lessons(Dataset[dict[str, torch.Tensor]]):
    """Pieces by number, each as the arguments of a training step.

    batches: of AT_A_TIME pieces each, fewer in the last; pad: see `Predictions`
    """

    def __init__(self, batches: Sequence[Batch], pad: int | None = None) -> None:
        self._batches, self._pad = batches, pad

    def __len__(self) -> int:
        return sum(len(batch.ids) for batch in self._batches)

    def lengths(self) -> list[int]:
        """Of each piece, in tokens."""
        return [self._place(number)[2] for number in range(len(self))]

    def _place(self, number: int) -> tuple[Batch, int, int]:
        """A piece's batch, its row there, and how many tokens it has."""
        batch, row = divmod(number, AT_A_TIME)
        piece = self._batches[batch]
        return piece, row, int((piece.ids[row] != NOTHING).sum())

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        piece, row, length = self._place(number)
        found = {"input_ids": torch.from_numpy(piece.ids[row, :length].astype(np.int64))}
        if piece.tokens is not None:
            found["tokens"] = torch.from_numpy(piece.tokens[row].astype(np.int64))
        if piece.outcomes is not None:
            outcomes = piece.outcomes[row, :length] if piece.outcomes.ndim == 3 else piece.outcomes[row]
            found["outcomes"] = torch.from_numpy(np.array(outcomes))
        return found

    def collate(self, pieces: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Some pieces as one; shorter ones are filled up, and then attention_mask is 1 for what is theirs."""
        found = {key: pad_sequence([one[key] for one in pieces], batch_first=True) for key in pieces[0]}
        if self._pad is not None:
            found |= filled_up([one["input_ids"] for one in pieces], self._pad)
        return found


def lessons(step: Training, subject: Subject) -> tuple[Lessons, Lessons]:
    """What is learned from, and what is held out. Raises UserError for a text that cannot be had or is too short."""
    with subject.kept.in_turn(), _Teacher(step, subject) as teacher:
        n_pieces = teacher.pieces()
        if n_pieces < 2:
            of = "texts" if teacher.predictions.pad is not None else f"pieces of {step.text.tokens} tokens"
            what = f"training needs two {of}, one to judge by; there are {n_pieces}"
            raise UserError(f"--recipe: {what}; raise text.chunks, lower text.tokens, or name a longer text")
        held_out = range(0, n_pieces, max(HELD_OUT, -(-n_pieces // MOST_HELD_OUT)))
        learned = [one for one in range(n_pieces) if one not in held_out]
        asked = step.hard < 1
        parts = (("learned", learned, asked and step.features is None), ("held-out", held_out, asked))
        found: tuple[list[Batch], list[Batch]] = ([], [])
        done, total = 0, sum(-(-len(pieces) // AT_A_TIME) for _, pieces, _ in parts)
        for (name, pieces, with_predictions), batches in zip(parts, found, strict=True):
            for start in range(0, len(pieces), AT_A_TIME):
                subject.progress("teacher", done, total)
                some = pieces[start : start + AT_A_TIME]
                batches.append(teacher.kept(f"{name}-{len(batches)}", some, asked=with_predictions))
                done += 1
        subject.progress("teacher", total, total)
    learned_from, judged_by = (Lessons(batches, teacher.predictions.pad) for batches in found)
    return learned_from, judged_by


class _Teacher:
    """Who teaches, opened where something is asked of it that is not on the disk yet."""

    def __init__(self, step: Training, subject: Subject) -> None:
        self._step, self._subject = step, subject
        self.predictions = predictions(step, subject)
        self._open = contextlib.ExitStack()

    def __enter__(self) -> _Teacher:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @cached_property
    def _source(self) -> MappedReference | MappedEncoder:
        return self._open.enter_context(contextlib.closing(self._subject.teacher(self._step.teacher)))

    @cached_property
    def _chunks(self) -> list[list[int]]:
        subject, text = self._subject, self._step.text
        # It writes the text itself, where one is to be written: what is trained may be able to no more.
        reader = self._source if text.kind == "model" else subject.source
        found = self.predictions.texts(reader)
        digest = hashlib.sha256(json.dumps(found).encode()).hexdigest()
        name = f"lessons-{subject.number}"
        known = subject.kept.find(name)
        if known is None:
            subject.kept.note(name, pieces=len(found), text=digest)
        elif known["text"] != digest:
            what = "the text of the training is another than that which the work was begun with"
            raise UserError(f"--resume: {what}; put it back, or leave --resume out to begin anew")
        return found

    def pieces(self) -> int:
        """How many pieces of text there are."""
        known = self._subject.kept.find(f"lessons-{self._subject.number}")
        return len(self._chunks) if known is None else int(known["pieces"])

    def kept(self, name: str, pieces: Sequence[int], *, asked: bool) -> Batch:
        """A `batch` from the disk, where it is put the first time. name: its own among those of the step"""
        key = f"lessons-{self._subject.number}-{name}"
        found = self._subject.kept.load(key)
        if found is None:
            found = self._subject.kept.save(key, self.batch(pieces, asked=asked).bytes())
        return Batch.of(found)

    def batch(self, pieces: Sequence[int], *, asked: bool) -> Batch:
        """Some pieces by number. asked: with predictions"""
        chunks = [self._chunks[number] for number in pieces]
        longest = max(map(len, chunks))
        ids = np.array([[*one, *[NOTHING] * (longest - len(one))] for one in chunks], np.int32)
        return Batch(ids, *(self.predictions.taught(self._source, chunks) if asked else (None, None)))
