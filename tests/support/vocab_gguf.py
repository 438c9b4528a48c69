"""A GGUF file that holds only a tokenizer, and llama.cpp's tokenizer on it."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import llama_cpp

from targets.gguf.header import encode
from targets.gguf.keyvalue import string

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from targets.gguf.keyvalue import KeyValue


def write_vocab(entries: Iterable[KeyValue], path: Path) -> Path:
    """Write a GGUF without tensors; llama.cpp opens it with vocab_only."""
    path.write_bytes(encode([string("general.architecture", "llama"), *entries], []))
    return path


class LlamaVocab:
    """llama.cpp's view of the tokenizer in a GGUF file."""

    def __init__(self, path: Path) -> None:
        llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
        options = llama_cpp.llama_model_default_params()
        options.vocab_only = True
        options.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise RuntimeError(f"llama.cpp refuses {path}")
        self.vocab = llama_cpp.llama_model_get_vocab(self._model)

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        """Ids of `text`, special tokens in it recognised."""
        data = text.encode("utf-8")
        room = len(data) + 8
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self.vocab, data, len(data), ids, room, add_special, True)
        return list(ids[:count])

    def close(self) -> None:
        """Free the model."""
        llama_cpp.llama_model_free(self._model)


@llama_cpp.llama_log_callback
def _ignore(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    pass


_SILENT = _ignore
