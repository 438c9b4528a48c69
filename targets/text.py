"""The text that models are compared and calibrated on: the user's file, or one that every CPython carries."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from runtime.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

Half = Literal["calibration", "evaluation"]


@dataclass(frozen=True)
class EvalText:
    """A text, what to call it, and the hex SHA-256 of its UTF-8 bytes."""

    name: str
    text: str
    sha256: str


def load_text(path: Path | None) -> EvalText:
    """The file at `path`, or the default text where it is None. Raises UserError for an unreadable file."""
    if path is None:
        return default_text("evaluation")
    try:
        # Bytes and not text mode: newlines stay as they are, as llama-perplexity reads them.
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a text file in UTF-8") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 (byte {error.start}); name a text file in UTF-8") from error
    return _eval_text(str(path), text)


def default_text(half: Half) -> EvalText:
    """One half of the topics of CPython's own help, some 230,000 characters of English, tables and code.

    Topics are sorted by name and split at the topic where half of the characters are reached. Models are compared
    on the second half; the first is for calibration, so that nothing is judged on what it was fitted to. The text
    differs between CPython versions: the name says which one, and figures are comparable within one SHA-256.
    """
    from pydoc_data.topics import topics  # imported late: 0.5 MB of strings

    names = sorted(topics)
    total = sum(len(topics[name]) for name in names)
    first: list[str] = []
    while 2 * sum(map(len, first)) < total:
        first.append(topics[names[len(first)]])
    second = [topics[name] for name in names[len(first) :]]
    chosen, ordinal = (first, "first") if half == "calibration" else (second, "second")
    name = f"pydoc_data.topics of CPython {platform.python_version()}, {ordinal} half"
    return _eval_text(name, "\n\n".join(chosen))


def _eval_text(name: str, text: str) -> EvalText:
    return EvalText(name=name, text=text, sha256=hashlib.sha256(text.encode("utf-8")).hexdigest())
