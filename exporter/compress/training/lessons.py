"""What a student learns from: pieces of text and what its teacher predicts behind every token, on the disk.

The teacher runs once, whatever the number of epochs; of each prediction the likeliest tokens are kept.
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
from torch.nn import functional
from torch.utils.data import Dataset

from exporter.calibration import calibration_chunks
from exporter.compress.training.losses import likeliest
from runtime.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from exporter.compress.journal import Arrays
    from exporter.compress.subject import Subject
    from exporter.steps import Training
    from exporter.verify.reference import TransformersReference

AT_A_TIME = 16
"""Pieces whose predictions are kept together: a run that is killed loses no more."""
NEVER = -1e4
"""The logit of a token that a teacher has no row for."""
HELD_OUT = 16
"""One piece in so many is not learned from and judges what was learned."""


@dataclass(frozen=True)
class Batch:
    """Some pieces. ids: (pieces, tokens); tokens: the teacher's, (pieces, tokens, k); outcomes: see `losses.outcomes`.

    tokens and outcomes are None where only the text itself teaches.
    """

    ids: npt.NDArray[np.int32]
    tokens: npt.NDArray[np.int32] | None
    outcomes: npt.NDArray[np.float32] | None

    def bytes(self) -> Arrays:
        """As a journal keeps them."""
        found: dict[str, npt.NDArray[Any]] = {"ids": self.ids}
        if self.tokens is not None and self.outcomes is not None:
            found |= {"tokens": self.tokens, "outcomes": self.outcomes}
        return {name: np.ascontiguousarray(array).view(np.uint8) for name, array in found.items()}

    @classmethod
    def of(cls, arrays: Arrays) -> Batch:
        """From what `bytes` gave."""
        rest = (arrays["tokens"].view(np.int32), arrays["outcomes"].view(np.float32)) if "tokens" in arrays else ()
        return cls(arrays["ids"].view(np.int32), *(rest or (None, None)))


class Lessons(Dataset[dict[str, torch.Tensor]]):
    """Pieces by number, each as the arguments of a training step. chosen: numbers over all batches."""

    def __init__(self, batches: Sequence[Batch], chosen: Sequence[int]) -> None:
        self._batches, self._chosen = batches, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        batch, row = divmod(self._chosen[number], AT_A_TIME)
        piece = self._batches[batch]
        found = {"input_ids": torch.from_numpy(piece.ids[row].astype(np.int64))}
        if piece.tokens is not None and piece.outcomes is not None:
            found["tokens"] = torch.from_numpy(piece.tokens[row].astype(np.int64))
            found["outcomes"] = torch.from_numpy(np.array(piece.outcomes[row]))
        return found


def lessons(step: Training, subject: Subject) -> tuple[Lessons, Lessons]:
    """What is learned from, and what is held out. Raises UserError for a text that cannot be had or is too short."""
    with _Teacher(step, subject) as teacher:
        n_pieces = teacher.pieces()
        if n_pieces < 2:
            what = f"training needs two pieces of {step.text.tokens} tokens, one to judge by; there are {n_pieces}"
            raise UserError(f"--recipe: {what}; raise text.chunks, lower text.tokens, or name a longer text")
        count = -(-n_pieces // AT_A_TIME)
        batches = []
        for number in range(count):
            subject.progress("teacher", number, count)
            name = f"lessons-{subject.number}-{number}"
            kept = subject.kept.load(name)
            batches.append(Batch.of(subject.kept.save(name, teacher.batch(number).bytes()) if kept is None else kept))
        subject.progress("teacher", count, count)
    held_out = range(0, n_pieces, HELD_OUT)
    return Lessons(batches, [one for one in range(n_pieces) if one not in held_out]), Lessons(batches, held_out)


class _Teacher:
    """Who teaches, opened where something is asked of it that is not on the disk yet."""

    def __init__(self, step: Training, subject: Subject) -> None:
        self._step, self._subject = step, subject
        self._open = contextlib.ExitStack()

    def __enter__(self) -> _Teacher:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @cached_property
    def _source(self) -> TransformersReference:
        return self._open.enter_context(contextlib.closing(self._subject.teacher(self._step.teacher)))

    @cached_property
    def _chunks(self) -> list[list[int]]:
        subject, text = self._subject, self._step.text
        # It writes the text itself, where one is to be written: what is trained may be able to no more.
        reader = self._source if text.kind == "model" else subject.source
        facts = subject.taught_by(self._step.teacher)
        found = calibration_chunks(reader, facts, text, subject.recipe.seed, subject.progress)
        found = [ids for ids in found if len(ids) == text.tokens]  # a text's last piece is shorter
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

    def batch(self, number: int) -> Batch:
        """Pieces and predictions, batch `number` of all."""
        chunks = self._chunks[number * AT_A_TIME : (number + 1) * AT_A_TIME]
        ids = np.array(chunks, np.int32)
        if self._step.hard == 1:
            return Batch(ids, None, None)
        found = [likeliest(self._logits(one), self._step.top, self._step.temperature) for one in chunks]
        tokens, outcomes = (torch.stack(part).numpy() for part in zip(*found, strict=True))
        return Batch(ids, tokens.astype(np.int32), outcomes)

    def _logits(self, ids: Sequence[int]) -> torch.Tensor:
        """(tokens, vocabulary of the student): tables may have more or fewer rows than there are tokens."""
        found = torch.from_numpy(self._source.logits(list(ids)))
        return functional.pad(found, (0, self._subject.source.n_vocab - found.shape[-1]), value=NEVER)
