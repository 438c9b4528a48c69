"""The engines' own tools that measure on a phone, by format of the artifact."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from runtime.errors import HostError

if TYPE_CHECKING:
    from runtime.hosts.adb.engines.base import Engine

ENGINES = {
    "executorch": "runtime.hosts.adb.engines.executorch:ExecuTorchTools",
    "gguf": "runtime.hosts.adb.engines.llamacpp:LlamaCppTools",
    "onnx": "runtime.hosts.adb.engines.onnxruntime:OnnxRuntimeTools",
    "ort": "runtime.hosts.adb.engines.onnxruntime:OnnxRuntimeTools",
}


def engine_for(artifact_format: str) -> Engine:
    """The tools for a format. Raises HostError where there are none."""
    if artifact_format not in ENGINES:
        raise HostError(f"--on adb: no tool measures '{artifact_format}' on a phone; known: {', '.join(ENGINES)}")
    module, name = ENGINES[artifact_format].split(":")
    engine: Engine = getattr(importlib.import_module(module), name)()
    return engine
