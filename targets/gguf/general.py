"""The general.* metadata (name, size, licence, lineage) and the file's name by the GGUF naming convention.

Reading a model's name apart (base name, size, fine-tune, version) and its model card's front matter is gguf-py's job;
the keys are those that llama.cpp's converter writes (`gguf/metadata.py` of gguf-py).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets.gguf.keyvalue import KeyValue, array, float32, string, uint32
from targets.quiet import no_log_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Shape = tuple[int, ...]

_LONGEST_NAME = 200
"""Bytes of a file's name without its suffix."""
_TEXTS = {
    "author": "author", "version": "version", "organization": "organization", "finetune": "finetune",
    "basename": "basename", "description": "description", "license_name": "license.name",
    "license_link": "license.link", "source_url": "source.url", "source_doi": "source.doi",
    "source_uuid": "source.uuid", "source_repo_url": "source.repo_url",
}  # fmt: skip
"""gguf-py's names of what a card can say, and the keys below general."""
_OF_PARENTS = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")
_SAMPLING = {
    "top_k": ("top_k", "INT32"), "top_p": ("top_p", "FLOAT32"), "min_p": ("min_p", "FLOAT32"),
    "xtc_probability": ("xtc_probability", "FLOAT32"), "xtc_threshold": ("xtc_threshold", "FLOAT32"),
    "temperature": ("temp", "FLOAT32"), "penalty_last_n": ("penalty_last_n", "INT32"),
    "penalty_repeat": ("penalty_repeat", "FLOAT32"), "mirostat": ("mirostat", "INT32"),
    "mirostat_tau": ("mirostat_tau", "FLOAT32"), "mirostat_eta": ("mirostat_eta", "FLOAT32"),
}  # fmt: skip
"""What generation_config.json names, the keys below general.sampling, and their types."""
_MOST_INT32, _MOST_FLOAT32 = 2**31 - 1, (2 - 2**-23) * 2.0**127
# What a card of the wrong form makes gguf-py raise: it is written for people, and costs its metadata, not the export.
_ODD = (AttributeError, IndexError, KeyError, OSError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True)
class Sizes:
    """Weights of a file: all, those of no expert, those of one expert in each layer, and experts of a layer."""

    total: int
    shared: int = 0
    expert: int = 0
    n_experts: int = 0

    @classmethod
    def of(cls, tensors: Iterable[tuple[str, Shape]]) -> Sizes:
        """Of tensors, (name, shape in torch order)."""
        total = shared = expert = 0
        counts = []
        for name, shape in tensors:
            size = math.prod(shape)
            total += size
            if "_exps." in name and len(shape) >= 3:
                counts.append(shape[-2 if ".bias" in name else -3])
                expert += size // counts[-1]
            else:
                shared += size
        return cls(total, shared, expert, sum(counts) // len(counts) if counts else 0)

    @property
    def label(self) -> str:
        """As the naming convention has it: 1.5B, or 8x7B with experts."""
        import gguf

        return str(gguf.utility.size_label(self.total, self.shared, self.expert, self.n_experts))


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


def model_name(name: str, sizes: Sizes, known: Mapping[str, Any]) -> ModelName:
    """Of a GGUF source: what it already says of itself (`known` key/values) wins, else its file's name taken apart."""
    import gguf

    said = {key: value for key, value in known.items() if isinstance(value, str) and value}
    if "general.basename" in said:
        return ModelName(
            said.get("general.name", name),
            said["general.basename"],
            said.get("general.size_label", sizes.label),
            said.get("general.finetune"),
            said.get("general.version"),
        )
    full, _, base, finetune, version, label = gguf.Metadata.get_model_id_components(name, sizes.total)
    return ModelName(full or name, base, label or sizes.label, finetune, version)


def general_metadata(path: Path, architecture: str, name: str, sizes: Sizes) -> tuple[ModelName, list[KeyValue]]:
    """The name of a Hugging Face directory, and general.*: what its name and its README.md say of it.

    name: the model's for people
    """
    import gguf

    config = _own_name(path, name)
    with no_log_of("metadata"):
        try:
            found = gguf.Metadata.apply_metadata_heuristic(
                gguf.Metadata(), _card(path), config, Path(name), sizes.total
            )
        except _ODD:
            found = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), {}, config, Path(name), sizes.total)
    base, finetune, version = _text(found.basename), _text(found.finetune), _text(found.version)
    parts = ModelName(name, base, _text(found.size_label) or sizes.label, finetune, version)
    texts = {"name": _text(found.name) or name, "size_label": parts.size, "license": _license(found.license)}
    texts |= {key: _text(getattr(found, field)) for field, key in _TEXTS.items()}
    return parts, [
        string("general.architecture", architecture),
        string("general.type", "model"),
        *_sampling(path),
        *(string(f"general.{key}", text) for key, text in texts.items() if text),
        *_parents("base_model", found.base_models),
        *_parents("dataset", found.datasets),
        *_texts("tags", found.tags),
        *_texts("languages", found.languages),
    ]


