"""`tokenizer.json`, the file that a model's tokenizer is described in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.errors import EngineError, in_one_line

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.errors import UserError


def load_tokenizer(file: Path, broken: type[UserError], fix: str) -> Any:  # noqa: ANN401 - tokenizers is untyped
    """The tokenizer, which neither truncates nor pads, whatever the file says.

    Raises EngineError without the `tokenizers` package, and `broken`, which tells the user to `fix`, for a bad file.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise EngineError("the package tokenizers is missing; pip install tokenizers") from error
    if not file.is_file():
        raise broken(f"{file}: is missing; {fix}")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises nothing narrower
        reason = in_one_line(error)
        raise broken(f"{file}: is not a tokenizer ({reason}); {fix}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
