"""What decoders and encoders in llama.cpp share: the open file, its tokenizer and a context; on the CPU, by ctypes."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Any

from runtime.errors import EngineError, UserError
from runtime.host import default_threads
from runtime.sessions.limits import check_ids, check_length
from runtime.sessions.llamacpp_library import buffer_bytes, capture_log, load_library

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from runtime.artifact import Artifact
    from runtime.measurement import RunOptions

LOAD_MODE_NONE, LOAD_MODE_MMAP = 0, 1
NO_VOCABULARY = 0
FLASH_ATTENTION_AUTO, FLASH_ATTENTION_OFF, FLASH_ATTENTION_ON = -1, 0, 1


class LlamaCppModel:
    """An open GGUF file. Not for use from several threads.

    A session says how its context is made (`_tokens`, `_adapt`) and what of the file it refuses (`_refuse`).
    numpy is imported only where numbers are asked for, so that a process that measures does not carry it.
    """

    def __init__(self, artifact: Artifact, options: RunOptions) -> None:
        self._lib, version = load_library()
        self._model = self._context = None
        self._options, self._kv_type = options, options.kv_type_for(artifact.contract)
        self._log = capture_log()
        # Older releases do not export llama.cpp's own version.
        own = f" {self._lib.llama_version().decode()}" if hasattr(self._lib, "llama_version") else ""
        self.engine = f"llama.cpp{own} (llama-cpp-python {version})"
        self._path = artifact.entry_path
        self._buffers: dict[str, int] = {}
        try:
            self._load()
        except BaseException:
            self.close()
            raise
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self.n_vocab: int = self._lib.llama_vocab_n_tokens(self._vocab)

    def _load(self) -> None:
        if self._options.context < 1 or self._options.batch < 1:
            what = f"context {self._options.context} and batch {self._options.batch}"
            raise UserError(f"{what} have to be at least 1 token")
        self._check_options()
        self._model = self._lib.llama_model_load_from_file(os.fsencode(self._path), self._model_params())
        if not self._model:
            raise EngineError(f"{self._path}: llama.cpp does not load it: {self._log.cause()}")
        self._refuse(self._path)
        self._context = self._new_context()
        self._buffers = buffer_bytes(self._log.sizes)  # now: another session will empty the log

    def _check_options(self) -> None:
        """Raise UserError for options that are known to be wrong before the file is opened."""

    def _refuse(self, path: Path) -> None:
        """Raise UserError for what llama.cpp would abort on."""

    def _tokens(self) -> int:
        """Of the context."""
        return self._options.context

    def _adapt(self, params: Any) -> None:  # noqa: ANN401 - a ctypes struct
        """Change the parameters of a context."""

    def _new_context(self, **changes: int) -> Any:  # noqa: ANN401 - a ctypes pointer
        """A context of the open model. changes: parameters, over those of `_adapt`. Raises EngineError."""
        params = self._lib.llama_context_default_params()
        params.n_ctx = self._tokens()
        params.n_batch = params.n_ubatch = min(self._options.batch, params.n_ctx)
        params.n_threads = params.n_threads_batch = self._options.threads or default_threads()
        params.flash_attn_type = FLASH_ATTENTION_AUTO
        if self._kv_type == "f32":
            # Flash attention computes in f16 whatever the cache holds; who asks for f32 wants f32 (1e-6, not 1e-3).
            params.flash_attn_type = FLASH_ATTENTION_OFF
        self._adapt(params)
        for name, value in changes.items():
            setattr(params, name, value)
        context = self._lib.llama_init_from_model(self._model, params)
        if not context:
            what = f"llama.cpp cannot make a context of {params.n_ctx} tokens: {self._log.cause()}"
            raise EngineError(f"{self._path}: {what}")
        return context

    def _model_params(self) -> Any:  # noqa: ANN401 - a ctypes struct
        params = self._lib.llama_model_default_params()
        params.n_gpu_layers = 0
        if hasattr(params, "load_mode"):
            params.load_mode = LOAD_MODE_MMAP if self._options.mmap else LOAD_MODE_NONE
        else:
            params.use_mmap = self._options.mmap
        return params

    def _said(self, key: bytes) -> bytes:
        """A value of the open file's metadata as text; empty where it has none."""
        value = ctypes.create_string_buffer(64)
        self._lib.llama_model_meta_val_str(self._model, key, value, len(value))
        return value.value

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids of `text`; special tokens written in it are recognised. Lone surrogates become U+FFFD."""
        if self._lib.llama_vocab_type(self._vocab) == NO_VOCABULARY:  # llama.cpp would abort
            raise EngineError("the file holds no vocabulary, and text cannot be turned into tokens by it")
        data = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode("utf-8")
        room = len(data) + 8
        while True:
            tokens = (ctypes.c_int32 * room)()
            count: int = self._lib.llama_tokenize(self._vocab, data, len(data), tokens, room, add_special, True)
            if count >= 0:
                return list(tokens[:count])
            if -count <= room:
                raise EngineError(f"llama.cpp cannot tokenize a text of {len(data)} bytes")
            room = -count

    def _encode(self, context: Any, ids: Sequence[int], longest: int) -> None:  # noqa: ANN401 - a ctypes pointer
        """Have an encoder read a text, in one piece. Raises EngineError."""
        check_length(ids, longest)
        check_ids(ids, self.n_vocab)
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        status: int = self._lib.llama_encode(context, self._lib.llama_batch_get_one(tokens, len(ids)))
        if status:
            reason = self._log.cause()
            raise EngineError(f"{self._path}: llama.cpp cannot read {len(ids)} tokens (status {status}): {reason}")

    def special_text(self, which: str) -> str | None:
        """Text of the special token `which`, "bos" or "eos", or None where the file names none."""
        if which not in ("bos", "eos"):
            raise UserError(f"'{which}' is not a special token: ask for bos or eos")
        token: int = getattr(self._lib, f"llama_vocab_{which}")(self._vocab)
        if token < 0:
            return None
        text: bytes = self._lib.llama_vocab_get_text(self._vocab, token)
        return text.decode("utf-8", "replace")

    def memory_bytes(self) -> dict[str, int]:
        """What llama.cpp says it allocated: "weights" (repacked copies included), "kv_cache", "compute"."""
        return dict(self._buffers)

    def close(self) -> None:
        """Free the context and the model. A second call does nothing."""
        if self._context:
            self._lib.llama_free(self._context)
        if self._model:
            self._lib.llama_model_free(self._model)
        self._model = self._context = None
