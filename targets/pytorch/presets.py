"""What a quantization preset of the PyTorch formats says."""

from __future__ import annotations

from dataclasses import dataclass

from targets.onnx.presets import PRESETS as BLOCK_PRESETS

FLOAT, INT8, INT4, DYNAMIC = "float", "int8", "int4", "dynamic"
GROUP = 32
"""Weights of a group at four bits."""


@dataclass(frozen=True)
class Preset:
    """A preset.

    layers: kind of the layers' matrices: FLOAT, INT8, INT4 or DYNAMIC; table: of the table of tokens, FLOAT or INT8
    dtype: of activations, norms and float weights
    shifted: whether groups of four bits have a shift; outputs: the rows of a four-bit product are a multiple of these
    copies_table: whether a table of tokens that is the head too is stored once more as such
    """

    name: str
    help: str
    layers: str
    table: str
    dtype: str = "float32"
    shifted: bool = False
    outputs: int = 1
    copies_table: bool = False

    @property
    def bytes_per_weight(self) -> float:
        """Of a layer's matrix in memory, without its scales: less than the whole module takes for each weight."""
        return {FLOAT: 2 if self.dtype == "bfloat16" else 4, INT4: 0.5}.get(self.layers, 1)

    def kind(self, role: str, layer: int, n_layers: int) -> str:
        """The kind of a matrix by its role and its layer."""
        if self.layers != INT4:
            return self.layers
        # Where eight bits help most does not depend on the engine.
        return INT8 if BLOCK_PRESETS["int4"].scheme(role, layer, n_layers).label.startswith("int8") else INT4
