"""How a directory of sentence-transformers makes one embedding of a text's last hidden states: `Pooling`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

_MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
_DEFAULT = "1_Pooling"
_PLAIN = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True)
class Pooling:
    """mode: "mean" over the tokens, special ones too, or "cls", the first token; normalize: to length 1 after that."""

    mode: str
    normalize: bool

    def __call__(self, states: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The embedding, shape (hidden,), of the last hidden states of one text, shape (tokens, hidden)."""
        pooled = states.mean(axis=0) if self.mode == "mean" else states[0]
        if self.normalize:
            pooled = pooled / max(float(np.linalg.norm(pooled)), 1e-12)
        return np.asarray(pooled, dtype=np.float32)


def read_pooling(directory: Path) -> Pooling | None:
    """The Pooling of a model's directory.

    None where it has none, and where it does more than is known here (a dense layer, several modes at once).
    Raises ModelError for a file that is not what it should be.
    """
    modules = _read(directory / "modules.json")
    kinds = [_kind(module) for module in modules or ()]
    if any(kind not in _PLAIN for kind in kinds):
        return None
    folder = next((str(m.get("path", _DEFAULT)) for m in modules or () if _kind(m) == "Pooling"), _DEFAULT)
    # A path from a file of unknown origin stays inside the directory.
    config = _read(directory / PurePosixPath(folder).name / "config.json")
    if not isinstance(config, dict):
        return None
    chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    named = config.get("pooling_mode")
    modes = [_MODES.get(key) for key in chosen] or ([named] if isinstance(named, str) else [])
    if len(modes) != 1 or modes[0] not in _MODES.values():
        return None
    return Pooling(str(modes[0]), "Normalize" in kinds)


def _kind(module: Any) -> str:  # noqa: ANN401 - JSON
    """The class of a module: the last part of its type."""
    return str(module.get("type", "")).rsplit(".", 1)[-1] if isinstance(module, dict) else ""


def _read(path: Path) -> Any:  # noqa: ANN401 - JSON
    """The JSON in a file, None where there is no file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):  # the latter of a .gguf source
        return None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error}); get the file again") from error
