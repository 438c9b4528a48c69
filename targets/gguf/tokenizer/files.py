"""The files that make up a tokenizer in a Hugging Face directory, read and checked for their outer shape."""

from __future__ import annotations

import json
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class TokenizerFiles:
    """What was found in `directory`.

    tokenizer: tokenizer.json, or None
    config, generation, special_map: tokenizer_config.json, generation_config.json and special_tokens_map.json;
        empty where the file is missing
    added: added_tokens.json, text to id, which older checkpoints have; empty where missing
    spm: the path of tokenizer.model where there is one
    """

    directory: Path
    tokenizer: dict[str, Any] | None
    config: dict[str, Any]
    generation: dict[str, Any]
    special_map: dict[str, Any]
    added: dict[str, Any]
    spm: Path | None

    @property
    def where(self) -> Path:
        """The file that an error about the vocabulary names."""
        return self.directory / "tokenizer.json" if self.tokenizer is not None else self.directory / "tokenizer.model"

    @property
    def model(self) -> dict[str, Any]:
        """The `model` part of tokenizer.json; empty without one."""
        return dict(self.tokenizer["model"]) if self.tokenizer is not None else {}


_kept: ContextVar[dict[Path, TokenizerFiles] | None] = ContextVar("kept", default=None)


@contextmanager
def read_once() -> Iterator[None]:
    """Inside it every directory is read once. Not always: a large vocabulary takes as much memory as a small model."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def read_files(directory: Path) -> TokenizerFiles:
    """Read a directory's tokenizer. Raises ModelError where there is none, or where a file is not what it should be."""
    kept = _kept.get()
    if kept is None:
        return _read(directory)
    if directory not in kept:
        kept[directory] = _read(directory)
    return kept[directory]


def _read(directory: Path) -> TokenizerFiles:
    tokenizer = _read_object(directory / "tokenizer.json")
    spm = directory / "tokenizer.model"
    if tokenizer is None and not spm.is_file():
        fix = "save the tokenizer there with AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        raise ModelError(f"{directory}: has neither tokenizer.json nor tokenizer.model; {fix}")
    if tokenizer is not None and not isinstance(tokenizer.get("model"), dict):
        raise ModelError(f"{directory / 'tokenizer.json'}: has no 'model'; save the tokenizer again")
    return TokenizerFiles(
        directory=directory,
        tokenizer=tokenizer,
        config=_read_object(directory / "tokenizer_config.json") or {},
        generation=_read_object(directory / "generation_config.json") or {},
        special_map=_read_object(directory / "special_tokens_map.json") or {},
        added=_read_object(directory / "added_tokens.json") or {},
        spm=spm if spm.is_file() else None,
    )


def _read_object(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where the file is missing. A key that is there twice is an error: json keeps the last."""
    twice: list[str] = []

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            seen: set[str] = set()
            twice.extend(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # add returns None
        return made

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=build)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: is not JSON ({error}); download or save it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: is not a JSON object; download or save it again")
    if twice:
        raise ModelError(f"{path}: the key '{twice[0]}' is there twice; save the tokenizer again")
    return content
