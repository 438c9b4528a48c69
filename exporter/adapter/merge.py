"""`packlight merge`: an adapter and its base as one directory, written tensor by tensor.

weight + scale * left @ right, computed in float32 and, unless asked otherwise, kept so: rounding the sum to the base's
own type, as peft's merge_and_unload does, loses a part of what was trained.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.adapter.reading import HEAD, TABLE, Adapter, belongs, read_adapter, without_copies
from exporter.model_files import copy_beside_weights
from exporter.source import resolve_model
from exporter.staging import publish, refuse_occupied, staging
from runtime.atomic import write_json
from runtime.errors import ModelError, UserError
from runtime.units import format_bytes
from targets.facts import shown
from targets.ongrid import RECIPE
from targets.safetensors import CONFIG, SINGLE, encode_header
from targets.weights import FLOAT_BYTES, WeightReader, row_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

    from exporter.adapter.reading import LowRank
    from exporter.progress import Reporter
    from targets.facts import ModelFacts, TensorFact

    Floats = npt.NDArray[np.float32]

_CHUNK = 1 << 22
"""Weights at once: 16 MB as float32."""
_TOKENIZER = ("tokenizer", "special_tokens_map", "added_tokens", "vocab.", "merges.", "chat_template", "README")
"""Beginnings of the names of files that an adapter has of its own, where training saved them."""


@dataclass(frozen=True)
class MergeRequest:
    """One merge, as the user asked for it.

    base: a directory or a hub id (at revision); None for what the adapter names
    keep_dtype: round merged weights to the base's own type
    """

    adapter: Path
    out: Path
    base: str | None = None
    revision: str | None = None
    keep_dtype: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True)
class MergeReport:
    """What was written. added, whole: weights with a sum, and those that were trained whole"""

    out: str
    base: str
    added: int
    whole: int
    n_bytes: int
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {"packlight_merge": 1, **vars(self), "notes": list(self.notes)}


@dataclass(frozen=True)
class _Out:
    """A tensor to write: source as it is, with `low` added; dtype: that it gets."""

    name: str
    source: TensorFact
    dtype: str
    low: LowRank | None = None

    @property
    def n_bytes(self) -> int:
        """In the file."""
        return self.source.n_elements * FLOAT_BYTES[self.dtype] if self.low is not None else self.source.n_bytes


@dataclass
class _Planned:
    """All tensors by name, and what changes in config.json."""

    tensors: dict[str, _Out]
    config: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def merge(request: MergeRequest, reporter: Reporter) -> MergeReport:
    """Write the directory. Raises UserError and its kin before anything is written; OUT is then as it was."""
    out = request.out.absolute()
    refuse_occupied(out, overwrite=False)
    adapter, base = read_with_base(request, reporter)
    planned = _plan(adapter, base, keep_dtype=request.keep_dtype)
    with staging(out) as room:
        copy_beside_weights(base.path, room, but=(CONFIG, RECIPE))
        copy_beside_weights(adapter.directory, room, _TOKENIZER)
        _write_config(base.path, room, planned.config)
        n_bytes = _write(room / SINGLE, list(planned.tensors.values()), reporter)
        publish(room, out)
    return MergeReport(
        str(request.out), base.requested, len(adapter.added), len(adapter.whole), n_bytes, tuple(planned.notes)
    )


def read_with_base(request: MergeRequest, reporter: Reporter) -> tuple[Adapter, ModelFacts]:
    """Both, and that they belong together. Raises UserError and its kin."""
    reporter.step(f"reading {request.adapter}")
    adapter = read_adapter(request.adapter)
    named = request.base or adapter.base
    if not named:
        raise UserError(f"{request.adapter}: names no base model; add --base MODEL")
    revision = request.revision or (adapter.revision if request.base is None else None)
    reporter.step(f"reading {named}")
    base = resolve_model(named, trust_remote_code=request.trust_remote_code, revision=revision)
    if base.source != "huggingface":
        raise UserError(f"{named}: is a .gguf file; name the directory that it was converted from with --base")
    if base.config.get("quantization_config"):
        raise UserError(f"{named}: its weights are quantized; name the original checkpoint with --base")
    belongs(adapter, base)
    return without_copies(adapter, base), base


def _plan(adapter: Adapter, base: ModelFacts, *, keep_dtype: bool) -> _Planned:
    """Every tensor of the result, in the base's order. Raises UserError where table and head cannot both be had."""
    tied = bool(base.config.get("tie_word_embeddings", HEAD not in base.tensors))
    planned = _Planned({})
    for name, fact in base.tensors.items():
        planned.tensors[name] = _out(name, adapter.whole.get(name, fact), adapter.added.get(name), keep_dtype)
    touched = adapter.added.keys() | adapter.whole.keys()
    if tied and HEAD in touched and not _same_table(adapter):
        table = base.tensors.get(HEAD, base.tensors[TABLE])
        planned.tensors[HEAD] = _out(HEAD, adapter.whole.get(HEAD, table), adapter.added.get(HEAD), keep_dtype)
        planned.config["tie_word_embeddings"] = False
        planned.notes.append(
            "the head was the table of tokens; it was trained apart from it and has weights of its own"
        )
    elif tied and TABLE in adapter.added and TABLE not in adapter.whole and HEAD not in touched:
        planned.tensors[HEAD] = _out(HEAD, base.tensors.get(HEAD, base.tensors[TABLE]), None, keep_dtype)
        planned.config["tie_word_embeddings"] = False
        planned.notes.append(
            "the head was the table of tokens, which alone was changed: the head has weights of its own, the base's"
        )
    elif tied and TABLE in touched and HEAD not in touched:
        what = "changes the table of tokens, which is the head as well, and says nothing of the head"
        raise UserError(f"{adapter.directory}: {what}; merge it with peft and name the result")
    if tied and HEAD in planned.tensors and "tie_word_embeddings" not in planned.config:
        planned.tensors[HEAD] = _Out(HEAD, planned.tensors[TABLE].source, planned.tensors[TABLE].dtype)
    rows = {name: planned.tensors[name].source.shape[0] for name in (TABLE, HEAD) if name in planned.tensors}
    if len(set(rows.values())) > 1:
        said = " and ".join(f"{count} in {name}" for name, count in rows.items())
        raise ModelError(f"{adapter.directory}: has rows for another number of tokens than its base: {said}")
    if TABLE in adapter.whole and rows[TABLE] != base.config.get("vocab_size"):
        planned.config["vocab_size"] = rows[TABLE]
        planned.notes.append(f"the vocabulary has {rows[TABLE]} tokens, the base's {base.config.get('vocab_size')}")
    if any(one.low is not None and one.dtype == "F32" for one in planned.tensors.values()):
        planned.config["dtype"] = "float32"
    return planned


