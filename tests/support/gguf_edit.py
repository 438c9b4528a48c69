"""Edit a GGUF file on the byte level, to plant faults into it: `edit_gguf` and the edits of tensors."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    TensorEdit = Callable[[np.ndarray], np.ndarray]
    """Takes and gives a tensor's data as gguf-py reads it: rows of values, or of packed bytes if quantized."""


@dataclasses.dataclass(frozen=True)
class Edits:
    """What to change. keys: new values (of the old type; new keys: bool, int or str); drop: keys to leave out."""

    keys: dict[str, Any] = dataclasses.field(default_factory=dict)
    drop: tuple[str, ...] = ()
    tensors: dict[str, TensorEdit] = dataclasses.field(default_factory=dict)


def edit_gguf(source: Path, out: Path, edits: Edits) -> Path:
    """Write `source` with `edits` to `out`. Raises KeyError for an edit of something that is not there."""
    import gguf

    reader = gguf.GGUFReader(source)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    if unknown := (set(edits.drop) - set(fields)) | (set(edits.tensors) - {t.name for t in reader.tensors}):
        raise KeyError(f"{source} has no {sorted(unknown)}")
    writer = gguf.GGUFWriter(out, arch=fields["general.architecture"].contents())
    for name, field in fields.items():
        if name == "general.architecture" or name in edits.drop:
            continue
        sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        value = edits.keys[name] if name in edits.keys else field.contents()
        writer.add_key_value(name, value, field.types[0], sub_type=sub_type)
    for name in set(edits.keys) - set(fields):
        writer.add_key_value(name, edits.keys[name], gguf.GGUFValueType.get_type(edits.keys[name]))
    for tensor in reader.tensors:
        data = edits.tensors.get(tensor.name, lambda array: array)(np.array(tensor.data))
        writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def zeroed(data: np.ndarray) -> np.ndarray:
    """All bytes zero: in every ggml type whose scales are stored that is the value 0."""
    return np.zeros_like(data)


def unpermuted(n_heads: int) -> TensorEdit:
    """Undo the reordering of q and k rows that llama.cpp's Llama needs: what a converter that forgot it writes.

    Rows of a head are stored in pairs (i, i + d/2) there, and as two halves in Hugging Face's order.
    """

    def edit(data: np.ndarray) -> np.ndarray:
        rows, width = data.shape
        return data.reshape(n_heads, rows // n_heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)

    return edit
