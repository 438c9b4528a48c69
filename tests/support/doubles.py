"""A session and a reference without an engine: a bigram model over bytes, so that verify runs in milliseconds."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from exporter.verify.chat import render

if TYPE_CHECKING:
    from collections.abc import Sequence

BOS, EOS = 256, 257
SPECIAL = {"<s>": BOS, "</s>": EOS}
N_VOCAB = 258
TEMPLATE = "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}" \
           "{% if add_generation_prompt %}assistant:{% endif %}"  # fmt: skip


def bigrams(seed: int = 0, noise: float = 0.0, n_vocab: int = N_VOCAB) -> np.ndarray:
    """Logits of the next token after each token, shape (N_VOCAB, n_vocab); noise: standard deviation added to them."""
    table = np.random.default_rng(seed).normal(size=(N_VOCAB, n_vocab))
    return (table + noise * np.random.default_rng(seed + 1).normal(size=table.shape)).astype(np.float32)


class _ByteModel:
    def __init__(
        self, table: np.ndarray | None = None, *, add_bos: bool = False, template: str | None = TEMPLATE
    ) -> None:
        self.table = bigrams() if table is None else table
        self.n_vocab = self.table.shape[1]
        self.add_bos = add_bos
        self.template = template
        self.closed = False
        self.asked: list[list[int]] = []

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        ids = [BOS] if add_special and self.add_bos else []
        for piece in re.split("(<s>|</s>)", text):
            ids += [SPECIAL[piece]] if piece in SPECIAL else list(piece.encode())
        return ids

    def close(self) -> None:
        self.closed = True

    def _logits(self, ids: Sequence[int]) -> np.ndarray:
        self.asked.append(list(ids))
        return self.table[list(ids)]


class FakeSession(_ByteModel):
    """Stands for an artifact in its engine."""

    engine = "fake engine 1"

    def chat_template(self) -> str | None:
        return self.template

    def special_text(self, which: str) -> str | None:
        return {"bos": "<s>", "eos": "</s>"}[which]

    def all_logits(self, ids: Sequence[int]) -> np.ndarray:
        return self._logits(ids)


class FakeReference(_ByteModel):
    """Stands for a source model."""

    description = "fake source"
    special_tokens = added_tokens = ("<s>", "</s>")

    @property
    def bos_id(self) -> int | None:
        return BOS if self.add_bos else None

    @property
    def has_chat_template(self) -> bool:
        return self.template is not None

    def logits(self, ids: Sequence[int], first: int = 0) -> np.ndarray:
        return self._logits(ids)[first:]

    def render(self, conversation: Sequence[dict[str, str]], *, prompt: bool) -> str:
        assert self.template is not None
        return render(self.template, conversation, {"bos_token": "<s>", "eos_token": "</s>"}, prompt=prompt)


CLS, SEP = 256, 257


def word_vectors(hidden: int = 6, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """A vector for each token, shape (N_VOCAB, hidden); noise: standard deviation of what is added."""
    table = np.random.default_rng(seed).normal(size=(N_VOCAB, hidden))
    return (table + noise * np.random.default_rng(seed + 1).normal(size=table.shape)).astype(np.float32)


class _ByteEncoder:
    """Every state is its token's vector; a sentence is their mean at length 1; labels are the first numbers."""

    def __init__(self, table: np.ndarray | None = None, *, task: str = "feature-extraction", labels: int = 3) -> None:
        self.table = word_vectors() if table is None else table
        self.task, self.labels = task, labels
        self.n_vocab, self.max_tokens = len(self.table), 40
        self.frame = ([CLS], [SEP])
        self.pooled = True
        self.closed = False
        self.asked: list[list[int]] = []

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        ids = list(text.encode("utf-8", "replace"))
        return [*self.frame[0], *ids, *self.frame[1]] if add_special else ids

    def encode(self, ids: Sequence[int]) -> dict[str, np.ndarray]:
        self.asked.append(list(ids))
        states = self.table[list(ids)]
        mean = states.mean(axis=0)
        if self.task == "text-classification":
            return {"logits": mean[: self.labels]}
        if self.task == "token-classification":
            return {"logits": states[:, : self.labels]}
        with np.errstate(invalid="ignore"):
            pooled = {"sentence_embedding": mean / np.linalg.norm(mean)} if self.pooled else {}
        return {"last_hidden_state": states, **pooled}

    def close(self) -> None:
        self.closed = True


class FakeEncoderSession(_ByteEncoder):
    """Stands for an encoder's artifact in its engine. timed: the lengths of the texts that `run` was given."""

    engine = "fake engine 1"
    outputs = ("last_hidden_state", "sentence_embedding")

    @property
    def timed(self) -> list[int]:
        return [len(ids) for ids in self.asked]

    def run(self, ids: Sequence[int]) -> None:
        self.encode(ids)

    def memory_bytes(self) -> dict[str, int]:
        return {"weights": 10, "kv_cache": 0, "compute": 5}


class FakeEncoderReference(_ByteEncoder):
    """Stands for an encoder's source."""

    description = "fake source"
    special_tokens = added_tokens = ()


class FakeDecoder:
    """Counts tokens instead of evaluating them. done: what was asked, "reset", "prefill N" or "decode", in order

    n_past: tokens in the context; longest: the most there ever were. More than `context` of them is an error.
    """

    engine = "fake engine 1"
    n_vocab = N_VOCAB

    def __init__(self, context: int = 64) -> None:
        self.n_context, self.n_past, self.longest = context, 0, 0
        self.done: list[str] = []

    def reset(self) -> None:
        self.n_past = 0
        self.done.append("reset")

    def prefill(self, ids: Sequence[int]) -> None:
        self._add(len(ids))
        self.done.append(f"prefill {len(ids)}")

    def decode(self, _token: int) -> None:
        self._add(1)
        self.done.append("decode")

    def greedy(self) -> int:
        return 1

    def memory_bytes(self) -> dict[str, int]:
        return {"weights": 10, "kv_cache": 6400, "compute": 5}

    def _add(self, count: int) -> None:
        self.n_past += count
        self.longest = max(self.longest, self.n_past)
        assert self.n_past <= self.n_context, f"{self.n_past} tokens in a context of {self.n_context}"
