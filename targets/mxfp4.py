"""Checkpoints of the hub whose experts are in MXFP4 (GPT-OSS): floats of 4 bits, a power of two for 32 of them.

`NAME_blocks`, U8 (…, rows, columns / 32, 16), holds codes, the even columns in the low halves of its bytes;
`NAME_scales`, U8 (…, rows, columns / 32), the exponents. Weight = code * 2^(scale - 127). Sources: the OCP Microscaling
Formats specification 1.0 (E2M1, E8M0), and transformers' integrations/mxfp4.py for the order of bytes.
"""

from __future__ import annotations

import dataclasses
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from targets.facts import Scaling

if TYPE_CHECKING:
    import numpy.typing as npt

    from targets.facts import TensorFact

    Bytes = npt.NDArray[np.uint8]

METHOD = "mxfp4"
"""`quant_method` of config.json."""
CODES = "F4_E2M1"
"""The element type of such a tensor: two codes in a byte."""
GROUP = 32
"""Weights that share a scale."""
_GROUP_BYTES = GROUP // 2
_BLOCKS, _SCALES = "_blocks", "_scales"
_NAN = 255


def with_blocks(config: dict[str, Any], tensors: dict[str, TensorFact]) -> tuple[dict[str, Any], dict[str, TensorFact]]:
    """config.json without `quantization_config`, and each `NAME_blocks` as the weights that it holds, scales known.

    Its shape is then (…, rows, columns); that is the transpose of what transformers makes of it. Both as they were
    where that is not the whole story of the checkpoint.
    """
    quantization = config.get("quantization_config")
    if not isinstance(quantization, dict) or quantization.get("quant_method") != METHOD:
        return config, tensors
    found = dict(tensors)
    for name, blocks in tensors.items():
        if not name.endswith(_BLOCKS):
            continue
        scales = found.pop(f"{name.removesuffix(_BLOCKS)}{_SCALES}", None)
        if scales is None or not _belong(blocks, scales):
            return config, tensors
        *outer, groups, _ = blocks.shape
        exponents = dataclasses.replace(scales, shape=(prod(outer), groups), dtype="F8_E8M0")
        found[name] = dataclasses.replace(
            blocks, shape=(*outer, groups * GROUP), dtype=CODES, scaling=Scaling(exponents, 1, GROUP)
        )
    if len(found) == len(tensors) or any(name.endswith(_SCALES) for name in found):
        return config, tensors
    return {key: value for key, value in config.items() if key != "quantization_config"}, found


def _belong(blocks: TensorFact, scales: TensorFact) -> bool:
    """Whether the scales are those of the blocks."""
    two = {blocks.dtype, scales.dtype} == {"U8"} and len(blocks.shape) > 2
    return two and blocks.shape == (*scales.shape, _GROUP_BYTES)


def ggml_blocks(codes: Bytes, scales: Bytes) -> Bytes:
    """The same codes as ggml's block_mxfp4 has them, (rows, bytes of a row): 17 for a group.

    codes: (rows, columns / 2); scales: (rows, columns / 32)
    A block is its exponent, then the first sixteen codes in the low halves of its bytes and the others in the high ones
    (ggml-common.h). ggml's numbers are twice these and its scale is half of this one, so no code changes. Raises
    ValueError for a scale that is no number.
    """
    if (scales == _NAN).any():
        raise ValueError("holds a scale that is no number")
    rows, groups = scales.shape
    stored = codes.reshape(rows, groups, _GROUP_BYTES)
    single = np.stack([stored & 15, stored >> 4], axis=-1).reshape(rows, groups, GROUP)
    blocks = np.empty((rows, groups, 1 + _GROUP_BYTES), np.uint8)
    blocks[..., 0] = scales
    np.bitwise_or(single[..., :_GROUP_BYTES], single[..., _GROUP_BYTES:] << 4, out=blocks[..., 1:])
    return blocks.reshape(rows, -1)
