"""The ggml tensor types that packlight writes: bytes and weights of a block, as sums one can check.

Source: the block structs of ggml-common.h (https://github.com/ggml-org/ggml).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GgmlType:
    """A tensor type: its id in the file, and `block_bytes` bytes for every `block_size` weights of a row."""

    name: str
    id: int
    block_size: int
    block_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for one weight, scales and minima included."""
        return 8 * self.block_bytes / self.block_size

    def fits(self, row: int) -> bool:
        """Whether a row of `row` weights divides into blocks."""
        return row % self.block_size == 0

    def row_bytes(self, row: int) -> int:
        """Bytes of a row of `row` weights. Raises ValueError where the row does not divide into blocks."""
        if not self.fits(row):
            raise ValueError(f"a row of {row} weights does not divide into {self.name} blocks of {self.block_size}")
        return row // self.block_size * self.block_bytes


_ALL = (
    #        name     id   weights  bytes: scales, minima, high bits, quants
    GgmlType("F32", 0, 1, 4),
    GgmlType("F16", 1, 1, 2),
    GgmlType("Q4_0", 2, 32, 2 + 16),
    GgmlType("Q4_1", 3, 32, 2 + 2 + 16),
    GgmlType("Q5_0", 6, 32, 2 + 4 + 16),
    GgmlType("Q5_1", 7, 32, 2 + 2 + 4 + 16),
    GgmlType("Q8_0", 8, 32, 2 + 32),
    GgmlType("Q2_K", 10, 256, 16 + 64 + 2 + 2),
    GgmlType("Q3_K", 11, 256, 32 + 64 + 12 + 2),
    GgmlType("Q4_K", 12, 256, 2 + 2 + 12 + 128),
    GgmlType("Q5_K", 13, 256, 2 + 2 + 12 + 32 + 128),
    GgmlType("Q6_K", 14, 256, 128 + 64 + 16 + 2),
    # those of lattices: points of a table, their signs, scales
    GgmlType("IQ2_XXS", 16, 256, 2 + 64),
    GgmlType("IQ2_XS", 17, 256, 2 + 64 + 8),
    GgmlType("IQ3_XXS", 18, 256, 2 + 64 + 32),
    GgmlType("IQ1_S", 19, 256, 2 + 32 + 16),
    GgmlType("IQ4_NL", 20, 32, 2 + 16),
    GgmlType("IQ3_S", 21, 256, 2 + 64 + 8 + 32 + 4),
    GgmlType("IQ2_S", 22, 256, 2 + 64 + 8 + 8),
    GgmlType("IQ4_XS", 23, 256, 2 + 2 + 4 + 128),
    GgmlType("IQ1_M", 29, 256, 32 + 16 + 8),
    GgmlType("BF16", 30, 1, 2),
    GgmlType("TQ1_0", 34, 256, 48 + 4 + 2),
    GgmlType("TQ2_0", 35, 256, 64 + 2),
    # a scale that is a power of two, or four of them of eight bits, and codes of four
    GgmlType("MXFP4", 39, 32, 1 + 16),
    GgmlType("NVFP4", 40, 64, 4 + 32),
    GgmlType("Q1_0", 41, 128, 2 + 16),
    GgmlType("Q2_0", 42, 64, 2 + 16),
)

TYPES: dict[str, GgmlType] = {entry.name: entry for entry in _ALL}

IMPORTANCE_TYPES = frozenset({"IQ1_S", "IQ2_XXS", "IQ2_XS"})
"""Types that ggml cannot write at all without an importance matrix (`ggml_quantize_requires_imatrix` of ggml.c)."""
