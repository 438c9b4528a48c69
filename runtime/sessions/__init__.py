"""Engines that open artifacts, by format. Each is imported only when it is opened."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from runtime.errors import ArtifactError
from runtime.sessions.base import TEXT2TEXT_GENERATION, is_encoder, task_of

if TYPE_CHECKING:
    from runtime.artifact import Artifact
    from runtime.measurement import RunOptions
    from runtime.sessions.base import Session

SESSIONS = {
    "executorch": "runtime.sessions.executorch:ExecuTorchSession",
    "gguf": "runtime.sessions.llamacpp:LlamaCppSession",
    "onnx": "runtime.sessions.onnxruntime:OnnxSession",
    "ort": "runtime.sessions.onnxruntime:OnnxSession",
    "ptl": "runtime.sessions.torchscript:TorchScriptSession",
    "torchscript": "runtime.sessions.torchscript:TorchScriptSession",
}
ENCODER_SESSIONS = {
    "executorch": "runtime.sessions.executorch:ExecuTorchEncoderSession",
    "gguf": "runtime.sessions.llamacpp_encoder:LlamaCppEncoderSession",
    "onnx": "runtime.sessions.onnxruntime:OnnxEncoderSession",
    "ort": "runtime.sessions.onnxruntime:OnnxEncoderSession",
    "ptl": "runtime.sessions.torchscript:TorchScriptEncoderSession",
    "torchscript": "runtime.sessions.torchscript:TorchScriptEncoderSession",
}

PAIR_SESSIONS = {"gguf": "runtime.sessions.llamacpp_pair:LlamaCppPairSession"}
"""Of an encoder and a decoder in one."""

MODULES = {
    "executorch": "executorch",
    "gguf": "llama_cpp",
    "onnx": "onnxruntime",
    "ort": "onnxruntime",
    "ptl": "torch",
    "torchscript": "torch",
}
"""The module that a format's engine is imported by."""
DISTRIBUTIONS = {"llama_cpp": "llama-cpp-python"}
"""What such a module is installed as, where that is not its own name."""


def open_session(artifact: Artifact, options: RunOptions) -> Session:
    """Open `artifact` in the engine for its format: a Session, or an EncoderSession where its task is an encoder's.

    Raises ArtifactError for an unknown format.
    """
    paired = task_of(artifact) == TEXT2TEXT_GENERATION
    sessions = PAIR_SESSIONS if paired else ENCODER_SESSIONS if is_encoder(artifact) else SESSIONS
    if artifact.format not in sessions:
        raise ArtifactError(f"{artifact.entry_path}: no engine opens '{artifact.format}'; known: {', '.join(sessions)}")
    module, name = sessions[artifact.format].split(":")
    session: Session = getattr(importlib.import_module(module), name).open(artifact, options)
    return session
