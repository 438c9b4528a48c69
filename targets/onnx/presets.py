"""The quantization presets of the ONNX target: which scheme each matrix gets, by its role and its layer.

Roles are those of the architecture table: "token_embd" (shared with the head where the two are tied), "output", and in
a layer "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down".
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from targets.onnx.blocks import BlockGrid
from targets.onnx.linear import BlockScheme, DynamicScheme, FloatScheme

if TYPE_CHECKING:
    from collections.abc import Callable

    from targets.onnx.linear import Scheme

INT4 = BlockScheme(BlockGrid(bits=4, size=32))
INT8 = BlockScheme(BlockGrid(bits=8, size=32, symmetric=True))
INT4_64 = BlockScheme(BlockGrid(bits=4, size=64))
INT8_64 = BlockScheme(BlockGrid(bits=8, size=64, symmetric=True))
INT8_128 = BlockScheme(BlockGrid(bits=8, size=128, symmetric=True))
INT8_ROWS = BlockScheme(BlockGrid(bits=8, size=32, symmetric=True, half_scales=False))
"""What int8 rows with codes already are multiplied as where their inputs stay floats.

`MatMulNBits` holds them exactly: a row's float32 scale stands in each of its blocks. It multiplies in int8, inputs with
a scale for every 32; a DequantizeLinear in front of a MatMul would make the floats anew with every token.
"""
SMALLEST_BLOCK = 16
TABLES = ("token_embd", "output")


@dataclass(frozen=True)
class Preset:
    """A preset.

    file: name of the graph in onnx/, the one under which transformers.js looks for this precision
    scheme: (role, layer, layers) -> scheme
    calibrated: "" or what the scheme of the layers needs to know of activations: "smoothing" or "ranges"
    """

    name: str
    help: str
    file: str
    scheme: Callable[[str, int, int], Scheme]
    calibrated: str = ""


def _everywhere(scheme: Scheme) -> Callable[[str, int, int], Scheme]:
    return lambda _role, _layer, _layers: scheme


def _with_tables(layers: Scheme) -> Callable[[str, int, int], Scheme]:
    return lambda role, _layer, _layers: INT8_128 if role in TABLES else layers


def table_scheme(scheme: Scheme, columns: int) -> Scheme | None:
    """The scheme with the largest blocks, up to its own, that a row of a table divides into; None where none does.

    A looked-up row has no room for the end of a last block that is not full.
    """
    if not isinstance(scheme, BlockScheme):
        return scheme
    size = scheme.grid.size
    while columns % size:
        size //= 2
    grid = dataclasses.replace(scheme.grid, size=size)
    return dataclasses.replace(scheme, grid=grid) if size >= SMALLEST_BLOCK else None


QKV = ("attn_q", "attn_k", "attn_v")
"""Of one scheme in every layer, so that they are one product: a second one costs a layer 2 % of its decoding time."""


def _small(role: str, layer: int, layers: int) -> Scheme:
    """Four bits; eight for queries, keys and values, and for the way down in the first tenth and in the last layer.

    Blocks of 64 in layers: while it runs, ONNX Runtime keeps 12 bytes more for every block (its scale twice, the sum of
    its codes), so that blocks of 32 would cost a quarter more memory than they do on disk.
    """
    if role in TABLES:
        return INT4
    ends = layer < max(1, layers // 10) or layer == layers - 1
    return INT8_64 if role in QKV or (role == "ffn_down" and ends) else INT4_64


def _mixed(role: str, layer: int, layers: int) -> Scheme:
    """Eight bits for the table, queries, keys and values, and for the way down in the outer layers; four for the rest.

    Blocks of 64 where an error costs little: at eight bits, and in front of the feed-forward's activation.
    """
    if role in TABLES or role in QKV:
        return INT8_64
    ends = layer < 2 * layers // 5 or layer >= layers - -(-layers // 4)
    if role == "ffn_down" and ends:
        return INT8_64
    return INT4_64 if role in ("ffn_gate", "ffn_up") else INT4


_ALL = (
    Preset("fp32", "32-bit floats: the model as it is", "model.onnx", _everywhere(FloatScheme("float32"))),
    Preset("fp16", "16-bit floats, also while computing: for GPUs and recent Arm", "model_fp16.onnx",
           _everywhere(FloatScheme("float16"))),
    Preset("int8", "8-bit weights in blocks of 32", "model_int8.onnx", _everywhere(INT8)),
    Preset("int4-mixed", "4-bit weights, 8 bits wherever 4 cost much: larger, closer", "model_q4.onnx", _mixed),
    Preset("int4", "4-bit weights in blocks of 64, 8 bits where 4 cost most", "model_q4.onnx", _small),
    Preset("dynamic-int8", "8-bit weights and activations, ranges at run time: for encoders", "model_quantized.onnx",
           _with_tables(DynamicScheme()), calibrated="smoothing"),
    Preset("static-int8", "8-bit weights and activations, ranges calibrated (QDQ)", "model_quantized.onnx",
           _with_tables(DynamicScheme()), calibrated="ranges"),
)  # fmt: skip

PRESETS = {preset.name: preset for preset in _ALL}
