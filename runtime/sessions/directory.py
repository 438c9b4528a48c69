"""What engines share that open a directory: the tokenizer beside the model, and memory by difference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.memory import anonymous_bytes
from runtime.sessions.onnx_tokenizer import DirectoryTokenizer

if TYPE_CHECKING:
    from runtime.artifact import Artifact
    from runtime.measurement import RunOptions


class DirectoryEngine:
    """An open model and the tokenizer beside it. Who inherits sets _weights and _loaded once the model is loaded.

    _weights: anonymous bytes that loading added; _loaded: those of the process after it
    """

    _weights = 0
    _loaded = 0

    def __init__(self, artifact: Artifact, options: RunOptions) -> None:
        self._artifact, self._options = artifact, options
        self._tokenizer = DirectoryTokenizer(artifact.root)

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """See `Session`."""
        return self._tokenizer.tokenize(text, add_special=add_special)

    def chat_template(self) -> str | None:
        """See `Session`."""
        return self._tokenizer.chat_template()

    def special_text(self, which: str) -> str | None:
        """See `Session`."""
        return self._tokenizer.special_text(which)

    def memory_bytes(self) -> dict[str, int]:
        """What loading added (packed copies of weights), the cache, and what running added beside it; in bytes.

        These engines do not say what they allocated: these are differences of the process's anonymous memory. Weights
        that are mapped from the file come on top.
        """
        cache = self._cache_bytes()
        grown = max((anonymous_bytes() or 0) - self._loaded - cache, 0)
        return {"weights": self._weights, "weights_mapped": 0, "kv_cache": cache, "compute": grown}

    def _cache_bytes(self) -> int:
        return 0
