"""The quantization presets of the TorchScript target."""

from __future__ import annotations

import dataclasses

from targets.pytorch.presets import DYNAMIC, FLOAT, INT4, INT8, Preset

OUTPUTS = 16
"""torch's four-bit product wants rows in such bundles; a matrix with another number of rows takes eight bits."""
_ALL = (
    Preset("fp32", "32-bit floats: the model as it is", FLOAT, FLOAT),
    Preset("bf16", "bfloat16 weights and activations: half the size, fast where the processor has it", FLOAT, FLOAT,
           "bfloat16"),
    Preset("int8", "8-bit weights with a scale a row, floats while computing", INT8, INT8),
    Preset("int4", "4-bit weights in groups of 32, 8 bits where 4 cost most and in the table", INT4, INT8),
    Preset("dynamic-int8", "8-bit weights and activations, ranges at run time: for encoders", DYNAMIC, INT8),
)  # fmt: skip

PRESETS = {preset.name: dataclasses.replace(preset, shifted=True, outputs=OUTPUTS) for preset in _ALL}
