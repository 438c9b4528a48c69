"""Chat templates: from chat_template.jinja and its named neighbours, or from tokenizer_config.json."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from runtime.errors import ModelError
from targets.gguf.keyvalue import array, string

if TYPE_CHECKING:
    from pathlib import Path

    from targets.gguf.keyvalue import KeyValue
    from targets.gguf.tokenizer.files import TokenizerFiles

_KEY = "tokenizer.chat_template"


def chat_entries(files: TokenizerFiles) -> list[KeyValue]:
    """`tokenizer.chat_template` for the default, `tokenizer.chat_template.<name>` and their names for the others."""
    templates = chat_templates(files)
    named = {name: text for name, text in templates.items() if name != "default"}
    entries = [string(_KEY, templates["default"])] if "default" in templates else []
    entries += [string(f"{_KEY}.{name}", text) for name, text in named.items()]
    return [*entries, array("tokenizer.chat_templates", list(named), "STRING")] if named else entries


def chat_templates(files: TokenizerFiles) -> dict[str, str]:
    """Templates by name, "default" first. Files win over tokenizer_config.json, as in transformers.

    Raises ModelError for a template that is not text.
    """
    found = _from_config(files)
    legacy = files.directory / "chat_template.json"
    if legacy.is_file():
        try:
            found["default"] = str(json.loads(_text(legacy))["chat_template"])
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{legacy}: has no chat_template ({error!r}); download it again") from error
    default = files.directory / "chat_template.jinja"
    if default.is_file():
        found["default"] = _text(default)
    for path in sorted((files.directory / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = _text(path)
    return found


def _from_config(files: TokenizerFiles) -> dict[str, str]:
    value = files.config.get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    try:
        pairs = value.items() if isinstance(value, dict) else [(entry["name"], entry["template"]) for entry in value]
        found = {str(name): text for name, text in pairs}
    except (TypeError, KeyError) as error:
        raise ModelError(
            f"{files.directory / 'tokenizer_config.json'}: chat_template is neither text nor a list of named templates"
        ) from error
    for name, text in found.items():
        if not isinstance(text, str):
            raise ModelError(f"{files.directory / 'tokenizer_config.json'}: the chat template '{name}' is not text")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: cannot be read ({error})") from error
