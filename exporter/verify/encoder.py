"""Verify an encoder: run artifact and source on the same texts and compare embeddings, ranking and labels.

The texts are cut from the evaluation text at sentence ends, from a few tokens to the longest that both sides take,
and reach both as the source's token ids, so that a wrong tokenizer and wrong weights are told apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from exporter.verify.parity import check_token_parity
from runtime.errors import CheckFailed, ModelError, UserError
from targets.encoder_drift import EncoderDrift, EncoderDriftAccumulator

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from exporter.verify.encoder_reference import EncoderReference
    from runtime.sessions.base import EncoderSession
    from targets.text import EvalText

    Floats = npt.NDArray[np.float32]
    Outputs = dict[str, Floats]
    Progress = Callable[[str, int, int], None]

TEXT_TOKENS = (8, 16, 24, 32, 64, 128, 256, 512)
"""Tokens of a round of texts, special ones counted: titles, sentences, paragraphs, pages; longer ones are cut."""

MIN_TEXTS = 4
"""Fewer have too few pairs to rank."""

_SENTENCE_END = re.compile(r"(?<=[.!?。!?])\s+|\n+")


@dataclass(frozen=True)
class Frame:
    """The special tokens that the source's tokenizer puts around a text, such as [CLS] and [SEP]."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many they are."""
        return len(self.before) + len(self.after)


def compare_encoders(
    session: EncoderSession, reference: EncoderReference, text: EvalText, rounds: int, progress: Progress, *, task: str
) -> EncoderDrift:
    """The EncoderDrift between an open artifact and an open source, on at most `rounds` rounds of texts.

    Raises CheckFailed for an artifact that gives no numbers or other shapes, UserError for a text that is too short.
    """
    longest = min(session.max_tokens, reference.max_tokens)
    frame = find_frame(reference)
    texts = cut_texts(reference, text, rounds, longest)
    highest = max(max(ids) for ids in texts)
    if highest >= session.n_vocab:
        raise CheckFailed(
            f"the source's token {highest} has no row in the artifact's vocabulary of {session.n_vocab}:"
            " it is cut short; export the model again"
        )
    progress("comparing tokenizers", 0, 1)
    parity, notes = check_token_parity(reference, session)
    progress("comparing tokenizers", 1, 1)
    accumulator = EncoderDriftAccumulator()
    for index, ids in enumerate(texts):
        progress("comparing outputs", index, len(texts))
        source, artifact = reference.encode(ids), session.encode(ids)
        _check_outputs(source, artifact, f"text {index + 1} of {len(texts)} of {text.name} ({len(ids)} tokens)")
        add_outputs(accumulator, source, artifact, frame)
        accumulator.count(len(ids))
        if index == 0:
            notes += _pooling_notes(source, artifact)
    progress("comparing outputs", len(texts), len(texts))
    return EncoderDrift(
        **vars(accumulator.statistics()), task=task, max_tokens=max(map(len, texts)), text_name=text.name,
        text_sha256=text.sha256, parity=parity, engine=session.engine, reference=reference.description,
        notes=tuple(notes),
    )  # fmt: skip


