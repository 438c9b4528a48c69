"""What the harness asks of an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from runtime.artifact import Artifact
    from runtime.measurement import RunOptions


class Session(Protocol):
    """An open artifact with one sequence of context. Token ids are plain ints.

    n_vocab: columns of the logits
    engine: name and version of the engine, for the record
    """

    n_vocab: int
    engine: str

    @classmethod
    def open(cls, artifact: Artifact, options: RunOptions) -> Session:
        """Load the artifact. Raises EngineError where the engine refuses it."""

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids of `text`; special tokens written in the text are recognised."""

    def chat_template(self) -> str | None:
        """The Jinja source of the chat template that the artifact carries."""

    def special_text(self, which: str) -> str | None:
        """Text of a special token as the artifact has it: which is "bos" or "eos"."""

    def reset(self) -> None:
        """Forget the context."""

    def prefill(self, ids: Sequence[int]) -> None:
        """Evaluate a prompt (in batches), keeping the logits of its last token only."""

    def decode(self, token: int) -> None:
        """Evaluate one more token."""

    def greedy(self) -> int:
        """The token with the largest logit after the last evaluated one, without a copy of the logits."""

    def last_logits(self) -> npt.NDArray[np.float32]:
        """Logits after the last evaluated token, shape (n_vocab,)."""

    def all_logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Reset, evaluate `ids` and return the logits of every position, shape (len(ids), n_vocab)."""

    def memory_bytes(self) -> dict[str, int]:
        """What the engine says it allocated: keys "weights", "kv_cache", "compute", in bytes.

        "weights_mapped", where an engine knows it, is the part of "weights" that is mapped from the file.
        """

    def close(self) -> None:
        """Free everything."""
