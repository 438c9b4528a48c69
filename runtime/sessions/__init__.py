"""Engines that open artifacts, by format. Each is imported only when it is opened."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from runtime.errors import ArtifactError

if TYPE_CHECKING:
    from runtime.artifact import Artifact
    from runtime.measurement import RunOptions
    from runtime.sessions.base import Session

SESSIONS = {
    "gguf": "runtime.sessions.llamacpp:LlamaCppSession",
}


def open_session(artifact: Artifact, options: RunOptions) -> Session:
    """Open `artifact` in the engine for its format. Raises ArtifactError for an unknown format."""
    if artifact.format not in SESSIONS:
        raise ArtifactError(f"{artifact.entry_path}: no engine opens '{artifact.format}'; known: {', '.join(SESSIONS)}")
    module, name = SESSIONS[artifact.format].split(":")
    session: Session = getattr(importlib.import_module(module), name).open(artifact, options)
    return session
