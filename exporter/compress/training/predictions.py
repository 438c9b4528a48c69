"""What a student predicts, by what it is for: next tokens, embeddings or labels; and how far its teacher's are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from exporter.calibration import calibration_chunks, encoder_texts
from exporter.compress.mapped import MappedEncoder
from exporter.compress.tasks import loss_of
from exporter.compress.training.losses import DISTANCES, distillation_loss, label_divergence, likeliest
from exporter.verify.encoder import find_frame
from runtime.errors import UserError
from targets.task import FEATURE_EXTRACTION, TEXT_GENERATION

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    from torch import Tensor

    from exporter.compress.mapped import MappedReference
    from exporter.compress.subject import Subject
    from exporter.steps import Training
    from targets.pooling import Pooling

    Ids = Sequence[Sequence[int]]
    Taught = tuple[npt.NDArray[np.int32] | None, npt.NDArray[np.float32]]

NEVER = -1e4
"""The logit of a token that a teacher has no row for."""


class Predictions(Protocol):
    """Predictions of one task. Any: models and outputs of transformers.

    pad: the token that shorter texts of a batch are filled up with; None where all are of one length
    """

    pad: int | None

    def texts(self, reader: Any) -> list[list[int]]:  # noqa: ANN401
        """Token ids of the pieces that are learned from, by an open model that reads them, or writes them."""

    def taught(self, teacher: Any, pieces: Ids) -> Taught:  # noqa: ANN401
        """What the teacher predicts for some pieces: tokens and outcomes as `lessons.Batch` has them."""

    def said(self, output: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ANN401
        """What a teacher's output for a batch predicts, as `loss` is given it beside the batch."""

    def loss(self, output: Any, inputs: Mapping[str, Tensor]) -> Tensor:  # noqa: ANN401
        """How far the student's are, a mean; inputs: see `lessons.Lessons`."""


def predictions(step: Training, subject: Subject) -> Predictions:
    """Those of the subject's task."""
    if isinstance(subject.source, MappedEncoder):
        return Encoded(step, subject)
    return NextTokens(step, subject)


def refuse_untrainable(step: Training, subject: Subject) -> None:
    """Raise UserError for a model, or a teacher, that this training cannot have: before any step is done."""
    predictions(step, subject)
    if step.gradient_checkpointing and not subject.model.supports_gradient_checkpointing:
        what = f"transformers computes no activations of {type(subject.model).__name__} again"
        raise UserError(f"--recipe: gradient_checkpointing: {what}; leave it out")


def in_precision(step: Training, device: str = "cpu") -> contextlib.AbstractContextManager[Any]:
    """Within it a teacher computes as its student does: its products in the step's precision."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=step.precision == "bfloat16")


def arguments(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a model is called with."""
    if "attention_mask" in inputs:
        return {key: inputs[key] for key in ("input_ids", "attention_mask")}
    return {"input_ids": inputs["input_ids"], "use_cache": False}


