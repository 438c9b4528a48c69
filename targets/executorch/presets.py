"""The quantization presets of the ExecuTorch target."""

from __future__ import annotations

import dataclasses

from targets.pytorch.presets import FLOAT, INT4, INT8, Preset

_ALL = (
    Preset("fp32", "32-bit floats: the model as it is", FLOAT, FLOAT),
    Preset("int8", "8-bit weights with a scale a row; activations in 8 bits, with a range a token, at run time",
           INT8, INT8),
    Preset("8da4w", "4-bit weights in groups of 32, 8 bits where 4 cost most and in the table; activations as int8's",
           INT4, INT8),
)  # fmt: skip

PRESETS = {preset.name: dataclasses.replace(preset, copies_table=True) for preset in _ALL}
