"""Which formats have layers of different widths."""

from __future__ import annotations

from targets.gguf.architectures import architecture_of
from targets.gguf.architectures.uneven import refusal
from targets.widths import KV_HEADS


def uneven_refusal(format_name: str, architecture: str, key: str) -> str:
    """Why a format has one width for all layers; empty where each may have its own.

    format_name: of a recipe; architecture: the model class in config.json; key: NEURONS or KV_HEADS of targets.widths
    Raises UnsupportedError for an architecture that no format has.
    """
    declared = architecture_of(architecture)
    if format_name == "gguf":
        return refusal(declared)
    return "clients give all layers' caches one shape" if key == KV_HEADS else ""
