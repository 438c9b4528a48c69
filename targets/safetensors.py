"""A Hugging Face model directory: `ModelFacts` from config.json and the safetensors headers alone.

A safetensors file is an 8-byte little-endian length, that many bytes of JSON, then the tensors' bytes without
holes (https://github.com/huggingface/safetensors#format). The header is parsed here, because every lie that
it can tell has to become one clear line before anything is written, and because no weight may be touched.
"""

from __future__ import annotations

import codecs
import json
from collections import Counter
from typing import TYPE_CHECKING, Any, NoReturn, TypeGuard

from runtime.errors import ModelError
from targets.facts import ModelFacts, TensorFact, several, shown
from targets.grouped import with_groups
from targets.mxfp4 import with_blocks
from targets.pickled import conversion_command, pickled_weights
from targets.scaled import with_packed, with_scales
from targets.widths import narrowed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Bits of one element. Source: the Dtype enum of safetensors 0.8.
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip

# The format's own limit on a header; config.json and the index are held to it as well.
MAX_JSON_BYTES = 100_000_000
_MAX_ELEMENTS = 2**63

# Keys that the whole model's config decides, not its text part: re-saved text configs carry class defaults.
_OUTER_KEYS = ("architectures", "bos_token_id", "eos_token_id", "pad_token_id")
_AGAIN = "download or copy the model again"


def read_facts(
    directory: Path, requested: str, name: str | None = None, *, trust_remote_code: bool = False
) -> ModelFacts:
    """The facts of the model in `directory`; reads config.json and headers only, no weights.

    requested: MODEL as the user wrote it; name: for people, the directory's name when not given.
    Raises ModelError, one line, for everything that keeps the directory from being a whole, honest model.
    """
    try:
        if not directory.is_dir():
            raise ModelError(f"{directory}: no such directory; name a Hugging Face model directory")
        config = read_config(directory)
        if config.get("auto_map") and not trust_remote_code:
            raise ModelError(
                f"{directory / CONFIG}: 'auto_map' asks to run Python code that came with the model; "
                "read that code, then allow it with --trust-remote-code"
            )
        config, tensors = explained(config, _read_weights(directory, config))
        tensors = narrowed(config, tensors)
    except OSError as error:
        raise ModelError(f"{error.filename or directory}: cannot be read ({error.strerror}); {_AGAIN}") from error
    own_name = directory.name if directory.name not in ("", "..") else directory.resolve().name
    return ModelFacts("huggingface", directory, name or own_name, requested, config, tensors)


def explained(config: dict[str, Any], tensors: dict[str, TensorFact]) -> tuple[dict[str, Any], dict[str, TensorFact]]:
    """config.json without `quantization_config`, and weights that can be read, where the layout of codes is known."""
    for explain in (with_packed, with_scales, with_blocks, with_groups):
        config, tensors = explain(config, tensors)
    return config, tensors


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a model directory, with `text_config` of a multimodal one merged up. Raises ModelError."""
    path = directory / CONFIG
    if not path.is_file():
        raise ModelError(f"{directory}: no {CONFIG}; {_without_config(directory)}")
    config = load_object(path)
    text = config.pop("text_config", None)
    if text is not None:
        if not isinstance(text, dict):
            raise ModelError(f"{path}: 'text_config' is not an object; {_AGAIN}")
        merged = {**config, **{key: value for key, value in text.items() if value is not None or key not in config}}
        config = merged | {key: config[key] for key in _OUTER_KEYS if config.get(key) is not None}
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(entry, str) for entry in names)):
        raise ModelError(f"{path}: 'architectures' is not a list of class names; {_AGAIN}")
    return config


def read_header(path: Path) -> list[TensorFact]:
    """The tensors of one safetensors file, in the order of their bytes. Raises ModelError, and OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if prefix == b"version ":
            raise ModelError(f"{path}: is a Git LFS pointer, not the weights; run 'git lfs pull' in its directory")
        if len(prefix) < 8:
            raise ModelError(f"{path}: is truncated, {size} bytes do not even hold a header; {_AGAIN}")
        length = int.from_bytes(prefix, "little")
        if length > MAX_JSON_BYTES:
            raise ModelError(f"{path}: claims a header of {length} bytes, over {MAX_JSON_BYTES}; {_AGAIN}")
        if length > size - 8:
            raise ModelError(f"{path}: claims a header of {length} bytes, but only {size - 8} follow; {_AGAIN}")
        raw = file.read(length)
    header = _parse(path, "its header", raw)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise ModelError(f"{path}: '__metadata__' in its header is not an object; {_AGAIN}")
    return _check_layout(path, _check_entries(path, header, 8 + length), 8 + length, size)


