"""The tokenizer and the chat template that lie beside an ONNX graph, as its clients read them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from runtime.errors import ArtifactError
from runtime.tokenizer_file import load_tokenizer

if TYPE_CHECKING:
    from pathlib import Path


class DirectoryTokenizer:
    """tokenizer.json and tokenizer_config.json of an exported directory, each read when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._tokenizer: Any = None
        self._config: dict[str, Any] | None = None

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids of `text`. Raises EngineError without the `tokenizers` package, ArtifactError without its file."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._root / "tokenizer.json", ArtifactError, "export the model again")
        clean = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return [int(token) for token in self._tokenizer.encode(clean, add_special_tokens=add_special).ids]

    def chat_template(self) -> str | None:
        """The chat template: tokenizer_config.json's, the default one where it has several."""
        template = self._settings().get("chat_template")
        if isinstance(template, list):
            named = {entry["name"]: entry["template"] for entry in template}
            template = named.get("default")
        return template if isinstance(template, str) else None

    def special_text(self, which: str) -> str | None:
        """Text of the special token `which` ("bos", "eos"); None where there is none."""
        token = self._settings().get(f"{which}_token")
        if isinstance(token, dict):
            token = token.get("content")
        return token if isinstance(token, str) else None

    def _settings(self) -> dict[str, Any]:
        if self._config is None:
            path = self._root / "tokenizer_config.json"
            try:
                self._config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            except ValueError as error:
                raise ArtifactError(f"{path}: is not JSON ({error}); export the model again") from error
        return self._config
