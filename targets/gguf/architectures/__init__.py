"""The architectures that can be written as GGUF. To add one: declare it in a file here and name it in `_ALL`."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from runtime.errors import UnsupportedError
from targets.gguf.architectures.gemma import GEMMA3
from targets.gguf.architectures.llama import LLAMA
from targets.gguf.architectures.qwen import QWEN2, QWEN3

if TYPE_CHECKING:
    from targets.gguf.architectures.base import Architecture

_ALL = (LLAMA, QWEN2, QWEN3, GEMMA3)

ARCHITECTURES: dict[str, Architecture] = {name: entry for entry in _ALL for name in entry.classes}


def architecture_of(name: str) -> Architecture:
    """The architecture for a model class of config.json. Raises UnsupportedError that names the nearest known ones."""
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    near = difflib.get_close_matches(name, ARCHITECTURES, n=3, cutoff=0.5) or sorted(ARCHITECTURES)
    raise UnsupportedError(
        f"config.json: architecture '{name}' cannot be written as GGUF yet; known and near: {', '.join(near)} "
        "(CONTRIBUTING.md says how to add one)"
    )
