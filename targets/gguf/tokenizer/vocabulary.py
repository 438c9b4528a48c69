"""Tokens by id with llama.cpp's types, checked for holes and doubles, fitted to the rows of the embedding."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from runtime.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from targets.gguf.tokenizer.files import TokenizerFiles


class TokenType(IntEnum):
    """Token types; SentencePiece and GGUF number them alike."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, as many as the embedding has rows.

    texts: as the GGUF file has them; types: TokenType of each; ids: the reverse of texts
    where: the file that they came from, for errors
    """

    texts: list[str]
    types: list[int]
    ids: dict[str, int]
    where: Path


# Added tokens that some publishers forgot to flag as special. A control token is not shown when text is generated, and
# a user's text cannot produce it unless the caller asks for it.
_LOOKS_CONTROL = re.compile(
    r"<\|[^<>|]+\|>|<\uff5c[^<>\uff5c]+\uff5c>|<(?:pad|mask|bos|eos|start_of_turn|end_of_turn)>"
)


def base_tokens(files: TokenizerFiles) -> dict[str, int]:
    """`model.vocab` of tokenizer.json, token text to id. Raises ModelError for anything but integer ids."""
    vocab = files.model.get("vocab")
    if not isinstance(vocab, dict) or not vocab:
        raise ModelError(f"{files.where}: model.vocab is not an object of tokens; save the tokenizer again")
    if set(map(type, vocab.values())) != {int}:
        raise ModelError(f"{files.where}: model.vocab has an id that is not an integer; save the tokenizer again")
    return vocab


def added_tokens(files: TokenizerFiles) -> dict[int, dict[str, Any]]:
    """Added tokens by id: of tokenizer.json, then what only tokenizer_config.json or added_tokens.json has.

    Raises ModelError where the two disagree on what an id is.
    """
    found: dict[int, dict[str, Any]] = {}
    try:
        for token in (files.tokenizer or {}).get("added_tokens") or []:
            if token["id"] in found and found[token["id"]]["content"] != token["content"]:
                raise ModelError(f"{files.where}: two added tokens have the id {token['id']}; save the tokenizer again")
            found[token["id"]] = token
        for key, token in (files.config.get("added_tokens_decoder") or {}).items():
            known = found.setdefault(int(key), token)
            if known["content"] != token["content"]:
                raise ModelError(
                    f"{files.directory / 'tokenizer_config.json'}: token {key} is '{token['content']}', in "
                    f"tokenizer.json it is '{known['content']}'; save the tokenizer again"
                )
        for text, token_id in files.added.items():
            # older checkpoints name their added tokens here only
            found.setdefault(int(token_id), {"content": text, "special": False})
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{files.where}: an added token is damaged ({error!r}); save the tokenizer again") from error
    return found


def control_or_user(token: dict[str, Any]) -> TokenType:
    """The type of an added token."""
    control = token.get("special") or _LOOKS_CONTROL.fullmatch(token["content"])
    return TokenType.CONTROL if control else TokenType.USER_DEFINED


def build_vocabulary(
    where: Path, base: dict[str, int], added: dict[int, dict[str, Any]], vocab_rows: int, notes: list[str]
) -> Vocabulary:
    """Put base and added tokens in the order of their ids, fitted to the rows of the embedding.

    base tokens are NORMAL. Rows without a token become `[PAD<id>]`, UNUSED. Added tokens beyond the last row are
    left out (Gemma 3's text models lack the row of their image token). Raises ModelError for holes and doubles.
    """
    texts = {token_id: text for text, token_id in base.items()}
    if len(texts) != len(base):
        first = next(text for text, token_id in base.items() if texts[token_id] != text)
        raise ModelError(
            f"{where}: tokens '{first}' and '{texts[base[first]]}' have the same id {base[first]}; save it again"
        )
    _add(where, texts, base, added)
    beyond = [token_id for token_id in texts if token_id >= vocab_rows]
    for token_id in beyond:
        if token_id not in added or texts[token_id] in base:
            raise ModelError(
                f"{where}: token {token_id} ('{texts[token_id]}') has no row in the embedding of {vocab_rows} rows; "
                "is this the model's own tokenizer?"
            )
        notes.append(f"token {token_id} ('{texts.pop(token_id)}') has no row in the embedding and is left out")
    last = max(texts, default=-1)
    if len(texts) != last + 1 or min(texts) < 0:
        hole = next((i for i in range(last + 1) if i not in texts), min(texts))
        raise ModelError(f"{where}: no token has the id {hole}, the highest is {last}; save the tokenizer again")
    types = [int(TokenType.NORMAL)] * len(texts)
    for token_id, token in added.items():
        if token_id < len(types):
            types[token_id] = control_or_user(token)
    n_padding = vocab_rows - len(texts)
    ordered = [texts[i] for i in range(len(texts))] + [f"[PAD{i}]" for i in range(len(texts), vocab_rows)]
    ids = {text: token_id for token_id, text in enumerate(ordered)}
    if len(ids) != len(ordered):
        text = next(text for token_id, text in enumerate(ordered) if ids[text] != token_id)
        raise ModelError(f"{where}: two ids have the token '{text}'; save the tokenizer again")
    return Vocabulary(ordered, types + [int(TokenType.UNUSED)] * n_padding, ids, where)


def _add(where: Path, texts: dict[int, str], base: dict[str, int], added: dict[int, dict[str, Any]]) -> None:
    """Put the added tokens into `texts`. Raises ModelError where one contradicts the base vocabulary."""
    for token_id, token in added.items():
        text = token["content"]
        if texts.get(token_id, text) != text:
            raise ModelError(
                f"{where}: tokens '{texts[token_id]}' and '{text}' have the one id {token_id}; save it again"
            )
        if base.get(text, token_id) != token_id:
            raise ModelError(f"{where}: the token '{text}' has the ids {base[text]} and {token_id}; save it again")
        texts[token_id] = text
