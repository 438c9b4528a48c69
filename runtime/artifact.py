"""An artifact: the files that one export made, what they hold, and `manifest.json` that says so."""

from __future__ import annotations

import dataclasses
import glob
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runtime.atomic import write_json
from runtime.errors import ArtifactError
from runtime.gguf_kind import task_of_file

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
_SHARD = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")


@dataclass(frozen=True)
class FileRecord:
    """One file of an artifact: its size and the hex SHA-256 of its bytes."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Artifact:
    """What an export made.

    root: the directory that holds the files (not written into the manifest)
    format: the target that wrote it, for example "gguf"
    entry: name of the file that an engine opens
    name: the model's name for people
    quant: the preset or recipe name, lower case: "q4_k_m"
    n_params: weights in the file, tied tables counted once
    bits_per_weight: tensor bytes * 8 / n_params
    context_length: the longest context that the model was trained for, in tokens
    source: MODEL as the user named it
    contract: inputs and outputs of the entry point, in the format's own terms
    files: every file of the artifact but the manifest, by name relative to root
    """

    root: Path
    format: str
    entry: str
    name: str
    quant: str
    n_params: int
    bits_per_weight: float
    context_length: int
    source: str
    contract: dict[str, Any] = field(default_factory=dict)
    files: dict[str, FileRecord] = field(default_factory=dict)

    @property
    def entry_path(self) -> Path:
        """The file that an engine opens."""
        return self.root / self.entry

    @property
    def total_bytes(self) -> int:
        """Bytes that have to be shipped: weights, graph, tokenizer and settings (a .gguf file holds them all)."""
        known = sum(record.bytes for record in self.files.values())
        return known or sum((self.root / name).stat().st_size for name in shards(self))

    @property
    def model_bytes(self) -> int:
        """Bytes of the graph and its weights alone."""
        names = self.contract.get("model_files") or shards(self)
        return sum((self.root / name).stat().st_size for name in names)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    import hashlib  # here, because it loads libcrypto, 3 MB of every measured process

    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def record(path: Path) -> FileRecord:
    """The FileRecord of an existing file."""
    return FileRecord(bytes=path.stat().st_size, sha256=sha256_of(path))


def write_manifest(artifact: Artifact, extra: dict[str, Any] | None = None) -> Path:
    """Write `manifest.json` into the artifact's directory, atomically. `extra` adds top-level keys."""
    content = dataclasses.asdict(artifact)
    del content["root"]
    path = artifact.root / MANIFEST
    body = {"packlight_manifest": MANIFEST_VERSION, **content, **(extra or {})}
    write_json(path, body)
    return path


def read_manifest(root: Path) -> Artifact:
    """The Artifact that `root/manifest.json` describes. Raises ArtifactError where it is damaged."""
    path = root / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); is this an exported directory?") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: is not JSON ({error}); export the model again") from error
    if not isinstance(content, dict) or content.get("packlight_manifest") != MANIFEST_VERSION:
        raise ArtifactError(f"{path}: is not a packlight manifest of version {MANIFEST_VERSION}")
    try:
        files = {name: FileRecord(**entry) for name, entry in content["files"].items()}
        names = {f.name for f in dataclasses.fields(Artifact)} - {"root", "files"}
        return Artifact(root=root, files=files, **{name: content[name] for name in names})
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: is damaged ({error}); export the model again") from error


def open_artifact(path: Path) -> Artifact:
    """The Artifact at `path`: an exported directory, its manifest, or a bare model file such as `x.gguf`.

    A bare file that lies beside its manifest is read with it. Sizes are checked against the manifest,
    hashes are not (see `damage`). Raises ArtifactError.
    """
    if path.is_dir():
        artifact = read_manifest(path)
    elif path.name == MANIFEST:
        artifact = read_manifest(path.parent)
    elif not path.is_file():
        raise ArtifactError(f"{path}: no such file or directory; name an exported directory or a .gguf file")
    else:
        beside = _manifest_of(path)
        if beside is None:
            return _bare(path)
        artifact = beside
    for name, expected in artifact.files.items():
        file = artifact.root / name
        if not file.is_file():
            raise ArtifactError(f"{file}: is named in {MANIFEST} but missing; export the model again")
        if file.stat().st_size != expected.bytes:
            raise ArtifactError(
                f"{file}: has {file.stat().st_size} bytes, {MANIFEST} says {expected.bytes}; export the model again"
            )
    return artifact


def _manifest_of(path: Path) -> Artifact | None:
    """The artifact whose entry `path` is, by the manifest beside it; None where that is another program's or none."""
    try:
        content = json.loads((path.parent / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(content, dict) and "packlight_manifest" in content and content.get("entry") == path.name
    return read_manifest(path.parent) if ours else None


def _bare(path: Path) -> Artifact:
    """An artifact without a manifest, known by its suffix and by what its header says it is for."""
    if path.suffix != ".gguf":
        raise ArtifactError(f"{path}: no {MANIFEST} beside it and not a .gguf file; name an exported directory")
    part = _SHARD.fullmatch(path.name)
    if part is not None and int(part[2]) != 1:
        first = f"{part[1]}-00001-of-{part[3]}.gguf"
        raise ArtifactError(f"{path}: is part {int(part[2])} of {int(part[3])} of a model; name the first, {first}")
    return Artifact(
        root=path.parent, format="gguf", entry=path.name, name=path.stem, quant="", n_params=0,
        bits_per_weight=0.0, context_length=0, source=str(path),
        contract={"task": task} if (task := task_of_file(path)) else {},
    )  # fmt: skip


def shards(artifact: Artifact) -> list[str]:
    """The file that is opened, or where llama.cpp finds more beside it, all of them."""
    match = _SHARD.fullmatch(artifact.entry)
    if match is None:
        return [artifact.entry]
    pattern = f"{glob.escape(match[1])}-?????-of-{match[3]}.gguf"
    return sorted(path.name for path in artifact.root.glob(pattern))


def damage(artifact: Artifact) -> list[str]:
    """Names of the files whose SHA-256 differs from the manifest's; empty when all are whole."""
    return [name for name, expected in artifact.files.items() if sha256_of(artifact.root / name) != expected.sha256]
