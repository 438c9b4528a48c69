"""GGUF files of decoders in llama.cpp, through llama-cpp-python's low-level ctypes bindings, on the CPU."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from runtime.errors import EngineError, UserError
from runtime.measurement import KV_FLOATS
from runtime.sessions.limits import check_ids, check_room
from runtime.sessions.llamacpp_model import FLASH_ATTENTION_ON, LlamaCppModel

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from runtime.artifact import Artifact
    from runtime.measurement import RunOptions

KV_TYPE_IDS = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30}
"""ggml's type numbers, which are part of the GGUF format and do not move."""
NO_SLOT = 1
LEARNED_POSITIONS = (b"gpt2", b"starcoder")
"""Architectures that add a learned row for every position: they have no more rows than they were made for."""


class LlamaCppSession(LlamaCppModel):
    """An open decoder and one sequence of context; n_past counts the tokens in the context."""

    def __init__(self, artifact: Artifact, options: RunOptions) -> None:
        self._sampler = None
        self.n_past = 0
        super().__init__(artifact, options)
        self.n_context: int = self._lib.llama_n_ctx(self._context)
        # A chain keeps its buffer of candidates; a bare sampler would allocate one for every token.
        self._sampler = self._lib.llama_sampler_chain_init(self._lib.llama_sampler_chain_default_params())
        self._lib.llama_sampler_chain_add(self._sampler, self._lib.llama_sampler_init_greedy())

    @classmethod
    def open(cls, artifact: Artifact, options: RunOptions) -> LlamaCppSession:
        """Load the file and allocate its context. Raises EngineError with llama.cpp's own reason."""
        return cls(artifact, options)

    def _check_options(self) -> None:
        if self._kv_type not in KV_TYPE_IDS:
            raise UserError(f"'{self._kv_type}' is not a type of KV cache; known: {', '.join(KV_TYPE_IDS)}")

    def _refuse(self, path: Path) -> None:
        """Also EngineError for a model that has no next token: of encoders llama.cpp gives logits that are all 0.

        Of a model with a learned row for each position more tokens than it has are a UserError: llama.cpp aborts.
        """
        arch = self._said(b"general.architecture")
        if self._said(arch + b".attention.causal") == b"false" or self._lib.llama_model_has_encoder(self._model):
            what = f"a model of the architecture '{arch.decode('utf-8', 'replace')}' does not continue a text"
            raise EngineError(f"{path}: {what}, and is not run here; export it with --no-verify --no-measure")
        longest = self._lib.llama_model_n_ctx_train(self._model)
        if arch in LEARNED_POSITIONS and self._options.context > longest:
            what = f"holds {longest} tokens of context, not {self._options.context}"
            raise UserError(f"{path}: {what}; use --context {longest} or fewer")

    def _adapt(self, params: Any) -> None:  # noqa: ANN401 - a ctypes struct
        params.type_k = params.type_v = KV_TYPE_IDS[self._kv_type]
        # As llama.cpp's own tools run: a sliding layer keeps its window, not the whole context.
        params.swa_full = False
        if self._kv_type not in KV_FLOATS:
            # llama.cpp can read a quantized V cache only in its flash attention.
            params.flash_attn_type = FLASH_ATTENTION_ON

    def chat_template(self) -> str | None:
        """The Jinja source of the chat template that the file carries, or None."""
        template: bytes | None = self._lib.llama_model_chat_template(self._model, None)
        return None if template is None else template.decode("utf-8", "replace")

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

    def close(self) -> None:
        """Free the context and the model. A second call does nothing."""
        if self._sampler:
            self._lib.llama_sampler_free(self._sampler)
        self._sampler = None
        super().close()
