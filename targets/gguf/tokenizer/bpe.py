"""Byte-level BPE (GPT-2's kind): llama.cpp's tokenizer model "gpt2"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.errors import ModelError, UnsupportedError
from targets.gguf.keyvalue import array, boolean, string
from targets.gguf.tokenizer.pretokenizers import find_pre
from targets.gguf.tokenizer.vocabulary import added_tokens, base_tokens, build_vocabulary

if TYPE_CHECKING:
    from pathlib import Path

    from targets.gguf.keyvalue import KeyValue
    from targets.gguf.tokenizer.files import TokenizerFiles
    from targets.gguf.tokenizer.vocabulary import Vocabulary


def bpe_entries(files: TokenizerFiles, vocab_rows: int, notes: list[str]) -> tuple[Vocabulary, list[KeyValue]]:
    """The vocabulary, and the key/values for its tokens, merges and pre-tokenizer.

    Raises ModelError for damaged files, UnsupportedError for what llama.cpp cannot do.
    """
    tokenizer, where = files.tokenizer, files.where
    if tokenizer is None or files.model.get("type") != "BPE":
        kind = files.model.get("type")
        raise UnsupportedError(f"{where}: a tokenizer of the kind '{kind}'; llama.cpp has BPE, WordPiece and Unigram")
    _check_model(files.model, where)
    _check_normalizer(tokenizer.get("normalizer"), where, notes)
    pre = find_pre(tokenizer, cleans=bool(files.config.get("clean_up_tokenization_spaces")), where=where)
    if pre.inexact:
        notes.append(f"llama.cpp's '{pre.name}' splits {pre.inexact} in a way of its own: some words get other tokens")
    base = base_tokens(files)
    added = added_tokens(files)
    stripping = [token["content"] for token in added.values() if token.get("lstrip") or token.get("rstrip")]
    if stripping:
        notes.append(f"llama.cpp keeps the spaces beside {', '.join(stripping)}; the model's tokenizer takes them away")
    vocabulary = build_vocabulary(where, base, added, vocab_rows, notes)
    return vocabulary, [
        string("tokenizer.ggml.model", "gpt2"),
        string("tokenizer.ggml.pre", pre.name),
        array("tokenizer.ggml.tokens", vocabulary.texts, "STRING"),
        array("tokenizer.ggml.token_type", vocabulary.types, "INT32"),
        array("tokenizer.ggml.merges", [f"{a} {b}" for a, b in merge_pairs(files.model, base, where)], "STRING"),
        boolean("tokenizer.ggml.add_space_prefix", False),
    ]


def merge_pairs(model: dict[str, Any], base: dict[str, int], where: Path) -> list[tuple[str, str]]:
    """The merges of tokenizer.json as pairs, best first; it may write them as "a b" or as ["a", "b"].

    Raises ModelError for a merge that is there twice, is not a pair, or makes or takes what is not a token.
    """
    written = model.get("merges")
    if not isinstance(written, list):
        raise ModelError(f"{where}: model.merges is not a list; save the tokenizer again")
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in written]
    odd = next((rank for rank, pair in enumerate(pairs) if len(pair) != 2), None)
    if odd is not None:
        raise ModelError(f"{where}: merge {odd} ({written[odd]!r}) is not a pair; save the tokenizer again")
    checked: list[tuple[str, str]] = pairs  # type: ignore[assignment]  # every one has two parts, as checked
    unknown = (rank for rank, (a, b) in enumerate(checked) if a not in base or b not in base or a + b not in base)
    if (rank := next(unknown, None)) is not None:
        raise ModelError(f"{where}: merge {rank} ({written[rank]!r}) uses a token that is not in the vocabulary")
    if len(set(checked)) != len(checked):
        seen: set[tuple[str, str]] = set()
        twice = next(pair for pair in checked if pair in seen or seen.add(pair))  # type: ignore[func-returns-value]  # add returns None
        raise ModelError(f"{where}: the merge '{' '.join(twice)}' is there twice; save the tokenizer again")
    return checked


def _check_model(model: dict[str, Any], where: Path) -> None:
    """Refuse options of BPE that llama.cpp does not have."""
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise UnsupportedError(f"{where}: llama.cpp has no BPE with {option}={model[option]!r}")


def _check_normalizer(normalizer: dict[str, Any] | None, where: Path, notes: list[str]) -> None:
    """llama.cpp never normalizes text for BPE: NFC changes little and gets a note, anything else is refused."""
    if normalizer is None or (normalizer.get("type") == "Sequence" and not normalizer.get("normalizers")):
        return
    parts = normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer]
    other = [str(part.get("type")) for part in parts if part.get("type") != "NFC"]
    if other:
        raise UnsupportedError(f"{where}: llama.cpp does not apply the normalizer {', '.join(other)} before BPE")
    notes.append("llama.cpp does not compose characters (NFC): text with separate combining marks gets other tokens")
