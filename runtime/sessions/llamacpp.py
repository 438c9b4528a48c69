"""GGUF files in llama.cpp, through llama-cpp-python's low-level ctypes bindings, on the CPU."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Any

from runtime.errors import EngineError, UserError
from runtime.host import default_threads
from runtime.measurement import KV_FLOATS
from runtime.sessions.limits import check_ids, check_room
from runtime.sessions.llamacpp_library import buffer_bytes, capture_log, load_library

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from runtime.artifact import Artifact
    from runtime.measurement import RunOptions

KV_TYPE_IDS = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30}
"""ggml's type numbers, which are part of the GGUF format and do not move."""
LOAD_MODE_NONE, LOAD_MODE_MMAP = 0, 1
FLASH_ATTENTION_AUTO, FLASH_ATTENTION_OFF, FLASH_ATTENTION_ON = -1, 0, 1
NO_SLOT = 1
NO_VOCABULARY = 0
LEARNED_POSITIONS = (b"gpt2", b"starcoder")
"""Architectures that add a learned row for every position: they have no more rows than they were made for."""


class LlamaCppSession:
    """An open GGUF file and one sequence of context. Not for use from several threads.

    n_past counts the tokens in the context. numpy is imported only where logits are asked for, so that a process
    that measures speed and memory does not carry it.
    """

    def __init__(self, artifact: Artifact, options: RunOptions) -> None:
        self._lib, version = load_library()
        self._model = self._context = self._sampler = None
        self._options, self._kv_type = options, options.kv_type_for(artifact.contract)
        self._log = capture_log()
        # Older releases do not export llama.cpp's own version.
        own = f" {self._lib.llama_version().decode()}" if hasattr(self._lib, "llama_version") else ""
        self.engine = f"llama.cpp{own} (llama-cpp-python {version})"
        self.n_past = 0
        self._buffers: dict[str, int] = {}
        try:
            self._load(artifact)
        except BaseException:
            self.close()
            raise
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self.n_vocab: int = self._lib.llama_vocab_n_tokens(self._vocab)
        self.n_context: int = self._lib.llama_n_ctx(self._context)

    @classmethod
    def open(cls, artifact: Artifact, options: RunOptions) -> LlamaCppSession:
        """Load the file and allocate its context. Raises EngineError with llama.cpp's own reason."""
        return cls(artifact, options)

    def _load(self, artifact: Artifact) -> None:
        path = artifact.entry_path
        context_params = self._context_params()
        self._model = self._lib.llama_model_load_from_file(os.fsencode(path), self._model_params())
        if not self._model:
            raise EngineError(f"{path}: llama.cpp does not load it: {self._log.cause()}")
        self._refuse_endless(path)
        self._refuse_unlearned(path)
        self._context = self._lib.llama_init_from_model(self._model, context_params)
        if not self._context:
            raise EngineError(
                f"{path}: llama.cpp cannot make a context of {self._options.context} tokens: {self._log.cause()}"
            )
        # A chain keeps its buffer of candidates; a bare sampler would allocate one for every token.
        self._sampler = self._lib.llama_sampler_chain_init(self._lib.llama_sampler_chain_default_params())
        self._lib.llama_sampler_chain_add(self._sampler, self._lib.llama_sampler_init_greedy())
        self._buffers = buffer_bytes(self._log.sizes)  # now: another session will empty the log

    def _said(self, key: bytes) -> bytes:
        """A value of the file's metadata as text; empty where it has none."""
        value = ctypes.create_string_buffer(64)
        self._lib.llama_model_meta_val_str(self._model, key, value, len(value))
        return value.value

    def _refuse_endless(self, path: Path) -> None:
        """Raise EngineError for a model that has no next token: of encoders llama.cpp gives logits that are all 0."""
        arch = self._said(b"general.architecture")
        if self._said(arch + b".attention.causal") == b"false" or self._lib.llama_model_has_encoder(self._model):
            what = f"a model of the architecture '{arch.decode('utf-8', 'replace')}' does not continue a text"
            raise EngineError(f"{path}: {what}, and is not run here; export it with --no-verify --no-measure")

    def _refuse_unlearned(self, path: Path) -> None:
        """Raise UserError for more tokens than a model with a learned row for each position has: llama.cpp aborts."""
        longest = self._lib.llama_model_n_ctx_train(self._model)
        if self._said(b"general.architecture") in LEARNED_POSITIONS and self._options.context > longest:
            what = f"holds {longest} tokens of context, not {self._options.context}"
            raise UserError(f"{path}: {what}; use --context {longest} or fewer")

    def _model_params(self) -> Any:  # noqa: ANN401 - a ctypes struct
        params = self._lib.llama_model_default_params()
        params.n_gpu_layers = 0
        if hasattr(params, "load_mode"):
            params.load_mode = LOAD_MODE_MMAP if self._options.mmap else LOAD_MODE_NONE
        else:
            params.use_mmap = self._options.mmap
        return params

    def _context_params(self) -> Any:  # noqa: ANN401 - a ctypes struct
        options, kv_type = self._options, self._kv_type
        if kv_type not in KV_TYPE_IDS:
            raise UserError(f"'{kv_type}' is not a type of KV cache; known: {', '.join(KV_TYPE_IDS)}")
        if options.context < 1 or options.batch < 1:
            raise UserError(f"context {options.context} and batch {options.batch} have to be at least 1 token")
        params = self._lib.llama_context_default_params()
        params.n_ctx = options.context
        params.n_batch = params.n_ubatch = min(options.batch, options.context)
        params.n_threads = params.n_threads_batch = options.threads or default_threads()
        params.type_k = params.type_v = KV_TYPE_IDS[kv_type]
        # As llama.cpp's own tools run: a sliding layer keeps its window, not the whole context.
        params.swa_full = False
        quantized = kv_type not in KV_FLOATS
        # llama.cpp can read a quantized V cache only in its flash attention.
        params.flash_attn_type = FLASH_ATTENTION_ON if quantized else FLASH_ATTENTION_AUTO
        if kv_type == "f32":
            # Flash attention computes in f16 whatever the cache holds; who asks for f32 wants f32 (1e-6, not 1e-3).
            params.flash_attn_type = FLASH_ATTENTION_OFF
        return params

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

    def chat_template(self) -> str | None:
        """The Jinja source of the chat template that the file carries, or None."""
        template: bytes | None = self._lib.llama_model_chat_template(self._model, None)
        return None if template is None else template.decode("utf-8", "replace")

    def special_text(self, which: str) -> str | None:
        """Text of the special token `which`, "bos" or "eos", or None where the file names none."""
        if which not in ("bos", "eos"):
            raise UserError(f"'{which}' is not a special token: ask for bos or eos")
        token: int = getattr(self._lib, f"llama_vocab_{which}")(self._vocab)
        if token < 0:
            return None
        text: bytes = self._lib.llama_vocab_get_text(self._vocab, token)
        return text.decode("utf-8", "replace")

    def reset(self) -> None:
        """Forget the context."""
        # The cells keep their old values, which nothing reads: clearing 45 MB each time would only cost time.
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), False)
        self.n_past = 0

    def prefill(self, ids: Sequence[int]) -> None:
        """Evaluate a prompt after what the context holds, keeping the logits of its last token only."""
        for start in range(0, len(ids), self._batch):
            self._evaluate(ids[start : start + self._batch])

    def decode(self, token: int) -> None:
        """Evaluate one more token."""
        self._evaluate((token,))

    def greedy(self) -> int:
        """The token with the largest logit after the last evaluated one."""
        token: int = self._lib.llama_sampler_sample(self._sampler, self._context, -1)
        return token

    def last_logits(self) -> npt.NDArray[np.float32]:
        """Logits after the last evaluated token, shape (n_vocab,), a copy."""
        if not self.n_past:
            raise EngineError("no logits before a token is evaluated")
        return self._copy(self._lib.llama_get_logits_ith(self._context, -1), 1).reshape(-1)

    def all_logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Reset, evaluate `ids` and return the logits of every position, shape (len(ids), n_vocab), float32.

        With a batch of 512 these are the numbers that llama-perplexity scores.
        """
        import numpy as np

        self.reset()
        logits = np.empty((len(ids), self.n_vocab), np.float32)
        for start in range(0, len(ids), self._batch):
            piece = ids[start : start + self._batch]
            self._evaluate(piece, all_outputs=True)
            logits[start : start + len(piece)] = self._copy(self._lib.llama_get_logits(self._context), len(piece))
        return logits

    def _copy(self, pointer: Any, rows: int) -> npt.NDArray[np.float32]:  # noqa: ANN401 - a ctypes pointer
        import numpy as np

        copy: npt.NDArray[np.float32] = np.ctypeslib.as_array(pointer, shape=(rows, self.n_vocab)).copy()
        return copy

    @property
    def _batch(self) -> int:
        return min(self._options.batch, self._options.context)

    def _evaluate(self, ids: Sequence[int], *, all_outputs: bool = False) -> None:
        check_room(len(ids), self.n_past, self.n_context)
        check_ids(ids, self.n_vocab)
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        batch = self._lib.llama_batch_get_one(tokens, len(ids))
        if all_outputs:
            flags = (ctypes.c_int8 * len(ids))(*([1] * len(ids)))
            batch.logits = ctypes.cast(flags, ctypes.POINTER(ctypes.c_int8))
        status: int = self._lib.llama_decode(self._context, batch)
        if status:
            reason = "no room in the KV cache" if status == NO_SLOT else self._log.cause()
            raise EngineError(
                f"llama.cpp cannot evaluate {len(ids)} tokens after {self.n_past} (status {status}): {reason}"
            )
        self.n_past += len(ids)

    def memory_bytes(self) -> dict[str, int]:
        """What llama.cpp says it allocated: "weights" (repacked copies included), "kv_cache", "compute"."""
        return dict(self._buffers)

    def close(self) -> None:
        """Free the context and the model. A second call does nothing."""
        if self._sampler:
            self._lib.llama_sampler_free(self._sampler)
        if self._context:
            self._lib.llama_free(self._context)
        if self._model:
            self._lib.llama_model_free(self._model)
        self._sampler = self._context = self._model = None
