"""SentencePiece Unigram (XLM-RoBERTa, CamemBERT): llama.cpp's tokenizer model "t5".

llama.cpp maps characters by the precompiled map that the tokenizer carries, puts a ▁ before each word and takes the
split with the best sum of scores (src/llama-vocab.cpp, llm_tokenizer_ugm). Ids are those of tokenizer.json, which has
its special tokens where the model expects them.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, Any

from runtime.errors import ModelError, UnsupportedError
from targets.gguf.keyvalue import array, boolean, string
from targets.gguf.tokenizer.vocabulary import TokenType, added_tokens, build_vocabulary

if TYPE_CHECKING:
    from pathlib import Path

    from targets.gguf.keyvalue import KeyValue
    from targets.gguf.tokenizer.files import TokenizerFiles
    from targets.gguf.tokenizer.vocabulary import Vocabulary

_SPACE = "▁"
_UNUSED_SCORE = -10_000.0
_RUNS_OF_SPACES = re.compile(r" \{2,\}|\\s\+| \+|\s\{2,\}")


def unigram_entries(files: TokenizerFiles, vocab_rows: int, notes: list[str]) -> tuple[Vocabulary, list[KeyValue]]:
    """The vocabulary, and the key/values for its tokens, scores, types and map of characters.

    Raises ModelError for damaged files, UnsupportedError for what llama.cpp cannot do.
    """
    tokenizer, where = files.tokenizer or {}, files.where
    pieces = _pieces(files)
    if files.model.get("byte_fallback"):
        raise UnsupportedError(f"{where}: llama.cpp has no Unigram with byte_fallback=True")
    charsmap = _charsmap(tokenizer.get("normalizer"), where)
    _check_splitter(tokenizer.get("pre_tokenizer"), tokenizer.get("normalizer"), where)
    base = {text: token_id for token_id, (text, _) in enumerate(pieces)}
    if len(base) != len(pieces):
        raise ModelError(f"{where}: model.vocab has a piece twice; save the tokenizer again")
    across = next((text for text, _ in pieces if _SPACE in text[1:]), None)
    if across is not None:
        raise UnsupportedError(
            f"{where}: the piece '{across}' goes across words, which llama.cpp would split elsewhere"
        )
    notes.append(
        "llama.cpp maps characters as SentencePiece does; the library tokenizers drops combining marks behind some, so "
        "that text which is not composed (NFC) gets other tokens from it"
    )
    vocabulary = build_vocabulary(where, base, added_tokens(files), vocab_rows, notes)
    unknown = files.model.get("unk_id")
    if not isinstance(unknown, int) or not 0 <= unknown < len(pieces):
        raise UnsupportedError(f"{where}: names no unknown token (model.unk_id), which llama.cpp needs")
    vocabulary.types[unknown] = int(TokenType.UNKNOWN)
    scores = [pieces[token_id][1] if token_id < len(pieces) else _UNUSED_SCORE for token_id in range(vocab_rows)]
    return vocabulary, [
        string("tokenizer.ggml.model", "t5"),
        string("tokenizer.ggml.pre", "default"),
        array("tokenizer.ggml.tokens", vocabulary.texts, "STRING"),
        array("tokenizer.ggml.scores", scores, "FLOAT32"),
        array("tokenizer.ggml.token_type", vocabulary.types, "INT32"),
        boolean("tokenizer.ggml.add_space_prefix", True),
        boolean("tokenizer.ggml.remove_extra_whitespaces", True),
        *([array("tokenizer.ggml.precompiled_charsmap", list(charsmap), "UINT8")] if charsmap else []),
    ]


def _pieces(files: TokenizerFiles) -> list[tuple[str, float]]:
    """Texts and scores by id. Raises ModelError for anything else."""
    vocab = files.model.get("vocab")
    if not isinstance(vocab, list) or not vocab:
        raise ModelError(f"{files.where}: model.vocab is not a list of pieces; save the tokenizer again")
    found = []
    for piece in vocab:
        good = isinstance(piece, list) and len(piece) == 2 and isinstance(piece[0], str)
        if not good or not isinstance(piece[1], int | float) or isinstance(piece[1], bool):
            raise ModelError(f"{files.where}: model.vocab has an entry that is no piece with a score; save it again")
        found.append((piece[0], float(piece[1])))
    return found


def _charsmap(normalizer: dict[str, Any] | None, where: Path) -> bytes:
    """SentencePiece's map of characters. Raises UnsupportedError for steps of another kind.

    Runs of spaces are made one by who splits words, whether or not a step does it before.
    """
    parts = _parts(normalizer, "normalizers")
    found = b""
    for part in parts:
        kind = part.get("type")
        pattern = part.get("pattern") or {}
        if kind == "Precompiled":
            found = _decoded(part.get("precompiled_charsmap"), where)
        elif kind == "Replace" and _RUNS_OF_SPACES.fullmatch(str(pattern.get("Regex", pattern.get("String", "")))):
            continue
        elif kind != "Strip":
            raise UnsupportedError(f"{where}: llama.cpp does not apply the normalizer {kind} before Unigram")
    if not found:
        raise UnsupportedError(
            f"{where}: has no precompiled map of characters, without which llama.cpp keeps line ends and tabs in words"
        )
    return found


def _decoded(text: object, where: Path) -> bytes:
    try:
        return base64.b64decode(str(text), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ModelError(f"{where}: precompiled_charsmap is damaged ({error}); save the tokenizer again") from error


def _check_splitter(splitter: dict[str, Any] | None, normalizer: dict[str, Any] | None, where: Path) -> None:
    """Refuse what does not put a ▁ before each word, and one ▁ only."""
    parts = _parts(splitter, "pretokenizers")
    kinds = [part.get("type") for part in parts]
    metaspace = parts[-1] if parts else {}
    scheme = metaspace.get("prepend_scheme", "always" if metaspace.get("add_prefix_space", True) else "never")
    if kinds not in (["WhitespaceSplit", "Metaspace"], ["Metaspace"]) or metaspace.get("replacement") != _SPACE:
        raise UnsupportedError(f"{where}: llama.cpp cannot split words for Unigram by {', '.join(map(str, kinds))}")
    if scheme != "always":
        raise UnsupportedError(f"{where}: llama.cpp puts a space before every text for Unigram, not '{scheme}'")
    cleaned = {part.get("type") for part in _parts(normalizer, "normalizers")}
    if kinds == ["Metaspace"] and not {"Strip", "Replace"} <= cleaned:
        raise UnsupportedError(f"{where}: keeps spaces at the ends of a text and runs of them; llama.cpp does not")


def _parts(node: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if node is None:
        return []
    return list(node.get(key, [])) if node.get("type") == "Sequence" else [node]
