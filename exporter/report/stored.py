"""The reports that a page is made of: from an exported directory, or from a file that --json was kept in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.report.report import REPORT_VERSION
from runtime.artifact import MANIFEST, Artifact, FileRecord, read_manifest
from runtime.errors import ArtifactError, ModelError
from runtime.sessions.base import is_encoder

if TYPE_CHECKING:
    from targets.stored_tensors import StoredTensor

REPORT = "report.json"


@dataclass(frozen=True)
class Found:
    """One report.

    where: as it was named, for messages
    document: the report as `Report.to_json` gives it
    tensors: of the artifact's file; None where nobody can look into it, and `untold` says why
    """

    where: str
    document: dict[str, Any]
    tensors: tuple[StoredTensor, ...] | None = None
    untold: str = ""

    @property
    def artifact(self) -> Artifact:
        """What the report is about."""
        data = self.document["artifact"]
        files = {name: FileRecord(**entry) for name, entry in data["files"].items()}
        return Artifact(**{**data, "root": Path(data["root"]), "files": files})

    @property
    def of_encoder(self) -> bool:
        """Whether it reads texts and generates none."""
        return is_encoder(self.artifact)


def founds_at(path: Path) -> list[Found]:
    """The report of an exported directory, or those in a .json file: one, or each of a budget file's checks.

    Raises ArtifactError.
    """
    if path.suffix != ".json" or path.name == MANIFEST or not path.is_file():
        return [_exported(path)]
    document = _json(path)
    checks = document.get("checks") if isinstance(document, dict) else None
    if not isinstance(checks, dict) or not checks:
        return [_looked_into(str(path), _report(path, document))]
    named = {f"{path}, check {name}": _report(path, one) for name, one in checks.items()}
    return [_looked_into(where, one) for where, one in named.items()]


def _exported(path: Path) -> Found:
    """The report that lies in an exported directory."""
    root = path if path.is_dir() else path.parent
    if not (path.is_dir() or path.is_file()):
        raise ArtifactError(f"{path}: no such file or directory; name an exported directory or a report's .json file")
    document, again = root / REPORT, f"packlight measure {path} --json > measured.json"
    if not (root / MANIFEST).is_file() or not document.is_file():
        raise ArtifactError(f"{path}: no {REPORT} of an export there; run '{again}' and name that file")
    artifact, found = read_manifest(root), _report(document, _json(document))
    if found["artifact"].get("files") != {name: vars(entry) for name, entry in artifact.files.items()}:
        raise ArtifactError(f"{document}: is about other files than {MANIFEST}; run '{again}' and name that file")
    return _looked_into(str(path), {**found, "artifact": {**found["artifact"], "root": str(root.absolute())}})


_FIX = "name an exported directory, or what 'packlight measure', 'verify' or 'check' printed with --json"


def _json(path: Path) -> Any:  # noqa: ANN401  whatever the file holds
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); {_FIX}") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: is not JSON ({error}); {_FIX}") from error


def _report(path: Path, document: Any) -> dict[str, Any]:  # noqa: ANN401
    """What is a report's document. Raises ArtifactError for what is none."""
    if not isinstance(document, dict) or document.get("packlight_report") != REPORT_VERSION:
        raise ArtifactError(f"{path}: is not a packlight report of version {REPORT_VERSION}; {_FIX}")
    if not isinstance(document.get("artifact"), dict):
        raise ArtifactError(f"{path}: is a damaged report, it names no artifact; {_FIX}")
    return document


def _looked_into(where: str, document: dict[str, Any]) -> Found:
    """With the artifact's tensors, where its file still lies there as the report knows it."""
    found = Found(where, document)
    try:
        artifact = found.artifact
        expected = artifact.files.get(artifact.entry)
        there = artifact.entry_path.is_file()
        if not there or (expected is not None and artifact.entry_path.stat().st_size != expected.bytes):
            return Found(where, document, untold="The artifact's file was not there when this page was made.")
        return with_tensors(artifact, document, where)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{where}: is a damaged report ({error}); export or measure the artifact again") from error


def with_tensors(artifact: Artifact, document: dict[str, Any], where: str = "") -> Found:
    """The report of an artifact whose files lie at its root."""
    from targets.stored_tensors import stored_tensors

    try:
        tensors = stored_tensors(artifact)
    except (ArtifactError, ModelError) as error:
        return Found(where, document, untold=f"The artifact's file could not be looked into: {error}.")
    if tensors is None:
        return Found(where, document, untold=f"The format {artifact.format} does not say how its tensors are stored.")
    return Found(where, document, tensors)
