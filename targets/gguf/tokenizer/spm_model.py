"""Reads tokenizer.model, SentencePiece's protobuf, by its wire format: pieces and the few options that matter.

Format: https://protobuf.dev/programming-guides/encoding/ and SentencePiece's src/sentencepiece_model.proto:
ModelProto {1: pieces {1: text, 2: score, 3: type}, 2: trainer {3: model type}, 3: normalizer {2: charsmap,
3: add_dummy_prefix, 4: remove_extra_whitespaces}}. The sentencepiece package does not tell the normalizer's options.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FLOAT = struct.Struct("<f")

BPE = 2
"""SentencePiece's model type of BPE; 1 is unigram, the default."""


@dataclass(frozen=True)
class SpmModel:
    """A SentencePiece model.

    texts, scores, types: of each piece, by id; types are numbered as in TokenType
    model_type: 1 unigram, 2 BPE, 3 word, 4 char
    add_dummy_prefix: a space is put before the text; remove_extra_whitespaces: runs of spaces become one
    normalizes: it maps characters (NFKC and the like) before it looks for pieces
    """

    texts: list[str]
    scores: list[float]
    types: list[int]
    model_type: int
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    normalizes: bool


def read_spm(path: Path) -> SpmModel:
    """Read a tokenizer.model. Raises ModelError where it is not one."""
    try:
        model = _parse(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, IndexError, struct.error) as error:
        raise ModelError(f"{path}: is not a SentencePiece model ({error}); download it again") from error
    if not model.texts:
        raise ModelError(f"{path}: is not a SentencePiece model (it has no pieces); download it again")
    return model


def _parse(data: bytes) -> SpmModel:
    texts, scores, types = [], [], []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1:
            text, score, kind = _piece(_message(value))
            texts.append(text)
            scores.append(score)
            types.append(kind)
        elif number == 2:
            trainer |= dict(_fields(_message(value)))
        elif number == 3:
            normalizer |= dict(_fields(_message(value)))
    return SpmModel(
        texts=texts,
        scores=scores,
        types=types,
        model_type=_number(trainer.get(3, 1)),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        normalizes=bool(normalizer.get(2, b"")),
    )


def _piece(data: bytes) -> tuple[str, float, int]:
    """Text, score and type of a piece."""
    # Nearly every piece is written in this order, with a text below 128 bytes; a vocabulary has up to 262,144 of them.
    if data[0] == 0x0A and data[1] < 0x80:
        end = data[1] + 2
        rest = len(data) - end
        if rest >= 5 and data[end] == 0x15 and (rest == 5 or (rest == 7 and data[end + 5] == 0x18)):
            kind = data[end + 6] if rest == 7 else 1
            return data[2:end].decode("utf-8"), _FLOAT.unpack_from(data, end + 1)[0], kind
    fields = dict(_fields(data))
    score: float = _FLOAT.unpack(_message(fields.get(2, b"\0\0\0\0")))[0]
    return _message(fields.get(1, b"")).decode("utf-8"), score, _number(fields.get(3, 1))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of one message: an int for a varint, bytes for everything else."""
    position, end = 0, len(data)
    while position < end:
        tag, position = _varint(data, position)
        wire = tag & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield tag >> 3, value
            continue
        if wire == 2:
            size, position = _varint(data, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if position + size > end:
            raise ValueError("it ends too early")
        yield tag >> 3, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    byte = data[position]
    position += 1
    if byte < 0x80:
        return byte, position
    value, shift = byte & 0x7F, 7
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("a message where a number should be")
    return value
