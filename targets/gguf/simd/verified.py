"""The quantizers by type, each tried against the ggml that is installed before it is used."""

from __future__ import annotations

import functools
import importlib
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]
    U8 = npt.NDArray[np.uint8]
    Reference = Callable[[F32, F32 | None], U8]
    """ggml itself: rows (rows, columns) and importance (columns,) or None to bytes (rows, bytes of a row)."""
    Quantizer = Callable[[F32, F32 | None], tuple[U8, npt.NDArray[np.bool_]]]
    """The same to blocks (blocks, bytes of a block), and which of them ggml has to do itself."""

_PLACES: dict[str, tuple[str, dict[str, Any]]] = {
    "Q2_K": ("shifted", {"bits": 2}), "Q3_K": ("three", {}), "Q4_K": ("shifted", {"bits": 4}),
    "Q5_K": ("shifted", {"bits": 5}), "Q6_K": ("signed", {}),
    "IQ4_NL": ("nonlinear", {"grouped": False}), "IQ4_XS": ("nonlinear", {"grouped": True}),
    "Q4_0": ("symmetric", {"bits": 4}), "Q5_0": ("symmetric", {"bits": 5}),
    **{name: ("lattice", {"name": name}) for name in ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")},
}  # fmt: skip
NAMES = tuple(_PLACES)
"""Types that have a kernel."""
ONLY_WEIGHTED = ("Q4_0", "Q5_0", "IQ2_XXS", "IQ2_XS")
"""Those that have it for importance alone: without, there is nothing to search, or ggml does not do it."""
_LOCK = threading.Lock()
_TRIED: dict[tuple[str, bool], Quantizer | None] = {}


def quantize(name: str, values: F32, importance: F32 | None, reference: Reference) -> U8 | None:
    """What `reference` gives, faster; None where this type, or this machine's ggml, leaves it to that.

    values: (rows, columns), finite, columns whole blocks of the type
    """
    quantizer = _tried(name, importance is not None, reference) if values.size else None
    if quantizer is None:
        return None
    with np.errstate(all="ignore"):  # ggml divides by zero as well, and throws the result away
        blocks, odd = quantizer(values, importance)
    if odd.any():
        _repair(blocks, np.flatnonzero(odd), values, importance, reference)
    return blocks.reshape(len(values), -1)


def _repair(blocks: U8, odd: npt.NDArray[np.intp], values: F32, importance: F32 | None, reference: Reference) -> None:
    """Let ggml do some blocks, in place."""
    size = values.size // len(blocks)
    rows = values.reshape(-1, size)
    if importance is None:
        blocks[odd] = reference(rows[odd], None)
        return
    weights = importance.reshape(-1, size)
    for block in odd:
        blocks[block] = reference(rows[block : block + 1], weights[block % len(weights)])[0]


def _tried(name: str, weighted: bool, reference: Reference) -> Quantizer | None:
    """The quantizer of a type, where it gives the same bytes as ggml does here; several threads may ask at once."""
    key = (name, weighted)
    if key not in _TRIED:
        with _LOCK:
            if key not in _TRIED:
                quantizer = None if name in ONLY_WEIGHTED and not weighted else _find(name)
                _TRIED[key] = quantizer if quantizer is not None and _agrees(quantizer, weighted, reference) else None
    return _TRIED[key]


def _find(name: str) -> Quantizer | None:
    if name not in _PLACES:
        return None
    module, options = _PLACES[name]
    try:
        found = importlib.import_module(f"targets.gguf.simd.{module}").quantize
    except (ImportError, OSError):  # no llvmlite for this machine
        return None
    return functools.partial(found, **options)


def _agrees(quantizer: Quantizer, weighted: bool, reference: Reference) -> bool:
    """Whether the bytes are ggml's own on values of many kinds."""
    values = probe()
    importance = np.random.default_rng(1).random((1, values.shape[1]), np.float32)[0] if weighted else None
    try:
        with np.errstate(all="ignore"):
            blocks, odd = quantizer(values, importance)
    except (RuntimeError, OSError):  # of LLVM, on a processor that it does not know
        return False
    expected = reference(values, importance).reshape(blocks.shape)
    return bool((blocks == expected)[~odd].all()) and not odd.all()


def probe() -> F32:
    """Rows like weights, and rows like none: heavy tails, constants, one sign, few levels, very small, very large."""
    rng = np.random.default_rng(0)
    plain = rng.standard_normal((16, 512)).astype(np.float32)
    rows = [plain * np.float32(0.02), plain**3, np.abs(plain), -np.abs(plain), np.round(plain),
            plain * np.float32(1e-6), plain * np.float32(1e3), np.sign(plain) * np.float32(0.5)]  # fmt: skip
    flat = np.repeat(rng.standard_normal((8, 16)).astype(np.float32), 32, axis=1)
    alone = np.zeros((4, 512), np.float32)
    alone[:, ::37] = rng.standard_normal((4, 14))
    return np.ascontiguousarray(np.concatenate([*rows, flat, alone]))
