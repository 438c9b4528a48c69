"""The tokenizer of a Hugging Face directory as GGUF key/values, read from its files alone: no transformers, no torch.

`tokenizer_metadata` decides between the kinds that llama.cpp calls "gpt2" (byte-level BPE, `bpe`), "llama"
(SentencePiece BPE, `sentencepiece`), "bert" (`wordpiece`) and "t5" (SentencePiece Unigram, `unigram`), and adds the
special tokens (`special`) and the chat templates (`chat`).
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from targets.gguf.tokenizer.bpe import bpe_entries
from targets.gguf.tokenizer.chat import chat_entries
from targets.gguf.tokenizer.files import read_files
from targets.gguf.tokenizer.sentencepiece import is_sentencepiece, spm_entries
from targets.gguf.tokenizer.special import special_entries
from targets.gguf.tokenizer.unigram import unigram_entries
from targets.gguf.tokenizer.wordpiece import wordpiece_entries

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from targets.gguf.keyvalue import KeyValue

__all__ = ["TokenizerMetadata", "tokenizer_metadata"]


_KINDS = {"WordPiece": wordpiece_entries, "Unigram": unigram_entries}


@dataclass(frozen=True)
class TokenizerMetadata:
    """What a GGUF file says of its tokenizer.

    entries: the key/values `tokenizer.ggml.*` and `tokenizer.chat_template*`, in the order to write them
    notes: what llama.cpp cannot do as the model's tokenizer does, and what was left out; a line each, for people
    """

    entries: list[KeyValue] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def tokenizer_metadata(directory: Path, config: dict[str, Any], vocab_rows: int) -> TokenizerMetadata:
    """Read the tokenizer in `directory`.

    config: config.json as parsed (the text model's part)
    vocab_rows: rows of the embedding; the vocabulary is padded to it with unused tokens
    Raises ModelError where the files are missing or damaged, UnsupportedError where llama.cpp has no such tokenizer.
    """
    notes: list[str] = []
    with _without_collector():
        files = read_files(directory)
        kind = _KINDS.get(str(files.model.get("type"))) or (spm_entries if is_sentencepiece(files) else bpe_entries)
        vocabulary, entries = kind(files, vocab_rows, notes)
        entries = [*entries, *special_entries(files, config, vocabulary, notes), *chat_entries(files)]
    return TokenizerMetadata(entries, notes)


@contextmanager
def _without_collector() -> Iterator[None]:
    """A large vocabulary is half a million tuples, none in a cycle, that the collector would walk again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
