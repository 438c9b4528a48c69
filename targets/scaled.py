"""Checkpoints whose weights are codes with scales beside them: fp8 of the hub, int8 with a scale a row, packed codes.

A weight NAME in 8-bit floats or integers goes with NAME_scale_inv (one scale for a block of weight_block_size,
DeepSeek's and Qwen's way) or NAME_scale (one for all, or one a row: compressed-tensors, FBGEMM, ModelOpt). Weight =
code * scale in all of them. compressed-tensors also packs integers of 4 or 8 bits into I32, plus half their range, the
first in the lowest bits: NAME_packed (rows, columns / 8 or / 4), with NAME_scale (rows, groups) and NAME_shape.
Sources: the quantizers of transformers, and compressed-tensors' documentation and code.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from targets.facts import Scaling

if TYPE_CHECKING:
    import numpy.typing as npt

    from targets.facts import TensorFact

METHODS = ("fp8", "compressed-tensors", "fbgemm_fp8", "modelopt")
"""`quant_method` of config.json."""
CODES = ("F8_E4M3", "F8_E5M2", "I8")
SCALES = ("F32", "F16", "BF16", "F8_E8M0")
EIGHT_BITS = (*CODES, "F8_E8M0", "I8_OFFSET")
FOUR_BITS = ("F4_E2M1", "I4_OFFSET")
"""Two codes in a byte, the first in its lower half."""
_PACKED, _PACKED_FORMAT = "_packed", "pack-quantized"
_POSITIVE_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_ENDS = ("_scale_inv", "_scale")
_OF_INPUTS = (".input_scale", ".output_scale", ".activation_scale")
"""What activations would be rounded by: no weight."""
_UNKNOWN = ("_packed", "_shape", "_zero_point", "_g_idx", "_scale", "_scale_inv", "_scale_2", ".qweight", ".qzeros")
"""Ends of names in other layouts, which this one does not explain."""


def with_scales(config: dict[str, Any], tensors: dict[str, TensorFact]) -> tuple[dict[str, Any], dict[str, TensorFact]]:
    """config.json without `quantization_config`, and weights that know their scales.

    Both as they were where that is not the whole story of the checkpoint.
    """
    quantization = config.get("quantization_config")
    if not isinstance(quantization, dict) or quantization.get("quant_method") not in METHODS:
        return config, tensors
    block = quantization.get("weight_block_size")
    found = {name: fact for name, fact in tensors.items() if not name.endswith(_OF_INPUTS)}
    for name, fact in tensors.items():
        if fact.dtype not in CODES:
            continue
        end = next((end for end in _ENDS if f"{name}{end}" in found), None)
        scaling = _scaling(fact, found.pop(f"{name}{end}"), block) if end is not None else None
        if scaling is None:
            return config, tensors
        found[name] = dataclasses.replace(fact, scaling=scaling)
    if any(name.endswith(_UNKNOWN) for name in found):
        return config, tensors
    return {key: value for key, value in config.items() if key != "quantization_config"}, found


def with_packed(config: dict[str, Any], tensors: dict[str, TensorFact]) -> tuple[dict[str, Any], dict[str, TensorFact]]:
    """The weights that compressed-tensors has packed, under their own names; for `with_scales` to go on with.

    What is not symmetric, or was ordered by activations, stays as it is.
    """
    bits = _bits_of(config.get("quantization_config"))
    if not bits:
        return config, tensors
    found = dict(tensors)
    for name, fact in tensors.items():
        stem = name.removesuffix(_PACKED)
        scales = tensors.get(f"{stem}_scale")
        if stem == name or fact.dtype != "I32" or len(fact.shape) != 2 or scales is None:
            continue
        shape = (fact.shape[0], fact.shape[1] * 32 // bits)
        whole = len(scales.shape) == 2 and scales.shape[0] == shape[0] and scales.dtype in SCALES
        if not whole or shape[1] % scales.shape[1]:
            continue
        for end in (_PACKED, "_scale", "_shape"):
            found.pop(f"{stem}{end}", None)
        scaling = Scaling(scales, 1, shape[1] // scales.shape[1])
        found[stem] = dataclasses.replace(fact, name=stem, shape=shape, dtype=f"I{bits}_OFFSET", scaling=scaling)
    return config, found


def _bits_of(quantization: object) -> int:
    """Of every weight that compressed-tensors has packed; 0 where it is not that, or not that alone."""
    if not isinstance(quantization, dict) or quantization.get("quant_method") != "compressed-tensors":
        return 0
    groups = quantization.get("config_groups")
    if quantization.get("format") != _PACKED_FORMAT or not isinstance(groups, dict):
        return 0
    said = [group.get("weights") if isinstance(group, dict) else None for group in groups.values()]
    bits = {
        one.get("num_bits") if one.get("type") == "int" and one.get("symmetric") is True else 0
        for one in said
        if isinstance(one, dict)
    }
    (found,) = bits if len(bits) == 1 and len(said) == len(groups) else (0,)
    return found if found in (4, 8) else 0


def _scaling(fact: TensorFact, scales: TensorFact, block: object) -> Scaling | None:
    """How the scales lie over a matrix; None where they do not."""
    if len(fact.shape) != 2 or scales.dtype not in SCALES:
        return None
    rows, columns = fact.shape
    if scales.n_elements == 1:
        return Scaling(scales, rows, columns)
    if scales.shape in ((rows,), (rows, 1)):
        return Scaling(scales, 1, columns)
    if not isinstance(block, list) or len(block) != 2 or not all(isinstance(size, int) and size > 0 for size in block):
        return None
    if scales.shape != (-(-rows // block[0]), -(-columns // block[1])):
        return None
    return Scaling(scales, *block)


@functools.cache
def values_of(dtype: str) -> npt.NDArray[np.float32]:
    """The number that each of the 256 codes is, shape (256,); of 4-bit types both of a byte, (256, 2).

    NaN and infinities as they are.
    """
    codes = np.arange(256, dtype=np.uint8)
    if dtype in FOUR_BITS:
        positive = np.array(_POSITIVE_E2M1)
        single = np.concatenate([positive, -positive]) if dtype == "F4_E2M1" else np.arange(16.0) - 8
        return single[np.stack([codes & 15, codes >> 4], axis=1)].astype(np.float32)
    if dtype == "I8_OFFSET":
        return codes.astype(np.float32) - 128
    if dtype == "I8":
        return codes.view(np.int8).astype(np.float32)
    if dtype == "F8_E8M0":  # a power of two; 255 is NaN
        powers = np.exp2(codes.astype(np.float64) - 127)
        powers[255] = np.nan
        return powers.astype(np.float32)
    if dtype == "F8_E5M2":  # the upper half of a float16
        return (codes.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    # F8_E4M3 without infinities (OCP 8-bit floating point, revision 1.0): bias 7, and only 0x7F and 0xFF are NaN.
    exponent, fraction = (codes >> 3) & 15, (codes & 7).astype(np.float64)
    normal = (1 + fraction / 8) * np.exp2(exponent.astype(np.float64) - 7)
    numbers = np.where(exponent == 0, fraction / 8 * np.exp2(-6.0), normal)
    numbers[(codes & 127) == 127] = np.nan
    return np.where(codes & 128, -numbers, numbers).astype(np.float32)


def decoded(dtype: str, raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The numbers of codes, flat; scales are left out. raw: their bytes, C-contiguous"""
    table = values_of(dtype)
    if dtype in FOUR_BITS:  # both numbers of a byte in one look-up, which is six times as fast
        return table.view(np.uint64).reshape(-1)[raw.reshape(-1)].view(np.float32)
    return table[raw.reshape(-1)]


def spread(scales: npt.NDArray[np.float32], scaling: Scaling, rows: tuple[int, int], columns: int
           ) -> npt.NDArray[np.float32]:  # fmt: skip
    """Scales of some rows of a matrix, so that they multiply with them: (rows, columns) or (rows, 1).

    rows: the first, and the one behind the last
    scales: those of the blocks that these rows lie in, from the first on, (blocks of rows, blocks of columns)
    """
    first = rows[0] // scaling.rows
    found = scales[np.arange(*rows) // scaling.rows - first]
    return np.repeat(found, scaling.columns, axis=1)[:, :columns] if found.shape[1] > 1 else found


def scale_rows(scaling: Scaling, rows: tuple[int, int]) -> tuple[int, int]:
    """Which rows of blocks some rows of the matrix lie in."""
    return rows[0] // scaling.rows, (rows[1] - 1) // scaling.rows + 1
