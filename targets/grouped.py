"""Checkpoints in 4 bits by GPTQ and AWQ: codes, a zero point and a scale for each group of a matrix's inputs.

Both store a matrix with its inputs as rows, eight codes in an I32. GPTQ has eight inputs in a word, the first in the
lowest bits: NAME.qweight (inputs / 8, outputs); AWQ ("gemm") has eight outputs, in the order 0 2 4 6 1 3 5 7:
(inputs, outputs / 8). NAME.qzeros (groups, outputs / 8) is packed as AWQ's codes are, by GPTQ in plain order and one
less than it is meant (not in `gptq_v2`); NAME.scales (groups, outputs). GPTQ's NAME.g_idx (inputs) says which group an
input belongs to. Weight = (code - zero point) * scale. Sources: AutoAWQ's and GPTQModel's layers, the loaders of
onnxruntime-genai.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import ModelError
from targets.facts import Grouping

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from targets.facts import TensorFact

    Bytes = npt.NDArray[np.uint8]
    Floats = npt.NDArray[np.float32]

GPTQ, AWQ = "GPTQ4", "AWQ4"
"""Element types of such a tensor."""
_PER_WORD = 8
_REVERSED = np.array([0, 4, 1, 5, 2, 6, 3, 7])
"""At which place in an AWQ word each of its eight outputs lies."""
_AT_ONCE = 128
"""Rows of AWQ words that are unpacked at a time."""


def with_groups(config: dict[str, Any], tensors: dict[str, TensorFact]) -> tuple[dict[str, Any], dict[str, TensorFact]]:
    """config.json without `quantization_config`, and each NAME.qweight as NAME.weight, (outputs, inputs).

    Both as they were where that is not the whole story of the checkpoint.
    """
    said = config.get("quantization_config")
    layout = _layout(said) if isinstance(said, dict) else None
    if layout is None:
        return config, tensors
    dtype, less = layout
    found = dict(tensors)
    for name, codes in tensors.items():
        stem = name.removesuffix(".qweight")
        if stem == name:
            continue
        weight = _weight(f"{stem}.weight", codes, [found.pop(f"{stem}.{end}", None) for end in _BESIDE], dtype, less)
        if weight is None or weight.name in tensors:
            return config, tensors
        del found[name]
        found[weight.name] = weight
    left = any(name.endswith((".qweight", *(f".{end}" for end in _BESIDE))) for name in found)
    if left or found.keys() == tensors.keys():
        return config, tensors
    return {key: value for key, value in config.items() if key != "quantization_config"}, found


_BESIDE = ("qzeros", "scales", "g_idx")


def _layout(said: dict[str, Any]) -> tuple[str, int] | None:
    """The element type, and by how much zero points are stored too small; None for what is not known here."""
    if said.get("bits", said.get("w_bit")) != 4:
        return None
    if said.get("quant_method") == "awq":
        return (AWQ, 0) if str(said.get("version", "gemm")).lower() == "gemm" else None
    stored = said.get("checkpoint_format") or said.get("format") or "gptq"
    if said.get("quant_method") != "gptq" or said.get("dynamic") or stored not in ("gptq", "gptq_v2"):
        return None
    return GPTQ, int(stored == "gptq")


def _weight(name: str, codes: TensorFact, beside: list[TensorFact | None], dtype: str, less: int) -> TensorFact | None:
    """The weight that the parts are; None where they do not fit each other."""
    zeros, scales, index = beside
    if zeros is None or scales is None or {codes.dtype, zeros.dtype} != {"I32"} or scales.dtype not in _SCALES:
        return None
    if not len(codes.shape) == len(zeros.shape) == len(scales.shape) == 2:
        return None
    rows, columns = codes.shape
    inputs, outputs = (rows * _PER_WORD, columns) if dtype == GPTQ else (rows, columns * _PER_WORD)
    groups = scales.shape[0]
    if scales.shape != (groups, outputs) or zeros.shape != (groups, outputs // _PER_WORD) or outputs % _PER_WORD:
        return None
    if (index is None and inputs % groups) or inputs % 2:
        return None
    if index is not None and (dtype == AWQ or index.dtype != "I32" or index.shape != (inputs,)):
        return None
    grouping = Grouping(zeros, scales, index, less)
    return dataclasses.replace(codes, name=name, shape=(outputs, inputs), dtype=dtype, grouping=grouping)


_SCALES = ("F16", "BF16", "F32")


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A matrix in memory, as it was packed.

    codes: (outputs, inputs / 2), the first of two in the lower half of a byte
    zeros, scales: (outputs, groups); groups: of each input
    """

    codes: Bytes
    zeros: Floats
    scales: Floats
    groups: npt.NDArray[np.intp]

    def rows(self, start: int, stop: int) -> Floats:
        """Weights of outputs start to stop, (stop - start, inputs)."""
        packed = self.codes[start:stop]
        codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(stop - start, -1).astype(np.float32)
        codes -= self.zeros[start:stop][:, self.groups]
        codes *= self.scales[start:stop][:, self.groups]
        return codes


def read_matrix(
    fact: TensorFact, read: Callable[[TensorFact], Bytes], floats: Callable[[TensorFact], Floats]
) -> Matrix:
    """The whole of a matrix. read: a tensor's bytes, flat; floats: its values, of two dimensions.

    Raises ModelError for a group that there is not.
    """
    grouping = fact.grouping
    if grouping is None:
        raise ValueError(f"{fact.name} has no groups")
    outputs, inputs = fact.shape
    words = read(fact).reshape(-1, _bytes_of_row(fact))
    zeros = _nibbles(read(grouping.zeros).reshape(grouping.zeros.shape[0], -1))
    if fact.dtype == AWQ:
        codes, zeros = _outputs_as_rows(words, outputs, inputs), _in_order(zeros)
    else:
        codes = np.ascontiguousarray(words.reshape(-1, outputs, 4).swapaxes(0, 1)).reshape(outputs, inputs // 2)
    n_groups = len(zeros)
    groups = np.arange(inputs) // (inputs // n_groups)
    if grouping.index is not None:
        groups = read(grouping.index).view("<i4").astype(np.intp)
        if groups.min() < 0 or groups.max() >= n_groups:
            raise ModelError(f"{fact.file}: {fact.name}: g_idx names a group that is not there; download it again")
    meant = (zeros + np.uint8(grouping.less)) & 15
    return Matrix(codes, meant.T.astype(np.float32), np.ascontiguousarray(floats(grouping.scales).T), groups)


def _bytes_of_row(fact: TensorFact) -> int:
    outputs, inputs = fact.shape
    return 4 * (outputs // _PER_WORD if fact.dtype == AWQ else outputs) if inputs else 0


def _nibbles(packed: Bytes) -> Bytes:
    """Both halves of every byte, the lower first: (rows, 2 * columns)."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)


def _in_order(nibbles: Bytes) -> Bytes:
    """AWQ's eight of a word in the order of outputs."""
    rows = len(nibbles)
    return nibbles.reshape(rows, -1, _PER_WORD)[:, :, _REVERSED].reshape(rows, -1)


def _outputs_as_rows(words: Bytes, outputs: int, inputs: int) -> Bytes:
    """AWQ's codes as (outputs, inputs / 2), some rows at a time: unpacked they take the double."""
    found = np.empty((outputs, inputs // 2), np.uint8)
    for start in range(0, inputs, _AT_ONCE):
        codes = _in_order(_nibbles(words[start : start + _AT_ONCE]))
        found[:, start // 2 : (start + len(codes)) // 2] = (codes[0::2] | (codes[1::2] << 4)).T
    return found
