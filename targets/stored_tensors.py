"""Which type every tensor of an artifact has, read from the file's own header: no weight is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from onnx import TensorProto

    from runtime.artifact import Artifact

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
_PARTS = ("codes", "scales", "zero_points")
"""What the tensors of one matrix in blocks end in, in an ONNX graph of ours; channels are "weight" and "scales"."""


@dataclass(frozen=True)
class StoredTensor:
    """One matrix or vector as it is stored.

    name: in the file, without ".weight"
    type: "Q4_K", "float16", "int4 block 32"
    shape: as the format states it; of a matrix in blocks (outputs, inputs)
    n_weights, n_bytes: scales and zero points count as bytes of their matrix
    """

    name: str
    type: str
    shape: tuple[int, ...]
    n_weights: int
    n_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for one weight."""
        return 8 * self.n_bytes / self.n_weights if self.n_weights else 0.0

    @property
    def layer(self) -> int | None:
        """The number in the name; None for what lies outside the layers."""
        found = _LAYER.search(self.name)
        return int(found[1]) if found else None

    @property
    def kind(self) -> str:
        """What it is in its layer, such as "attn_q"; its name where it lies outside the layers."""
        found = _LAYER.search(self.name)
        return self.name[found.end() :] if found else self.name


def stored_tensors(artifact: Artifact) -> tuple[StoredTensor, ...] | None:
    """The tensors of an artifact, in the file's order; None for a format that nobody can look into.

    Raises ArtifactError or ModelError for a file that is damaged.
    """
    if artifact.format == "gguf":
        return _of_gguf(artifact.entry_path)
    if artifact.format == "onnx":
        return _of_onnx(artifact.entry_path)
    return None


def _of_gguf(path: Path) -> tuple[StoredTensor, ...]:
    from targets.gguf.reading import read_gguf_facts

    return tuple(
        StoredTensor(fact.name.removesuffix(".weight"), fact.dtype, fact.shape, fact.n_elements, fact.n_bytes)
        for fact in read_gguf_facts(path, str(path)).tensors.values()
    )


def _of_onnx(path: Path) -> tuple[StoredTensor, ...]:
    """The external tensors; those over the same bytes (a table that is the head as well) count once."""
    from targets.onnx.mobile import load_graph

    graph = load_graph(path).graph
    bits = {node.input[at]: {a.name: a.i for a in node.attribute} for node in graph.node if (at := _codes(node)) >= 0}
    matrices: dict[str, dict[str, TensorProto]] = {}
    seen = set()
    for tensor in graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        key = (place.get("location"), place.get("offset"))
        if place and key not in seen:
            seen.add(key)
            name, _, part = tensor.name.rpartition(".")
            matrices.setdefault(name if part in ("weight", *_PARTS) else tensor.name, {})[part] = tensor
    return tuple(_matrix(name, parts, bits) for name, parts in matrices.items())


def _codes(node: object) -> int:
    """Which input of a node are codes in blocks; -1 for none."""
    return {"MatMulNBits": 1, "GatherBlockQuantized": 0}.get(getattr(node, "op_type", ""), -1)


def _matrix(name: str, parts: dict[str, TensorProto], blocks: dict[str, dict[str, int]]) -> StoredTensor:
    """One matrix, with its scales and zero points."""
    import onnx

    n_bytes = sum(int(entry.value) for part in parts.values() for entry in part.external_data if entry.key == "length")
    if (codes := parts.get("codes")) is not None:
        known = blocks.get(codes.name, {})
        bits, size = known.get("bits", 8), known.get("block_size", 0)
        rows, columns = codes.dims[0], known.get("K", prod(codes.dims[1:]) * 8 // bits)
        return StoredTensor(name, f"int{bits} block {size}", (rows, columns), rows * columns, n_bytes)
    whole = next(iter(parts.values()))
    kind = onnx.helper.tensor_dtype_to_np_dtype(whole.data_type).name
    kind = f"{kind} channels" if "scales" in parts else kind
    return StoredTensor(name, kind, tuple(whole.dims), prod(whole.dims), n_bytes)
