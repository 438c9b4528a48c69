"""What decoders share whose engine gives logits as torch's tensors: one sequence, its last logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from runtime.errors import EngineError
from runtime.sessions.limits import pieces

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt


class TorchDecoder(ABC):
    """One sequence of context. Who inherits sets n_context and piece, and evaluates tokens.

    n_past: tokens that the context holds; piece: most prompt tokens that are evaluated at once
    """

    n_context: int
    piece: int
    n_past = 0
    _logits: Any = None

    @abstractmethod
    def _last_of(self, ids: Sequence[int]) -> Any:  # noqa: ANN401 - torch is untyped here
        """Evaluate tokens after what the context holds; logits after the last of them, shape (n_vocab,)."""

    def reset(self) -> None:
        """Forget the context."""
        self.n_past, self._logits = 0, None

    def prefill(self, ids: Sequence[int]) -> None:
        """Evaluate a prompt after what the context holds, keeping the logits of its last token only."""
        for piece in pieces(ids, self.piece):
            self._logits = self._last_of(piece)

    def decode(self, token: int) -> None:
        """Evaluate one more token."""
        self._logits = self._last_of((token,))

    def greedy(self) -> int:
        """The token with the largest logit after the last evaluated one."""
        return int(self._last().argmax())

    def last_logits(self) -> npt.NDArray[np.float32]:
        """Logits after the last evaluated token, shape (n_vocab,), a copy."""
        logits: npt.NDArray[np.float32] = self._last().numpy().copy()
        return logits

    def _last(self) -> Any:  # noqa: ANN401 - torch is untyped here
        if self._logits is None:
            raise EngineError("no logits before a token is evaluated")
        return self._logits
