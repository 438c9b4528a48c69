"""The reports that a page is made of: from an exported directory, or from a file that --json was kept in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.report.report import REPORT_VERSION
from exporter.report.scale import number
from runtime.artifact import MANIFEST, Artifact, FileRecord, open_artifact
from runtime.errors import ArtifactError, ModelError
from runtime.sessions.base import is_encoder

if TYPE_CHECKING:
    from targets.stored_tensors import StoredTensor

REPORT = "report.json"
DAMAGED = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError)
"""What reading a document or a model of another form than ours comes to."""


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
    def bare(self) -> bool:
        """Whether it is about a file without a manifest, of which nobody knows what it was made from."""
        return not self.document["artifact"]["files"]

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
    artifact, found = open_artifact(root), _report(document, _json(document))
    if path.is_file() and path.name not in (MANIFEST, artifact.entry):
        raise ArtifactError(f"{path}: is not what the {REPORT} beside it is about; run '{again}' and name that file")
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
    """With the artifact's tensors, where its files still lie there as the report knows them."""
    found = Found(where, document)
    try:
        artifact = found.artifact
        untold = _other_files(artifact, document)
    except OSError as error:  # a directory of somebody else
        untold = f"The artifact's file could not be looked into: {error.strerror}."
    except DAMAGED as error:
        fix = "export or measure the artifact again"
        raise ArtifactError(f"{where}: is a damaged report ({error!r:.200}); {fix}") from error
    return Found(where, document, untold=untold) if untold else with_tensors(artifact, document, where)


def _other_files(artifact: Artifact, document: dict[str, Any]) -> str:
    """Why the files that lie at the artifact's place need not be those of the report; empty where they are."""
    known = {name: number(record.bytes) for name, record in artifact.files.items()}
    if artifact.entry not in known:
        known[artifact.entry] = number(bytes_of(document))
    if not artifact.root.is_absolute():
        return "The report does not say in which directory the artifact's file lies."
    if any(not (artifact.root / name).is_file() for name in known):
        return "The artifact's file was not there when this page was made."
    if known[artifact.entry] is None:
        return "The report does not say how large the artifact's file is, by which it is known."
    if any((artifact.root / name).stat().st_size != size for name, size in known.items()):
        return "The file that lies there is another than the report is about."
    return ""


def bytes_of(document: dict[str, Any]) -> float | None:
    """Bytes of the artifact: its files together, of a bare file the line of its size; None where neither is told."""
    if files := document["artifact"]["files"]:
        return number(sum(entry["bytes"] for entry in files.values()))
    return next((number(line["value"]) for line in document["lines"] if line["name"] == "size"), None)


def with_tensors(artifact: Artifact, document: dict[str, Any], where: str = "") -> Found:
    """The report of an artifact whose files lie at its root; a file that cannot be read leaves them untold."""
    from targets.stored_tensors import stored_tensors

    try:
        tensors = stored_tensors(artifact)
    except (ArtifactError, ModelError, OSError, *DAMAGED) as error:
        said = str(error) if isinstance(error, ArtifactError | ModelError) else repr(error)
        return Found(where, document, untold=f"The artifact's file could not be looked into: {said:.300}.")
    if tensors is None:
        return Found(where, document, untold=f"The format {artifact.format} does not say how its tensors are stored.")
    return Found(where, document, tensors)