def _out(name: str, fact: TensorFact, low: LowRank | None, keep_dtype: bool) -> _Out:
    if low is None and fact.scaling is None and fact.grouping is None:
        return _Out(name, fact, fact.dtype)
    if fact.dtype not in FLOAT_BYTES:
        raise ModelError(f"{fact.file}: {shown(name)} is stored as {fact.dtype}; name the original with --base")
    return _Out(name, fact, fact.dtype if keep_dtype else "F32", low)


def _same_table(adapter: Adapter) -> bool:
    """Whether table and head were trained whole, as one."""
    table, head = (adapter.whole.get(name) for name in (TABLE, HEAD))
    if table is None or head is None or (table.shape, table.dtype) != (head.shape, head.dtype):
        return False
    with WeightReader() as reader:
        return all(
            np.array_equal(reader.read_rows(table, *rows), reader.read_rows(head, *rows))
            for rows in row_chunks(table.shape[0], table.shape[1], _CHUNK)
        )


def _write_config(source: Path, room: Path, changes: dict[str, Any]) -> None:
    """config.json with what changes, in the text model's part where it has one."""
    config = json.loads((source / CONFIG).read_text(encoding="utf-8-sig"))
    if "dtype" in changes:
        config.pop("torch_dtype", None)
    text = config.get("text_config")
    for key, value in changes.items():
        place = text if isinstance(text, dict) and key in text and key not in config else config
        place[key] = value
    write_json(room / CONFIG, config)


def _write(path: Path, tensors: list[_Out], reporter: Reporter) -> int:
    """A safetensors file, a few rows at a time; how many bytes it has. Raises ModelError where it cannot be written."""
    header = encode_header((one.name, one.dtype, one.source.shape, one.n_bytes) for one in tensors)
    total = sum(one.n_bytes for one in tensors)
    if (free := shutil.disk_usage(path.parent).free) < len(header) + total:
        needed = format_bytes(len(header) + total)
        raise UserError(f"{path.parent.parent}: no room for {needed}, {format_bytes(free)} are free; choose another -o")
    done = 0
    try:
        with path.open("wb") as file, WeightReader() as reader:
            file.write(header)
            for one in tensors:
                for data in _pieces(reader, one):
                    data.tofile(file)
                    done += data.nbytes
                    reporter.advance("merge", done, total)
    except OSError as error:
        raise ModelError(f"{path.parent.parent}: cannot be written ({error.strerror}); choose another -o") from error
    return len(header) + total


def _pieces(reader: WeightReader, one: _Out) -> Iterator[npt.NDArray[Any]]:
    """The bytes of a tensor in pieces."""
    fact, low = one.source, one.low
    if low is None:
        for start in range(0, fact.n_bytes, 4 * _CHUNK):
            raw = np.empty(min(4 * _CHUNK, fact.n_bytes - start), np.uint8)
            reader.read_bytes(fact, start, raw)
            yield raw
        return
    rows, columns = fact.shape
    factors = [reader.read_rows(side, 0, side.shape[0]) for side in (low.left, low.right)]
    left, right = (factors[1].T, factors[0].T) if low.transposed else factors
    for start, stop in row_chunks(rows, columns, _CHUNK):
        added = left[start:stop] @ right
        added *= np.float32(low.scale)
        yield _stored(reader.read_rows(fact, start, stop) + added, one)


def _stored(values: Floats, one: _Out) -> npt.NDArray[Any]:
    """Float32 values in the type of the file. Raises ModelError for those that it cannot hold."""
    if one.dtype == "BF16":  # the upper half of a float32, to the nearest, ties to even
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    if one.dtype == "F16":
        with np.errstate(over="ignore"):
            narrow = values.astype("<f2")
        if not np.isfinite(narrow).all():
            raise ModelError(f"{one.name}: is too large for F16 when it is merged; leave out --keep-dtype")
        return narrow
    return np.ascontiguousarray(values, "<f4")
