"""Safetensors files read and written with numpy alone, one tensor at a time, bf16 included.

The benchmarks' own, on purpose: what packlight reads is not written by packlight's code.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    Shape = tuple[int, ...]

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
SHARD_BYTES = 10**9


def to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """bf16 codes of finite float32 values, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded: npt.NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


def from_bf16(codes: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """float32 values of bf16 codes; exact."""
    return (codes.astype(np.uint32) << 16).view(np.float32)


def encode(values: npt.NDArray[np.float32], dtype: str) -> bytes:
    """The bytes of `values` as the safetensors type `dtype`."""
    if dtype == "BF16":
        return to_bf16(values).tobytes()
    return np.ascontiguousarray(values, dtype={"F32": np.float32, "F16": np.float16}[dtype]).tobytes()


def header(shapes: Mapping[str, Shape], dtype: str) -> bytes:
    """The length field and the JSON header of a file that holds `shapes` in this order."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + int(np.prod(shape)) * ITEM_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def plan_shards(shapes: Mapping[str, Shape], dtype: str, limit: int = SHARD_BYTES) -> list[dict[str, Shape]]:
    """`shapes` cut in order into shards of at most `limit` bytes; a larger tensor has a shard of its own."""
    shards: list[dict[str, Shape]] = [{}]
    used = 0
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * ITEM_BYTES[dtype]
        if shards[-1] and used + size > limit:
            shards.append({})
            used = 0
        shards[-1][name] = shape
        used += size
    return shards


def write_model(out: Path, shapes: Mapping[str, Shape], tensors: Iterable[npt.NDArray[np.float32]], dtype: str) -> None:
    """Write the tensors (in the order of `shapes`) into `out` as Hugging Face does: one file, or shards, an index."""
    shards = plan_shards(shapes, dtype)
    source = iter(tensors)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        with (out / name).open("wb") as file:
            file.write(header(shard, dtype))
            for tensor_name, shape in shard.items():
                values = next(source)
                if values.shape != shape:
                    raise ValueError(f"{tensor_name}: shape {values.shape}, planned {shape}")
                file.write(encode(values, dtype))
                weight_map[tensor_name] = name
    if len(shards) > 1:
        total = sum(int(np.prod(shape)) for shape in shapes.values()) * ITEM_BYTES[dtype]
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def read_model(directory: Path) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Every tensor of a Hugging Face directory as float32, in file order."""
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            entries = json.loads(file.read(length))
            entries.pop("__metadata__", None)
            for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"][0]):
                start, end = entry["data_offsets"]
                file.seek(8 + length + start)
                yield name, _decode(file.read(end - start), entry["dtype"]).reshape(entry["shape"])


def _decode(data: bytes, dtype: str) -> npt.NDArray[np.float32]:
    if dtype == "BF16":
        return from_bf16(np.frombuffer(data, dtype="<u2"))
    return np.frombuffer(data, dtype={"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32)