def encode_header(tensors: Iterable[tuple[str, str, Sequence[int], int]]) -> bytes:
    """The bytes before the first tensor of a file with these, one behind the other: (name, dtype, shape, bytes)."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, dtype, shape, n_bytes in tensors:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + n_bytes]}
        position += n_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _without_config(directory: Path) -> str:
    """What to do about a directory that has no config.json."""
    if (directory / "adapter_config.json").is_file():
        return (
            f"it holds a LoRA adapter: make a model of it with 'packlight merge {directory} -o MODEL', or a file for "
            f"llama.cpp with 'packlight adapter {directory} -o FILE.gguf'"
        )
    if ggufs := sorted(entry.name for entry in directory.glob("*.gguf")):
        return f"it holds {shown(ggufs[0])}: name that file"
    return "name a Hugging Face model directory"


def _read_weights(directory: Path, config: dict[str, Any]) -> dict[str, TensorFact]:
    """All tensors by name, from one file or from the shards of an index."""
    single, index = directory / SINGLE, directory / INDEX
    if single.is_file() or single.is_symlink():  # a dangling link fails on opening, with its own message
        tensors = {fact.name: fact for fact in read_header(single)}
    elif index.is_file():
        tensors = _read_shards(index)
    else:
        _refuse_without_weights(directory, config)
    if not tensors:
        raise ModelError(f"{directory}: its safetensors hold no tensor at all; {_AGAIN}")
    return tensors


def _refuse_without_weights(directory: Path, config: dict[str, Any]) -> NoReturn:
    """Say what is there in place of the safetensors."""
    names = sorted(entry.name for entry in directory.iterdir())
    if others := [shown(name) for name in names if name.endswith(".safetensors")]:
        raise ModelError(
            f"{directory}: has {several(others)} but neither {SINGLE} nor {INDEX}; "
            f"add the index, or rename a single file to {SINGLE}"
        )
    if pickles := pickled_weights(names):
        home = directory if directory.name not in ("", "..") else directory.resolve()
        command = conversion_command(str(home), str(home.with_name(f"{home.name}-safetensors")), config, pickles)
        raise ModelError(
            f"{directory}: has only pickled weights ({several([shown(name) for name in pickles])}), which can run "
            f"any code on loading; if you trust them, convert them to safetensors with: {command}"
        )
    raise ModelError(f"{directory}: no weights, neither {SINGLE} nor {INDEX}; {_AGAIN}")


def _read_shards(index: Path) -> dict[str, TensorFact]:
    """The tensors of a sharded model; everything that its index promises has to be there, once."""
    weight_map = load_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ModelError(f"{index}: 'weight_map' is not an object of tensor and file names; {_AGAIN}")
    shards = sorted(set(weight_map.values()))
    if outside := [shown(shard) for shard in shards if not _is_plain_name(shard)]:
        raise ModelError(f"{index}: names files outside its directory: {several(outside)}; {_AGAIN}")
    if missing := [shown(shard) for shard in shards if not (index.parent / shard).is_file()]:
        raise ModelError(
            f"{index.parent}: {len(missing)} of {len(shards)} shards missing: {several(missing)}; {_AGAIN}"
        )
    tensors: dict[str, TensorFact] = {}
    twice: list[str] = []
    for shard in shards:
        for fact in read_header(index.parent / shard):
            if fact.name in tensors:
                twice.append(f"{shown(fact.name)} (in {tensors[fact.name].file.name} and {shard})")
            tensors[fact.name] = fact
    if twice:
        raise ModelError(f"{index.parent}: the same tensor in two shards: {several(twice)}; {_AGAIN}")
    if absent := [
        f"{shown(name)} (not in {shown(shard)})"
        for name, shard in weight_map.items()
        if name not in tensors or tensors[name].file.name != shard
    ]:
        raise ModelError(f"{index}: names tensors that their shards do not hold: {several(absent)}; {_AGAIN}")
    return tensors


def _is_plain_name(shard: str) -> bool:
    """Whether a file name stays inside its directory."""
    return shard.isprintable() and shard not in ("", ".", "..") and not set(shard) & set("/\\")


def load_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises ModelError."""
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ModelError(f"{path}: has {size} bytes, over {MAX_JSON_BYTES}; {_AGAIN}")
    return _parse(path, "it", path.read_bytes().removeprefix(codecs.BOM_UTF8))


