"""Digests of a GGUF file's tensors."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from targets.gguf.reading import read_gguf_facts

if TYPE_CHECKING:
    from pathlib import Path


def tensor_digests(path: Path) -> dict[str, list[str]]:
    """Type and first 16 hex digits of the SHA-256 of every tensor's bytes, by name."""
    raw = path.read_bytes()
    return {
        name: [fact.dtype, hashlib.sha256(raw[fact.offset : fact.offset + fact.n_bytes]).hexdigest()[:16]]
        for name, fact in read_gguf_facts(path, "").tensors.items()
    }
