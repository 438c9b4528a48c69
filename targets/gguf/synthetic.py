"""A GGUF file whose matrices are all of one type, made in no time: for timing what llama.cpp does with that type."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from targets.gguf import header
from targets.gguf.kernels import quantize_rows
from targets.gguf.keyvalue import float32, string, uint32
from targets.gguf.types import TYPES, GgmlType
from targets.synthetic import VOCAB

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from targets.synthetic import Shape


def write_gguf(path: Path, shape: Shape, kind: GgmlType) -> None:
    """A Llama whose matrices are all of that type: one random row each, over and over, which costs the same time."""
    metadata = [
        string("general.architecture", "llama"),
        uint32("llama.vocab_size", VOCAB), uint32("llama.context_length", 4096),
        uint32("llama.block_count", shape.layers),
        uint32("llama.embedding_length", shape.hidden), uint32("llama.feed_forward_length", shape.ffn),
        uint32("llama.attention.head_count", shape.heads), uint32("llama.attention.head_count_kv", shape.heads),
        uint32("llama.rope.dimension_count", shape.hidden // shape.heads),
        float32("llama.attention.layer_norm_rms_epsilon", 1e-5),
        string("tokenizer.ggml.model", "none"),
    ]  # fmt: skip
    square, wide = (shape.hidden, shape.hidden), (shape.ffn, shape.hidden)
    layer = {"attn_q": square, "attn_k": square, "attn_v": square, "attn_output": square, "ffn_gate": wide,
             "ffn_up": wide, "ffn_down": wide[::-1]}  # fmt: skip
    tensors: list[tuple[str, tuple[int, ...], GgmlType]] = [
        ("token_embd.weight", (VOCAB, shape.hidden), TYPES["F16"]),
        ("output_norm.weight", (shape.hidden,), TYPES["F32"]),
    ]
    for number in range(shape.layers):
        tensors += [(f"blk.{number}.{name}_norm.weight", (shape.hidden,), TYPES["F32"]) for name in ("attn", "ffn")]
        tensors += [
            (f"blk.{number}.{name}.weight", size, kind if kind.fits(size[-1]) else TYPES["F16"])
            for name, size in layer.items()
        ]
    placed = header.place(tensors)
    rows: dict[tuple[str, int], npt.NDArray[np.uint8]] = {}
    with path.open("wb") as file:
        file.write(header.encode(metadata, placed))
        start = file.tell()
        for tensor in placed:
            key = (tensor.kind.name, tensor.shape[-1])
            if key not in rows:
                rows[key] = _random_row(tensor.kind, tensor.shape[-1])
            file.seek(start + tensor.offset)
            count = tensor.n_bytes // rows[key].nbytes
            file.write(np.tile(rows[key], count).tobytes())
        file.truncate(start + header.align(placed[-1].offset + placed[-1].n_bytes))


def _random_row(kind: GgmlType, columns: int) -> npt.NDArray[np.uint8]:
    values = np.random.default_rng(0).standard_normal((1, columns), np.float32) * np.float32(0.05)
    row: npt.NDArray[np.uint8] = quantize_rows(values, kind, np.ones(columns, np.float32))[0]
    return row