def _parse(path: Path, what: str, raw: bytes) -> dict[str, Any]:
    """JSON bytes that hold an object without repeated keys. Raises ModelError."""
    try:
        parsed = json.loads(raw.decode(), object_pairs_hook=_without_repeats)
    except RecursionError as error:
        raise ModelError(f"{path}: {what} is nested too deeply; {_AGAIN}") from error
    except ValueError as error:
        raise ModelError(f"{path}: {what} is not JSON ({shown(error, 120)}); {_AGAIN}") from error
    if not isinstance(parsed, dict):
        raise ModelError(f"{path}: {what} is not a JSON object; {_AGAIN}")
    return parsed


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of `pairs`; of a repeated key different readers would take different values."""
    built = dict(pairs)
    if len(built) != len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"repeated key '{shown(repeated)}'")
    return built


def _check_entries(path: Path, header: dict[str, Any], data_start: int) -> list[TensorFact]:
    """The header's entries as facts. Raises ModelError that lists the first bad ones."""
    facts, problems = [], []
    for name, entry in header.items():
        try:
            facts.append(_fact(path, name, entry, data_start))
        except ValueError as error:
            problems.append(f"tensor {shown(name)}: {error}")
    if problems:
        raise ModelError(f"{path}: bad header: {several(problems, separator='; ')}; {_AGAIN}")
    return facts


def _fact(path: Path, name: str, entry: Any, data_start: int) -> TensorFact:  # noqa: ANN401 (parsed JSON)
    """One entry of a header as a fact. Raises ValueError with what is wrong."""
    if not name.isprintable():
        raise ValueError("unprintable characters in the name")
    if not isinstance(entry, dict):
        raise ValueError("not an object")
    shape, dtype, offsets = (entry.get(key) for key in ("shape", "dtype", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise ValueError(f"unknown dtype {shown(dtype)}")
    if not _are_counts(shape):
        raise ValueError(f"bad shape {shown(shape)}")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"bad data_offsets {shown(offsets)}")
    count = 1
    for dim in shape:
        count *= dim
        if count >= _MAX_ELEMENTS:  # early, before hostile dims make huge numbers
            raise ValueError(f"bad shape {shown(shape)}")
    bits, n_bytes = count * DTYPE_BITS[dtype], offsets[1] - offsets[0]
    if bits != 8 * n_bytes:
        raise ValueError(f"{dtype} {shown(shape)} takes {bits / 8:.10g} bytes, its data_offsets span {n_bytes}")
    return TensorFact(name, tuple(shape), dtype, path, data_start + offsets[0], n_bytes)


def _are_counts(value: object) -> TypeGuard[list[int]]:
    """Whether a JSON value is a list of integers from zero up to 2**63."""
    return isinstance(value, list) and all(type(entry) is int and 0 <= entry < _MAX_ELEMENTS for entry in value)


def _check_layout(path: Path, facts: list[TensorFact], data_start: int, size: int) -> list[TensorFact]:
    """`facts` by offset; their bytes have to fill the file from `data_start` to its end, each byte once."""
    facts = sorted(facts, key=lambda fact: (fact.offset, fact.n_bytes))
    problems, end, before = [], data_start, "the header"
    for fact in facts:
        if fact.offset != end:
            relation = "overlaps" if fact.offset < end else f"leaves {fact.offset - end} unused bytes after"
            problems.append(f"tensor {shown(fact.name)} {relation} {before}")
        end, before = max(end, fact.offset + fact.n_bytes), shown(fact.name)
    if problems:
        raise ModelError(f"{path}: bad header: {several(problems, separator='; ')}; {_AGAIN}")
    if end > size:
        raise ModelError(f"{path}: is truncated, has {size} of the {end} bytes that its header describes; {_AGAIN}")
    if end < size:
        raise ModelError(f"{path}: has {size - end} bytes after its last tensor; {_AGAIN}")
    return facts
