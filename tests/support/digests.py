"""Digests of a GGUF file's tensors."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING

from targets.gguf.reading import read_gguf_facts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def tensor_digests(path: Path) -> dict[str, list[str]]:
    """Type and first 16 hex digits of the SHA-256 of every tensor's bytes, by name."""
    raw = path.read_bytes()
    return {
        name: [fact.dtype, hashlib.sha256(raw[fact.offset : fact.offset + fact.n_bytes]).hexdigest()[:16]]
        for name, fact in read_gguf_facts(path, "").tensors.items()
    }


def types_digest(types: Mapping[str, str]) -> str:
    """How many tensors have each type, for people, and 16 hex digits of a SHA-256 of which has which."""
    counts = Counter(kind.lower() for kind in types.values())
    lines = "".join(f"{name} {kind.lower()}\n" for name, kind in sorted(types.items()))
    said = " ".join(f"{kind}:{count}" for kind, count in sorted(counts.items()))
    return f"{said} {hashlib.sha256(lines.encode()).hexdigest()[:16]}"