def cut_texts(
    reference: EncoderReference, text: EvalText, rounds: int, longest: int, *, spread: bool = False
) -> list[list[int]]:
    """Token ids of texts, special tokens included, none longer than `longest`; whole sentences where they fit.

    spread: rounds begin evenly apart where the text is longer than all of them; else one follows the other
    Raises UserError where the text gives fewer than MIN_TEXTS.
    """
    frame = find_frame(reference)
    if longest <= frame.size:
        raise UserError(f"the model takes {longest} tokens, of which {frame.size} are special: none is left for a text")
    sentences = _Sentences(text.text)
    # The longest texts are filled to the last position: a wrong bound of the artifact shows there and nowhere else.
    full = min(TEXT_TOKENS[-1], longest) - frame.size
    texts = []
    for number in range(rounds * len(TEXT_TOKENS)):
        if spread and number % len(TEXT_TOKENS) == 0:
            sentences.skip_to(number // len(TEXT_TOKENS) * len(text.text) // rounds)
        room = max(1, min(TEXT_TOKENS[number % len(TEXT_TOKENS)], longest) - frame.size)
        ids = _next_text(reference, sentences, room, room if room >= full else room // 2)
        if not ids:
            break
        texts.append([*frame.before, *ids, *frame.after])
    if len(texts) < MIN_TEXTS:
        raise UserError(f"{text.name}: gives {len(texts)} texts, {MIN_TEXTS} are needed; name a longer text")
    return texts


def find_frame(reference: EncoderReference) -> Frame:
    """What the source's tokenizer puts before and after a text. Raises ModelError where it changes the text itself."""
    plain, special = (reference.tokenize("a", add_special=add) for add in (False, True))
    for at in range(len(special) - len(plain) + 1):
        if special[at : at + len(plain)] == plain:
            return Frame(tuple(special[:at]), tuple(special[at + len(plain) :]))
    raise ModelError(f"{reference.description}: its tokenizer gives other tokens where special ones are added")


class _Sentences:
    """The text in order, cut behind sentence ends and line ends, with the white space that stands there."""

    def __init__(self, text: str) -> None:
        self._text, self._ends, self._at = text, _SENTENCE_END.finditer(text), 0

    def __iter__(self) -> _Sentences:
        return self

    def __next__(self) -> str:
        text, start = self._text, self._at
        for end in self._ends:
            if text[start : end.start()].strip():
                self._at = end.end()
                return text[start : end.end()]
        if text[start:].strip():
            self._at = len(text)
            return text[start:]
        raise StopIteration

    def skip_to(self, position: int) -> None:
        """Leave out what begins before that character."""
        while self._at < position and next(self, None) is not None:
            pass


def _next_text(reference: EncoderReference, sentences: _Sentences, room: int, least: int) -> list[int]:
    """Token ids of the sentences that come next, from `least` to `room` of them; fewer or none at the text's end."""
    joined = ""
    ids: list[int] = []
    while len(ids) < max(least, 1):
        sentence = next(sentences, None)
        if sentence is None:
            break
        joined += sentence
        ids = reference.tokenize(joined.rstrip(), add_special=False)
    return ids[:room]


def add_outputs(accumulator: EncoderDriftAccumulator, source: Outputs, artifact: Outputs, frame: Frame) -> None:
    """One text's outputs. Labels of special tokens mean nothing and are left out."""
    if "logits" in source:
        logits, theirs = source["logits"], artifact["logits"]
        if logits.ndim == 2:
            inner = slice(len(frame.before), len(logits) - len(frame.after))
            logits, theirs = logits[inner], theirs[inner]
        accumulator.add_logits(logits, theirs)
        return
    both = "sentence_embedding" in source and "sentence_embedding" in artifact
    accumulator.add_embeddings(*(embedding(side, pooled=both) for side in (source, artifact)))
    if "last_hidden_state" in artifact:
        accumulator.add_states(source["last_hidden_state"], artifact["last_hidden_state"])


def embedding(outputs: Outputs, *, pooled: bool) -> Floats:
    """What a text is judged by: its sentence embedding, or where there is none the mean of its last hidden states.

    pooled: False leaves the sentence embedding out of it
    """
    if pooled and "sentence_embedding" in outputs:
        return outputs["sentence_embedding"]
    found: Floats = outputs["last_hidden_state"].mean(axis=0)
    return found


def _pooling_notes(source: Outputs, artifact: Outputs) -> list[str]:
    """What stands for the embedding where the artifact and its source do not both have one."""
    has = ["sentence_embedding" in side for side in (source, artifact)]
    mean = "the mean of the last hidden states was compared in its place"
    if has == [True, False]:
        return [f"the artifact leaves the sentence embedding to its user; {mean}"]
    if has == [False, True]:
        return [f"how the source pools its sentence embedding is not known here; {mean}"]
    return []


def _check_outputs(source: Outputs, artifact: Outputs, where: str) -> None:
    """Outputs that both have need equal shapes and finite numbers. Raises CheckFailed, for the source ModelError."""
    needed = "logits" if "logits" in source else "last_hidden_state"
    both = [name for name in source if name in artifact]
    if needed not in both and "sentence_embedding" not in both:
        raise CheckFailed(
            f"the artifact gives {', '.join(artifact) or 'nothing'}, not {needed}: it was exported for another task"
        )
    for name in both:
        if source[name].shape != artifact[name].shape:
            raise CheckFailed(
                f"the artifact's {name} has shape {artifact[name].shape} in {where}, the source's {source[name].shape};"
                " export the model again"
            )
        if not np.isfinite(source[name]).all():
            raise ModelError(f"the source's own {name} is not finite in {where}; its weights or its dtype are at fault")
        if not np.isfinite(artifact[name]).all():
            raise CheckFailed(f"the artifact's {name} is not finite in {where}: it is broken; export the model again")