def _own_name(path: Path, name: str) -> dict[str, str]:
    """The hub's name of the model as config.json has it, "owner/model".

    Of a model that was tuned from another it is the other's: that is no name for this one.
    """
    said = _json(path / "config.json").get("_name_or_path")
    own = isinstance(said, str) and said.rpartition("/")[2].casefold() == name.casefold()
    return {"_name_or_path": str(said)} if own else {}


def _card(path: Path) -> dict[str, Any]:
    """The model card's front matter; empty where there is none."""
    import gguf
    import yaml

    try:
        return dict(gguf.Metadata.load_model_card(path))
    except yaml.YAMLError:
        return {}


def _json(path: Path) -> dict[str, Any]:
    """A file's object; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _text(value: object) -> str | None:
    """As text; None where it is neither a text nor a number (YAML reads 1.5 as one)."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value).encode("utf-8", "replace").decode("utf-8") or None  # YAML can name halves of a character


def _license(value: object) -> str | None:
    parts = value if isinstance(value, list) else [value]
    return ",".join(text for part in parts if (text := _text(part))) or None


def _texts(key: str, values: object) -> list[KeyValue]:
    """An array of what is text in a list."""
    texts = [text for value in values if (text := _text(value))] if isinstance(values, list) else []
    return [array(f"general.{key}", texts, "STRING")] if texts else []


def _parents(key: str, entries: object) -> list[KeyValue]:
    """general.base_model.*, general.dataset.*: what a model was made from, and trained on."""
    described = entries if isinstance(entries, list) else []
    described = [entry for entry in described if isinstance(entry, dict) and entry]
    if not described:
        return []
    found = [uint32(f"general.{key}.count", len(described))]
    for index, entry in enumerate(described):
        texts = {part: _text(entry.get(part)) for part in _OF_PARENTS}
        found += [string(f"general.{key}.{index}.{part}", text) for part, text in texts.items() if text]
    return found


def _sampling(path: Path) -> list[KeyValue]:
    """general.sampling.*: how generation_config.json would have tokens drawn. llama.cpp's tools take it as defaults."""
    config = _json(path / "generation_config.json")
    config.setdefault("penalty_repeat", config.get("repetition_penalty"))
    found = []
    if isinstance(config.get("sequence"), str):
        found.append(string("general.sampling.sequence", config["sequence"]))
    for name, (key, kind) in _SAMPLING.items():
        value = config.get(name)
        most = _MOST_INT32 if kind == "INT32" else _MOST_FLOAT32
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= most:
            continue
        if kind == "FLOAT32":
            found.append(float32(f"general.sampling.{key}", value))
        elif value == int(value):
            found.append(KeyValue(f"general.sampling.{key}", int(value), "INT32"))
    return found
