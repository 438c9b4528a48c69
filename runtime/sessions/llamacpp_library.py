"""llama.cpp's shared library as llama-cpp-python carries it: loading, guarding, and reading its log.

Only the ctypes module `llama_cpp.llama_cpp` is imported. The package's own `__init__` pulls in a high-level
part (jinja2, diskcache, numpy, …) that would add tens of megabytes to the process being measured.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.errors import UserError
from runtime.openmp import wait_briefly

PACKAGE = "llama_cpp"
SUPPORTED = ((0, 3, 36), (0, 4, 0))
"""Versions of llama-cpp-python: at least the first, below the second. Its structs move between releases."""
INSTALL = "pip install 'llama-cpp-python>=0.3.36,<0.4'"

MODEL_DEFAULTS = {"split_mode": 1, "main_gpu": 0, "use_mmap": True, "vocab_only": False, "check_tensors": False,
                  "use_extra_bufts": True}  # fmt: skip
CONTEXT_DEFAULTS = {"n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "rope_scaling_type": -1,
                    "pooling_type": -1, "flash_attn_type": -1, "rope_freq_base": 0.0, "type_k": 1, "type_v": 1,
                    "offload_kqv": True, "embeddings": False}  # fmt: skip
"""Defaults that llama.cpp has kept for years: where one reads differently, the struct's layout has moved."""

LEVEL_WARN, LEVEL_ERROR, LEVEL_CONT = 3, 4, 5
_BUFFER = re.compile(r"(?P<where>\S+)\s+(?P<kind>\w+(?: state)?)\s+buffer size\s*=\s*(?P<mib>\d+(?:\.\d+)?)\s*MiB")
_PREFIX = re.compile(r"^\w+: (?:error loading model(?: \w+)?: )?")
_NOISE = ("failed to load model", "failed to initialize the context: failed", "failed to create context")


@dataclass
class Log:
    """What llama.cpp said that we need: lines of buffer sizes, and warnings and errors in order."""

    sizes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def take(self, level: int, text: str) -> None:
        """One message of llama.cpp's log callback."""
        line = text.rstrip("\n")
        if "buffer size" in line:
            self.sizes.append(line)
        elif level == LEVEL_ERROR and line.strip():
            self.errors.append(line)

    def clear(self) -> None:
        """Forget everything, before another load."""
        self.sizes.clear()
        self.errors.clear()

    def cause(self) -> str:
        """The first error that names a cause, without llama.cpp's function names; llama.cpp ends with generic ones."""
        texts = [_PREFIX.sub("", line).strip() for line in self.errors]
        specific = [text for text in texts if not text.startswith(_NOISE)]
        return (specific or texts or ["no reason given"])[0]


def buffer_bytes(lines: list[str]) -> dict[str, int]:
    """Bytes allocated by kind, from llama.cpp's `… buffer size = 92.10 MiB` lines.

    "weights" and "kv_cache" are sums: a model of several files, repacked copies and a sliding-window cache each
    print their own line. "weights_mapped" is the part of the weights that is mapped from the file. A compute
    buffer that is reserved again prints a second line that replaces the first.
    """
    totals = {"weights": 0, "weights_mapped": 0, "kv_cache": 0, "compute": 0}
    compute: dict[tuple[str, str], int] = {}
    for line in lines:
        match = _BUFFER.search(line)
        if match is None:
            continue
        size, kind = round(float(match["mib"]) * 2**20), match["kind"]
        if kind in ("model", "LoRA"):
            totals["weights"] += size
            totals["weights_mapped"] += size if match["where"].endswith("_Mapped") else 0
        elif kind in ("KV", "RS") or kind.endswith("state"):
            totals["kv_cache"] += size
        elif kind in ("compute", "output"):
            compute[match["where"], kind] = size
    return {**totals, "compute": sum(compute.values())}


@functools.cache
def load_library() -> tuple[Any, str]:
    """The module `llama_cpp.llama_cpp` with its library loaded, and the package's version.

    Raises UserError where it is missing, of an unsupported version, or its structs have moved.
    """
    wait_briefly()
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"llama.cpp is needed to open a .gguf file and is not installed: {INSTALL}")
    locations = list(spec.submodule_search_locations)
    version = _version(Path(locations[0]) / "__init__.py")
    check_version(version)
    try:
        library = _import_alone(locations)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise UserError(f"llama-cpp-python {version} does not load ({error}); reinstall it: {INSTALL}") from error
    check_layout(library, version)
    library.llama_backend_init()
    return library, version


def check_version(version: str) -> None:
    """Raise UserError where `version` is outside SUPPORTED."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if not SUPPORTED[0] <= numbers < SUPPORTED[1]:
        raise UserError(f"llama-cpp-python {version} is outside the range that packlight supports: {INSTALL}")


def check_layout(library: Any, version: str) -> None:  # noqa: ANN401 - a module of ctypes declarations
    """Raise UserError where default parameters do not read as expected: the struct layout has moved."""
    checks: list[tuple[Any, dict[str, Any]]] = [
        (library.llama_model_default_params(), MODEL_DEFAULTS),
        (library.llama_context_default_params(), CONTEXT_DEFAULTS),
    ]
    for params, expected in checks:
        present = {name for name, *_ in params._fields_}
        for name in expected.keys() & present:
            if getattr(params, name) != expected[name]:
                raise UserError(
                    f"llama-cpp-python {version}: default {name} reads {getattr(params, name)}, not {expected[name]}; "
                    f"its structs do not fit its library, reinstall it: {INSTALL}"
                )


def _version(init: Path) -> str:
    """`__version__` without running the package (importlib.metadata would import the email package)."""
    try:
        match = re.search(r"__version__\s*=\s*[\"']([^\"']+)", init.read_text(encoding="utf-8"))
    except OSError:
        match = None
    return match[1] if match else "0"


def _import_alone(locations: list[str]) -> types.ModuleType:
    """Import the submodule under a bare stand-in for its package, then remove every trace from sys.modules.

    With the trace left in place, a later real `import llama_cpp` would find a package without its submodules bound.
    """
    if PACKAGE in sys.modules:
        return importlib.import_module(f"{PACKAGE}.llama_cpp")
    stub = types.ModuleType(PACKAGE)
    stub.__path__ = locations
    sys.modules[PACKAGE] = stub
    try:
        return importlib.import_module(f"{PACKAGE}.llama_cpp")
    finally:
        for name in [name for name in sys.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")]:
            del sys.modules[name]


LOG = Log()


@functools.cache
def _log_callback() -> Any:  # noqa: ANN401 - a ctypes function object
    """The C callback. Cached for the process's life: llama.cpp keeps a pointer to it."""
    library, _ = load_library()

    def take(level: int, text: bytes | None, _user: int | None) -> None:
        LOG.take(level, (text or b"").decode("utf-8", "replace"))

    return library.llama_log_callback(take)


def capture_log() -> Log:
    """Send llama.cpp's log into LOG (emptied), and return it. Another owner of the log is displaced."""
    library, _ = load_library()
    LOG.clear()
    library.llama_log_set(_log_callback(), None)
    return LOG
