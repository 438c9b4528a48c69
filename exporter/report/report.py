"""Everything that is known of one artifact after a run of packlight, and one verdict: `Report`."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.artifact import Artifact
    from runtime.budget import Line
    from runtime.measurement import Measurement
    from targets.device import Device
    from targets.drift import Drift
    from targets.encoder_drift import EncoderDrift

REPORT_VERSION = 1
MET = "met"
FAILED = "failed"


@dataclass(frozen=True)
class Provenance:
    """Where a report comes from.

    command: as typed; created: UTC, ISO 8601; host: facts of the machine that ran it
    source_commit: the hub's commit of the source model, where it is known
    """

    command: str
    created: str
    version: str
    host: dict[str, Any]
    source_commit: str | None = None


@dataclass(frozen=True)
class Report:
    """One artifact, what was found, and what it was held against.

    lines: the verdict's lines, in the order people read them
    skipped: parts of the job that were asked away: "verified", "measured"
    device: the profile that the lines were held against, or None
    notes: what a reader has to know beside the numbers
    """

    artifact: Artifact
    lines: tuple[Line, ...]
    provenance: Provenance
    device: Device | None = None
    measurement: Measurement | None = None
    drift: Drift | EncoderDrift | None = None
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def failing(self) -> tuple[Line, ...]:
        """The lines that do not hold."""
        return tuple(line for line in self.lines if line.ok is False)

    @property
    def verdict(self) -> str:
        """MET, FAILED, or what was not done, such as "not verified, not measured": an unknown is never MET."""
        if self.failing:
            return FAILED
        return ", ".join(f"not {part}" for part in self.skipped) or MET

    @property
    def exit_status(self) -> int:
        """0, or 1 where a line does not hold."""
        return 1 if self.failing else 0

    def at(self, artifact: Artifact) -> Report:
        """The same report of the artifact at another place."""
        return dataclasses.replace(self, artifact=artifact)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`. Sizes in bytes, times in the unit that the key names."""
        artifact = dataclasses.asdict(self.artifact)
        # Absolute: the document is read later, from another directory.
        artifact["root"] = str(self.artifact.root.absolute())
        return {
            "packlight_report": REPORT_VERSION,
            "verdict": self.verdict,
            "failing": [line.name for line in self.failing],
            "lines": [{**line.to_json(), "text": line.text, "limit_text": line.limit_text} for line in self.lines],
            "artifact": artifact,
            "device": self.device.to_json() if self.device else None,
            "measurement": self.measurement.to_json() if self.measurement else None,
            "drift": self.drift.to_json() if self.drift else None,
            "notes": list(self.notes),
            "provenance": dataclasses.asdict(self.provenance),
        }

    def manifest_extra(self) -> dict[str, Any]:
        """What the manifest says of the verdict."""
        return {
            "verdict": self.verdict,
            "failing": [{**line.to_json(), "text": line.text, "limit_text": line.limit_text} for line in self.failing],
            "device": self.device.id if self.device else None,
            "packlight_version": self.provenance.version,
            "command": self.provenance.command,
            "created": self.provenance.created,
        }


def version() -> str:
    """packlight's version, "unknown" where it runs without being installed."""
    try:
        return importlib.metadata.version("packlight")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def utc_now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
