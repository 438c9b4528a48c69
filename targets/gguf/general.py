"""The general.* metadata (name, size, licence, lineage) and the file's name by the GGUF naming convention.

Reading a model's name apart (base name, size, fine-tune, version) and its model card's front matter is gguf-py's job.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from targets.gguf.keyvalue import KeyValue, array, string

if TYPE_CHECKING:
    from pathlib import Path


_LONGEST_NAME = 200
"""Bytes of a file's name without its suffix."""


@dataclass(frozen=True)
class ModelName:
    """A model's name apart, as the naming convention has it; None for a part that the model lacks."""

    name: str
    base: str | None
    size: str
    finetune: str | None
    version: str | None

    def file_name(self, encoding: str) -> str:
        """`Base-Size-FineTune-Version-ENCODING.gguf`."""
        import gguf

        stem = gguf.utility.naming_convention(
            self.name, self.base, self.finetune, self.version, self.size, encoding.upper()
        )
        # A name is a name, wherever it comes from: never a path, nor longer than a file system takes (255 bytes, of
        # which a temporary name and a part's number take some).
        printable = "".join(letter if letter.isprintable() and letter != "/" else "-" for letter in stem)
        short = printable.encode("utf-8", "replace")[:_LONGEST_NAME].decode("utf-8", "ignore")
        return f"{short.lstrip('.') or 'model'}.gguf"


def model_name(name: str, n_params: int, known: dict[str, Any] | None = None) -> ModelName:
    """Take the name apart. What a GGUF source already says of itself (`known` key/values) wins."""
    import gguf

    size = gguf.utility.size_label(n_params, 0, 0, 0)
    said = {key: value for key, value in (known or {}).items() if isinstance(value, str) and value}
    if "general.basename" in said:
        return ModelName(
            said.get("general.name", name),
            said["general.basename"],
            said.get("general.size_label", size),
            said.get("general.finetune"),
            said.get("general.version"),
        )
    full, _, base, finetune, version, label = gguf.Metadata.get_model_id_components(name, n_params)
    return ModelName(full or name, base, label or size, finetune, version)


def general_metadata(path: Path, architecture: str, name: ModelName) -> list[KeyValue]:
    """general.* of a Hugging Face directory: the name's parts, and licence, tags, languages of its README.md."""
    entries = [
        string("general.architecture", architecture),
        string("general.type", "model"),
        string("general.name", name.name),
    ]
    parts = {"basename": name.base, "size_label": name.size, "finetune": name.finetune, "version": name.version}
    entries += [string(f"general.{key}", value) for key, value in parts.items() if value]
    return entries + _card_metadata(path)


def _card_metadata(path: Path) -> list[KeyValue]:
    """What the model card's front matter says."""
    import gguf
    import yaml

    try:
        card = gguf.Metadata.load_model_card(path)
    except (yaml.YAMLError, UnicodeDecodeError):
        # a model card is written for people; one that does not parse costs its metadata, not the export
        return []
    entries = [
        string(f"general.{key.replace('_', '.')}", str(card[key]))
        for key in ("license", "license_name", "license_link")
        if isinstance(card.get(key), str)
    ]
    for key, target in (("tags", "tags"), ("language", "languages")):
        values = card.get(key)
        values = [values] if isinstance(values, str) else values
        if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
            entries.append(array(f"general.{target}", values, "STRING"))
    return entries + _lineage(card.get("base_model"))


def _lineage(base: object) -> list[KeyValue]:
    """general.base_model.*: the hub models that this one was made from."""
    models = [base] if isinstance(base, str) else base
    if not isinstance(models, list) or not models or not all(isinstance(model, str) for model in models):
        return []
    entries = [KeyValue("general.base_model.count", len(models), "UINT32")]
    for index, model in enumerate(models):
        entries.append(string(f"general.base_model.{index}.name", model.rsplit("/", 1)[-1].replace("-", " ")))
        if "/" in model:
            entries.append(string(f"general.base_model.{index}.organization", model.split("/", 1)[0]))
            entries.append(string(f"general.base_model.{index}.repo_url", f"https://huggingface.co/{model}"))
    return entries
