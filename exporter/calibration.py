"""What statistics are gathered on: pieces of a text, or what the model itself writes.

Text that a model samples is what it knows best, and needs no data (LLM-QAT, https://arxiv.org/abs/2305.17888, section
2.1): a first token by chance, the others one by one by the model's own distribution. It is kept on disk under the
hash of all that it depends on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.atomic import write_json
from runtime.errors import ModelError, UserError, in_one_line
from runtime.home import home
from runtime.tokenizer_file import load_tokenizer
from targets.base import Calibration
from targets.onnx.calibration import CHARACTERS_PER_TOKEN, token_chunks
from targets.text import default_text, load_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from exporter.steps import Text
    from exporter.verify.encoder_reference import TransformersEncoder
    from exporter.verify.reference import TransformersReference
    from targets.base import Progress
    from targets.facts import ModelFacts

BATCH = 32
"""Texts that the model writes at a time: one pass over the weights serves them all."""
VERSION = 1
"""Of what is kept on disk."""


def calibration_chunks(
    source: TransformersReference, facts: ModelFacts, wanted: Text, seed: int, progress: Progress
) -> list[list[int]]:
    """Token ids in pieces, as the recipe wants them. Raises UserError for a text that cannot be had."""
    if wanted.kind == "model":
        return _kept(source, facts, wanted, seed, progress)
    tokenizer = source.path / "tokenizer.json"
    if wanted.kind == "dataset":
        return _of_dataset(tokenizer, wanted)
    if wanted.kind == "jsonl":
        return _of_jsonl(source, wanted)
    text = wanted.text if wanted.kind == "text" else None
    chunks, _ = token_chunks(tokenizer, Calibration(text=text, chunks=wanted.chunks, tokens=wanted.tokens))
    return chunks


def encoder_texts(source: TransformersEncoder, wanted: Text, seed: int) -> list[list[int]]:
    """Token ids of whole texts, special tokens included, none longer than the encoder takes: what it learns from.

    Of a JSONL file or a data set each text is one, in its order; any other text is cut behind sentences, into short and
    long ones, in an order by chance: any of them are of all lengths. Raises UserError for a text that cannot be had.
    """
    from exporter.verify.encoder import TEXT_TOKENS, cut_texts, find_frame

    longest = min(wanted.tokens, source.max_tokens)
    if wanted.kind in ("text", "help"):
        text = default_text("calibration") if wanted.text is None else load_text(wanted.text)
        cut = cut_texts(source, text, -(-wanted.chunks // len(TEXT_TOKENS)), longest, spread=True)[: wanted.chunks]
        return [cut[number] for number in np.random.default_rng(seed).permutation(len(cut))]
    frame, found = find_frame(source), []
    for one in _whole_texts(wanted):
        ids = source.tokenize(one, add_special=False)[: longest - frame.size]
        if ids:
            found.append([*frame.before, *ids, *frame.after])
        if len(found) == wanted.chunks:
            break
    if not found:
        raise UserError(f"--recipe: {wanted.jsonl or wanted.dataset}: has no text; name another")
    return found


def _whole_texts(wanted: Text) -> Iterator[str]:
    """The texts of a JSONL file or a data set. Raises UserError for what is none."""
    rows = _rows_of_dataset(wanted) if wanted.kind == "dataset" else _objects(wanted)
    for where, value in rows:
        if not isinstance(value, str):
            raise UserError(
                f"{where}: {wanted.field} is no text, as an encoder reads it; name another field, or mend it"
            )
        yield value


def _kept(
    source: TransformersReference, facts: ModelFacts, wanted: Text, seed: int, progress: Progress
) -> list[list[int]]:
    """What the model has written before, or writes now. A damaged file is written anew."""
    path = home() / "calibration" / f"{_key(facts, wanted, seed)}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        found = json.loads(path.read_text(encoding="utf-8"))["chunks"]
        if [len(ids) for ids in found] == [wanted.tokens] * wanted.chunks and all(
            0 <= token < source.n_vocab for ids in found for token in ids
        ):
            return [[int(token) for token in ids] for ids in found]
    chunks = sampled(source, wanted.chunks, wanted.tokens, seed, progress)
    # A disk that is full or not ours costs the time to sample again, nothing else.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"chunks": chunks})
    return chunks


def _key(facts: ModelFacts, wanted: Text, seed: int) -> str:
    """The hash of the weights, the configuration, the tokenizer, and what was asked for."""
    import torch
    import transformers

    how = [VERSION, wanted.chunks, wanted.tokens, seed, torch.__version__, transformers.__version__]
    digest = hashlib.sha256(json.dumps(how).encode())
    for content in file_digests(facts):
        digest.update(content)
    return digest.hexdigest()


def file_digests(facts: ModelFacts) -> Iterator[bytes]:
    """SHA-256 of the files that make a model what it is: configuration, tokenizer, weights."""
    files = sorted({fact.file for fact in facts.tensors.values()})
    for path in (facts.path / "config.json", facts.path / "tokenizer.json", *files):
        if path.is_file():
            with path.open("rb") as file:
                yield hashlib.file_digest(file, "sha256").digest()


def sampled(source: TransformersReference, chunks: int, tokens: int, seed: int, progress: Progress) -> list[list[int]]:
    """Texts of `tokens` tokens that the model writes, the same for the same seed."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    plain = torch.tensor(_plain_tokens(source))
    first = plain[torch.randint(len(plain), (chunks, 1), generator=generator)]
    model, found = source.model, []
    if source.bos_id is not None:
        first = torch.cat((torch.full_like(first, source.bos_id), first), 1)
    for start in range(0, chunks, BATCH):
        rows, cache = [first[start : start + BATCH]], None
        for number in range(first.shape[1], tokens):
            progress("calibration", start * tokens + number * len(rows[0]), chunks * tokens)
            with torch.no_grad():
                output = model(input_ids=rows[-1], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            # Only plain tokens: an end would be followed by nothing that the model knows.
            logits = output.logits[:, -1].float()[:, plain]
            drawn = torch.multinomial(torch.softmax(logits, -1), 1, generator=generator)
            rows.append(plain[drawn])
        found += torch.cat(rows, 1).tolist()
    progress("calibration", chunks * tokens, chunks * tokens)
    return [[int(token) for token in ids] for ids in found]


def _plain_tokens(source: TransformersReference) -> list[int]:
    """Tokens of the vocabulary that are pieces of text."""
    path = source.path / "tokenizer.json"
    tokenizer = load_tokenizer(path, ModelError, "calibration needs it: save the tokenizer there")
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    n = min(tokenizer.get_vocab_size(with_added_tokens=False), source.n_vocab)
    return [token for token in range(n) if token not in special]


def _of_jsonl(source: TransformersReference, wanted: Text) -> list[list[int]]:
    """Pieces of the texts of a JSONL file one after the other, an end token behind each, from the first on."""
    ids: list[int] = []
    end = [source.eos_id] if source.eos_id is not None else []
    for where, value in _objects(wanted):
        ids += source.tokenize(_said(source, where, value, wanted.field), add_special=isinstance(value, str)) + end
        if len(ids) >= wanted.chunks * wanted.tokens:
            break
    n = min(wanted.chunks, len(ids) // wanted.tokens)
    if not n:
        what = f"has {len(ids)} tokens, a piece is {wanted.tokens}"
        raise UserError(f"{wanted.jsonl}: {what}; name a longer file, or ask for fewer tokens")
    return [ids[number * wanted.tokens : (number + 1) * wanted.tokens] for number in range(n)]


def _objects(wanted: Text) -> Iterator[tuple[str, Any]]:
    """The wanted field of every line, and where it stands. Raises UserError for a line that is not as it has to be."""
    assert wanted.jsonl is not None, "its own validator has seen to that"
    try:
        with wanted.jsonl.open("rb") as file:
            for number, line in enumerate(file, 1):
                where = f"{wanted.jsonl}:{number}"
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except ValueError as error:
                    raise UserError(f"{where}: is not JSON in UTF-8 ({error}); mend that line") from error
                if not isinstance(value, dict) or wanted.field not in value:
                    raise UserError(f"{where}: is no object with {wanted.field}; name another field, or mend that line")
                yield where, value[wanted.field]
    except OSError as error:
        raise UserError(f"{wanted.jsonl}: cannot be read ({error.strerror}); name a file of JSON lines") from error


def _said(source: TransformersReference, where: str, value: Any, key: str) -> str:  # noqa: ANN401
    """A text, or a conversation as the model's chat template renders it. Raises UserError for neither."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise UserError(f"{where}: {key} is neither a text nor a list of messages; mend that line")
    if not source.has_chat_template:
        raise UserError(f"{where}: {key} is a conversation, and the model has no chat template; give it texts")
    try:
        return source.render(value, prompt=False)
    except Exception as error:  # whatever the template raises
        reason = in_one_line(error)
        raise UserError(f"{where}: the model's chat template refuses it ({reason}); mend that line") from error


def _of_dataset(tokenizer: Path, wanted: Text) -> list[list[int]]:
    """The first texts of a data set of the hub that fill the pieces, one piece of each long enough."""
    encoder = load_tokenizer(tokenizer, ModelError, "calibration needs it: save the tokenizer there")
    found = []
    for _, value in _rows_of_dataset(wanted):
        text = str(value)
        ids = encoder.encode(text[: wanted.tokens * CHARACTERS_PER_TOKEN]).ids
        if len(ids) >= wanted.tokens:
            found.append(ids[: wanted.tokens])
        if len(found) == wanted.chunks:
            return found
    if found:
        return found
    what = f"has no text of {wanted.tokens} tokens"
    raise UserError(f"--recipe: calibration.dataset: {wanted.dataset} {what}; ask for fewer tokens")


def _rows_of_dataset(wanted: Text) -> Iterator[tuple[str, Any]]:
    """The wanted field of every row, and where it stands. Raises UserError for a data set that cannot be had."""
    try:
        import datasets  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise UserError("--recipe: calibration.dataset needs the library 'datasets'; pip install datasets") from error
    try:
        rows: Any = datasets.load_dataset(wanted.dataset, split=wanted.split, streaming=True)
        for row in rows:
            yield f"--recipe: {wanted.dataset}", row[wanted.field]
    except Exception as error:  # of datasets, of the network, or a KeyError of the field
        reason = in_one_line(error)
        raise UserError(
            f"--recipe: calibration.dataset: {wanted.dataset} cannot be read ({reason}); check id, split and field"
        ) from error
