"""What every engine refuses: tokens that do not fit, token ids that are none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.errors import EngineError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runtime.artifact import Artifact
    from runtime.measurement import RunOptions


def check_context(artifact: Artifact, options: RunOptions) -> None:
    """Raise UserError for a context or a batch that the artifact cannot have."""
    if options.context < 1 or options.batch < 1:
        raise UserError(f"context {options.context} and batch {options.batch} have to be at least 1 token")
    longest = artifact.context_length or options.context
    if options.context > longest:
        raise UserError(f"{artifact.entry_path}: holds {longest} tokens of context, not {options.context}")


def check_room(n_tokens: int, n_past: int, n_context: int) -> None:
    """Raise EngineError where so many tokens do not fit behind what the context holds."""
    if n_past + n_tokens > n_context:
        raise EngineError(f"{n_tokens} tokens do not fit: the context of {n_context} holds {n_past} already")


def check_ids(ids: Sequence[int], n_vocab: int) -> None:
    """Raise EngineError for the first token id that is none."""
    wrong = next((token for token in ids if not 0 <= token < n_vocab), None)
    if wrong is not None:
        raise EngineError(f"token {wrong} is outside the vocabulary of {n_vocab}")


def check_length(ids: Sequence[int], max_tokens: int) -> None:
    """Raise EngineError for a text that is longer than an encoder takes; 0 for no limit."""
    if max_tokens and len(ids) > max_tokens:
        raise EngineError(f"{len(ids)} tokens are more than the {max_tokens} that the model takes")


def pieces(ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """`ids` cut into pieces of `size`."""
    return (ids[start : start + size] for start in range(0, len(ids), size))
