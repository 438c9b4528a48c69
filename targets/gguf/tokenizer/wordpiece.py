"""WordPiece (BERT's tokenizer): llama.cpp's tokenizer model "bert".

llama.cpp splits words as BERT does (src/llama-vocab.cpp, llm_tokenizer_wpm) and looks each up with a ▁ before it, and
its continuations as they are. So the vocabulary has a ▁ where a word begins and no ## where it goes on.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from runtime.errors import UnsupportedError
from targets.gguf.keyvalue import array, boolean, string
from targets.gguf.tokenizer.vocabulary import TokenType, added_tokens, base_tokens, build_vocabulary

if TYPE_CHECKING:
    from pathlib import Path

    from targets.gguf.keyvalue import KeyValue
    from targets.gguf.tokenizer.files import TokenizerFiles
    from targets.gguf.tokenizer.vocabulary import Vocabulary

_WORD, _MORE = "▁", "##"
_LONGEST_WORD = 100
"""Characters of a word, beyond which BERT takes it for unknown."""


def wordpiece_entries(files: TokenizerFiles, vocab_rows: int, notes: list[str]) -> tuple[Vocabulary, list[KeyValue]]:
    """The vocabulary, and the key/values for its tokens and for what is done to a text before.

    Raises ModelError for damaged files, UnsupportedError for what llama.cpp cannot do.
    """
    tokenizer, where = files.tokenizer or {}, files.where
    _check(files.model, tokenizer, where)
    lowercase, strips = _normalizer(tokenizer.get("normalizer"), where)
    if not lowercase or not strips:
        notes.append(
            "llama.cpp before 2026 makes all text of such a tokenizer lower case without accents: it does not read "
            "tokenizer.ggml.normalizer"
        )
    notes.append(
        f"llama.cpp splits words of more than {_LONGEST_WORD} characters, which the model's tokenizer takes for unknown"
    )
    if strips:
        notes.append(
            "llama.cpp takes vowel signs of Indic scripts away with the accents, and all but the first letter of a "
            "Korean syllable: text in those scripts gets other tokens"
        )
    vocabulary = build_vocabulary(where, base_tokens(files), added_tokens(files), vocab_rows, notes)
    texts = [_written(text, kind) for text, kind in zip(vocabulary.texts, vocabulary.types, strict=True)]
    ids = {text: token_id for token_id, text in enumerate(texts)}
    if len(ids) != len(texts):
        token_id = next(token_id for token_id, text in enumerate(texts) if ids[text] != token_id)
        both = f"'{vocabulary.texts[token_id]}' and '{vocabulary.texts[ids[texts[token_id]]]}'"
        raise UnsupportedError(f"{where}: llama.cpp cannot tell the tokens {both} apart; rename one that is not used")
    # What names special tokens calls them as the tokenizer does.
    return dataclasses.replace(vocabulary, texts=texts), [
        string("tokenizer.ggml.model", "bert"),
        string("tokenizer.ggml.pre", "default"),
        array("tokenizer.ggml.tokens", texts, "STRING"),
        array("tokenizer.ggml.token_type", vocabulary.types, "INT32"),
        boolean("tokenizer.ggml.normalizer.lowercase", lowercase),
        boolean("tokenizer.ggml.normalizer.strip_accents", strips),
    ]


def _written(text: str, kind: int) -> str:
    """A token as llama.cpp looks it up: whole where it is found in a text as it is, without splitting words."""
    if kind != TokenType.NORMAL:
        return text
    return text.removeprefix(_MORE) if text.startswith(_MORE) else _WORD + text


def _check(model: dict[str, Any], tokenizer: dict[str, Any], where: Path) -> None:
    """Refuse another splitting of words, other marks of continuations."""
    prefix = model.get("continuing_subword_prefix", _MORE)
    if prefix != _MORE:
        raise UnsupportedError(f"{where}: llama.cpp has no WordPiece with continuing_subword_prefix={prefix!r}")
    splitter = (tokenizer.get("pre_tokenizer") or {}).get("type")
    if splitter != "BertPreTokenizer":
        raise UnsupportedError(f"{where}: llama.cpp splits words for WordPiece as BERT does, not by {splitter}")


def _normalizer(normalizer: dict[str, Any] | None, where: Path) -> tuple[bool, bool]:
    """Whether text is made lower case, and whether accents are taken away. Raises UnsupportedError for all else."""
    kind = (normalizer or {}).get("type")
    if normalizer is None or kind != "BertNormalizer":
        raise UnsupportedError(f"{where}: llama.cpp prepares text for WordPiece by BertNormalizer, not by {kind}")
    for option in ("clean_text", "handle_chinese_chars"):
        if not normalizer.get(option, True):
            raise UnsupportedError(f"{where}: llama.cpp has no BertNormalizer with {option}=False")
    lowercase = bool(normalizer.get("lowercase", True))
    strips = normalizer.get("strip_accents")
    return lowercase, lowercase if strips is None else bool(strips)