@dataclass
class NextTokens:
    """See `Predictions`: of a decoder, for every token."""

    step: Training
    subject: Subject
    pad: int | None = None

    def texts(self, reader: MappedReference) -> list[list[int]]:
        """See `Predictions`."""
        subject, text = self.subject, self.step.text
        facts = subject.taught_by(self.step.teacher)
        found = calibration_chunks(reader, facts, text, subject.recipe.seed, subject.progress)
        return [ids for ids in found if len(ids) == text.tokens]  # a text's last piece is shorter

    def taught(self, teacher: MappedReference, pieces: Ids) -> Taught:
        """See `Predictions`."""
        step, found = self.step, []
        together = step.batch // step.accumulate  # as many as the student, which needs more memory, is given
        for start in range(0, len(pieces), together):
            with in_precision(step):
                output = teacher.forward(*pieces[start : start + together], use_cache=False)
            found.append(self._likeliest(output.logits))
        tokens, outcomes = (torch.cat(part).numpy() for part in zip(*found, strict=True))
        return tokens.astype(np.int32), outcomes

    def said(self, output: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ANN401, ARG002 - pieces are of one length
        """See `Predictions`."""
        tokens, outcomes = self._likeliest(output.logits)
        return {"tokens": tokens, "outcomes": outcomes}

    def _likeliest(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Of the student's vocabulary: a teacher's table may have more or fewer rows than there are tokens."""
        logits = functional.pad(logits, (0, self.subject.source.n_vocab - logits.shape[-1]), value=NEVER)
        return likeliest(logits, self.step.top, self.step.temperature)

    def loss(self, output: Any, inputs: Mapping[str, Tensor]) -> Tensor:  # noqa: ANN401
        """See `Predictions`."""
        step = self.step
        taught = (inputs["tokens"], inputs["outcomes"]) if "tokens" in inputs else None
        loss = loss_of(step, TEXT_GENERATION)
        return distillation_loss(output.logits, inputs["input_ids"], taught, loss, step.temperature, step.hard)


class Encoded:
    """See `Predictions`: of an encoder, an embedding or labels of a text, or labels of its tokens."""

    def __init__(self, step: Training, subject: Subject) -> None:
        assert isinstance(subject.source, MappedEncoder)
        self._step, self._source, self._seed = step, subject.source, subject.recipe.seed
        self._frame = find_frame(subject.source)
        config = subject.model.config
        self.pad: int | None = getattr(config, "pad_token_id", None)
        if self.pad is None:
            if self._source.task != FEATURE_EXTRACTION:  # it would not know where a text ends
                what = "config.json names no pad_token_id, without which texts are not trained together"
                raise UserError(f"{subject.facts.requested}: {what}; write it there")
            self.pad = 0
        if step.teacher is not None:
            _refuse_other_outputs(step.teacher, subject.taught_by(step.teacher).config, subject.facts.config)
        self._several = getattr(config, "problem_type", None) == "multi_label_classification"

    def texts(self, reader: MappedEncoder) -> list[list[int]]:
        """See `Predictions`."""
        return encoder_texts(reader, self._step.text, self._seed)

    def taught(self, teacher: MappedEncoder, pieces: Ids) -> Taught:
        """See `Predictions`. Raises UserError for a teacher that takes shorter texts."""
        if max(map(len, pieces)) > teacher.max_tokens:
            what = f"teacher {self._step.teacher or 'of initialize'}: takes {teacher.max_tokens} tokens"
            raise UserError(f"--recipe: {what}; say text.tokens: {teacher.max_tokens}")
        assert self.pad is not None, "an encoder's texts are filled up"
        inputs = filled_up([torch.tensor(list(ids)) for ids in pieces], self.pad)
        together, mask = self._step.batch // self._step.accumulate, inputs["attention_mask"]
        order = torch.argsort(mask.sum(1), stable=True)  # those of like length together: little is filled up
        longest, found = mask.shape[1], [torch.empty(0)] * len(pieces)
        for rows in torch.split(order, together):
            some = {key: tensor[rows, : int(mask[rows].sum(1).max())] for key, tensor in inputs.items()}
            with in_precision(self._step):
                output = teacher.run(**some)
            for row, one in zip(rows.tolist(), self._judged(output, some["attention_mask"], longest), strict=True):
                found[row] = one
        return None, torch.stack(found).numpy()

    def said(self, output: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ANN401
        """See `Predictions`."""
        mask = inputs["attention_mask"]
        return {"outcomes": self._judged(output, mask, mask.shape[1])}

    def _judged(self, output: Any, mask: Tensor, longest: int) -> Tensor:  # noqa: ANN401
        """Embeddings, (texts, width), or labels, (texts, labels) or (texts, longest, labels), 0 behind a text's end."""
        if not hasattr(output, "logits"):
            return pooled(output.last_hidden_state.float(), mask, self._source.pooling)
        logits: Tensor = output.logits.float()
        if logits.dim() == 2:
            return logits
        return functional.pad(logits * mask[..., None], (0, 0, 0, longest - logits.shape[1]))

    def loss(self, output: Any, inputs: Mapping[str, Tensor]) -> Tensor:  # noqa: ANN401
        """See `Predictions`."""
        teacher, mask = inputs["outcomes"], inputs["attention_mask"]
        loss, temperature = loss_of(self._step, self._source.task), self._step.temperature
        if self._source.task == FEATURE_EXTRACTION:
            return DISTANCES[loss](teacher, pooled(output.last_hidden_state.float(), mask, self._source.pooling)).mean()
        found = label_divergence(teacher, output.logits.float(), loss, temperature, several=self._several)
        return found.mean() if found.dim() == 1 else found[self._within(mask)].mean()

    def _within(self, mask: Tensor) -> Tensor:
        """(texts, tokens): those of the text itself, for labels of special tokens mean nothing."""
        place, length = torch.arange(mask.shape[1], device=mask.device), mask.sum(1, keepdim=True)
        return (place >= len(self._frame.before)) & (place < length - len(self._frame.after))


def _refuse_other_outputs(name: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise UserError for a teacher whose embeddings or labels are others; both are configurations."""
    for keys, what in ((("hidden_size", "dim"), "embeddings of {} numbers"), (("id2label",), "labels {}")):
        of_both = [next((config[key] for key in keys if key in config), None) for config in (theirs, ours)]
        if None not in of_both and of_both[0] != of_both[1]:
            said = [what.format(", ".join(map(str, one.values())) if isinstance(one, dict) else one) for one in of_both]
            raise UserError(
                f"--recipe: teacher {name}: gives {said[0]}, the model {said[1]}; name one that gives these"
            )


def filled_up(texts: Sequence[Tensor], pad: int) -> dict[str, Tensor]:
    """Texts of unlike lengths, (tokens,) each, as what an encoder is called with."""
    masks = [torch.ones_like(one) for one in texts]
    return {
        "input_ids": pad_sequence(list(texts), batch_first=True, padding_value=pad),
        "attention_mask": pad_sequence(masks, batch_first=True),
    }


def pooled(states: Tensor, mask: Tensor, pooling: Pooling | None) -> Tensor:
    """Embeddings, (texts, width), of the last hidden states of texts, (texts, tokens, width); mask: 1 for its tokens.

    See `Pooling`. Where that is None, the mean is taken, as for verifying.
    """
    if pooling is not None and pooling.mode == "cls":
        found = states[:, 0]
    else:
        weights = mask.to(states.dtype)[..., None]
        found = (states * weights).sum(1) / weights.sum(1)
    return functional.normalize(found, dim=-1) if pooling is not None and pooling.normalize else found
