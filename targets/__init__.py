"""Backends, one for each artifact format, and the devices that run them. Found by name in `TARGETS`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from runtime.errors import UserError

if TYPE_CHECKING:
    from targets.base import Target

TARGETS = {
    "executorch": "targets.executorch.target:ExecuTorchTarget",
    "gguf": "targets.gguf.target:GgufTarget",
    "onnx": "targets.onnx.target:OnnxTarget",
    "ort": "targets.onnx.ort_target:OrtTarget",
    "ptl": "targets.torchscript.lite_target:LiteTarget",
    "torchscript": "targets.torchscript.target:TorchScriptTarget",
}


def get_target(name: str) -> Target:
    """The backend for a format. Raises UserError that lists the known ones."""
    if name not in TARGETS:
        raise UserError(f"unknown format '{name}'; known: {', '.join(TARGETS)}")
    module, attribute = TARGETS[name].split(":")
    target: Target = getattr(importlib.import_module(module), attribute)()
    return target
