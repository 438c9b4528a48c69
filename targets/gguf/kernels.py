"""ggml's own quantization kernels, called in process.

`ggml_quantize_chunk` of the libggml-base that llama-cpp-python carries is the code that llama-quantize runs, so
the bytes are the same. ctypes releases the GIL during the call: several threads run it at once.
Only libggml-base is loaded, not llama.cpp itself and not the llama_cpp Python package.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import EngineError, UserError
from targets.gguf.simd import verified as faster
from targets.gguf.types import IMPORTANCE_TYPES

if TYPE_CHECKING:
    import numpy.typing as npt

    from targets.gguf.types import GgmlType

_NAMES = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")


def library_path() -> Path:
    """Where llama-cpp-python keeps libggml-base. Raises UserError that says what to install."""
    spec = importlib.util.find_spec("llama_cpp")
    for root in (spec.submodule_search_locations or []) if spec else []:
        for name in _NAMES:
            path = Path(root) / "lib" / name
            if path.is_file():
                return path
    raise UserError("libggml-base was not found; install it with: pip install llama-cpp-python")


@functools.cache
def _library() -> ctypes.CDLL:
    """libggml-base with the one function declared: src, dst, first row, rows, row length, importance matrix."""
    library = ctypes.CDLL(str(library_path()))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    library.ggml_validate_row_data.restype = ctypes.c_bool
    library.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    return library


def quantize_rows(
    values: npt.NDArray[np.float32], kind: GgmlType, importance: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.uint8]:
    """Encode float32 rows, shape (rows, columns), into the type's bytes, shape (rows, bytes of a row).

    importance: what the squared error in each column counts, shape (columns,), as llama.cpp's importance matrix says it
    Raises ValueError where the columns do not divide into blocks, and without the importance that the type needs (ggml
    would end the process); OverflowError where a value is too large for the
    type: float16, also that of a block's scale, ends at 65504.
    """
    columns = values.shape[1]
    row_bytes = kind.row_bytes(columns)
    if kind.name == "F32":
        return np.ascontiguousarray(values, "<f4").view(np.uint8).reshape(len(values), row_bytes)
    if importance is None and kind.name in IMPORTANCE_TYPES:
        raise ValueError(f"{kind.name} cannot be written without an importance matrix")
    if importance is not None and importance.shape != (columns,):
        raise ValueError(f"importance of shape {importance.shape} is not for rows of {columns} weights")
    source = np.ascontiguousarray(values, np.float32)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    out = faster.quantize(kind.name, source, weights, functools.partial(by_ggml, kind))
    if out is None:
        out = by_ggml(kind, source, weights)
    if not _library().ggml_validate_row_data(kind.id, out.ctypes.data, out.nbytes):
        raise OverflowError(f"a value is too large for {kind.name}")
    return out


def by_ggml(
    kind: GgmlType, source: npt.NDArray[np.float32], weights: npt.NDArray[np.float32] | None
) -> npt.NDArray[np.uint8]:
    """What ggml makes of C-contiguous rows. Raises EngineError where it writes another number of bytes."""
    rows, columns = source.shape
    out = np.empty((rows, kind.row_bytes(columns)), np.uint8)
    matrix = None if weights is None else weights.ctypes.data
    written = _library().ggml_quantize_chunk(kind.id, source.ctypes.data, out.ctypes.data, 0, rows, columns, matrix)
    if written != out.nbytes:
        raise EngineError(f"ggml wrote {written} bytes of {kind.name} where {out.nbytes} were due; its version differs")
    return out
