"""What the harness asks of an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from runtime.artifact import Artifact
    from runtime.measurement import RunOptions


TEXT_GENERATION = "text-generation"
TEXT2TEXT_GENERATION = "text2text-generation"
FEATURE_EXTRACTION = "feature-extraction"
ENCODER_TASKS = (FEATURE_EXTRACTION, "text-classification", "token-classification")
"""Tasks of models that read a text once and generate nothing: their artifacts open as an `EncoderSession`."""


def task_of(artifact: Artifact) -> str:
    """The task that the artifact's contract names; one that names none (a decoder's GGUF) generates text."""
    return str(artifact.contract.get("task", TEXT_GENERATION))


def is_encoder(artifact: Artifact) -> bool:
    """Whether the artifact opens as an `EncoderSession`."""
    return task_of(artifact) in ENCODER_TASKS


class Session(Protocol):
    """An open artifact with one sequence of context. Token ids are plain ints.

    `RunOptions.kv_type` is a wish: where the artifact itself fixes the type of its KV cache (ONNX declares it in the
    graph), that type is used and the wish is ignored.

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


class EncoderSession(Protocol):
    """An open artifact that reads one text at a time and keeps nothing between texts. Token ids are plain ints.

    engine: name and version of the engine, for the record
    max_tokens: longest text that it takes, special tokens counted
    n_vocab: token ids that it knows: 0 to n_vocab - 1
    outputs: names of what `encode` gives: "last_hidden_state", "sentence_embedding", "logits"
    """

    engine: str
    max_tokens: int
    n_vocab: int
    outputs: tuple[str, ...]

    @classmethod
    def open(cls, artifact: Artifact, options: RunOptions) -> EncoderSession:
        """Load the artifact. Raises EngineError where the engine refuses it."""

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids of `text`, neither padded nor cut; special tokens written in it are recognised."""

    def encode(self, ids: Sequence[int]) -> dict[str, npt.NDArray[np.float32]]:
        """The outputs for one text, by name and without a batch dimension.

        "last_hidden_state": shape (tokens, hidden); "sentence_embedding": (hidden,); "logits": (labels,), or
        (tokens, labels) where every token is classified. Raises EngineError for more than `max_tokens` tokens.
        """

    def run(self, ids: Sequence[int]) -> None:
        """Compute the outputs for one text and drop them: what is timed. Needs no numpy where the engine needs none."""

    def memory_bytes(self) -> dict[str, int]:
        """As `Session.memory_bytes`; "kv_cache" is 0."""

    def close(self) -> None:
        """Free everything."""
