"""What lies beside the weights of a model's directory: tokenizer, settings, the card."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".pth", ".pt", ".gguf", ".onnx")
_MODULE = re.compile(r"\d+_[A-Za-z]+")
"""Directories of sentence-transformers, such as 1_Pooling."""


def copy_beside_weights(source: Path, room: Path, only: tuple[str, ...] = ("",), but: tuple[str, ...] = ()) -> None:
    """Copy a directory's files but its weights. only, but: beginnings of names that are copied, and that are not"""
    for path in source.iterdir():
        if not path.name.startswith(only) or (but and path.name.startswith(but)):
            continue
        if path.is_file() and not path.name.endswith(_WEIGHTS):
            shutil.copyfile(path, room / path.name)
        elif path.is_dir() and _MODULE.fullmatch(path.name):
            shutil.copytree(path, room / path.name)
