"""The checks of a budget file: several artifacts, each held against what it has to be, in one command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.findings import Findings, Limits, Running, refuse_other_limits
from exporter.pipeline import Source, provenance, with_source
from runtime.artifact import open_artifact
from runtime.budget import Line
from runtime.errors import PacklightError, UserError
from runtime.sessions.base import task_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from exporter.progress import Reporter
    from exporter.report.report import Report
    from exporter.verify import VerifyOptions


@dataclass(frozen=True)
class Check:
    """One check of a budget file: an artifact, how it is run, what it is held against.

    verifying: the source to compare with, and how; None leaves that out
    """

    artifact: Path
    limits: Limits
    running: Running
    verifying: tuple[Source, VerifyOptions] | None = None

    def refuse(self) -> None:
        """Raise UserError for what can be known to be wrong before anything is run."""
        artifact = open_artifact(self.artifact)
        refuse_other_limits(self.limits, lambda: task_of(artifact))

    def run(self, command: str, reporter: Reporter) -> Report:
        """All that was asked for, in one report. Whatever goes wrong is a failing line: other checks wait."""
        artifact, facts = open_artifact(self.artifact), None
        findings = Findings(tolerated=(PacklightError,))
        findings.look_whole(artifact)
        if self.verifying is not None:
            source, options = self.verifying
            try:
                artifact, facts = with_source(artifact, source, options, reporter)
            except PacklightError as error:
                findings.broken.append(Line("verify", str(error), "", ok=False, value=1.0, limit=0.0))
            else:
                findings.verify(artifact, facts, options, reporter)
        cap = self.limits.budget.max_memory_bytes
        if cap is None:
            findings.measure(artifact, self.running, command, reporter)
        else:
            findings.check(artifact, cap, self.running, command, reporter)
        return findings.report(artifact, self.limits, provenance(command, facts))


def run_all(checks: Mapping[str, Check], where: str, command: str, reporter: Reporter) -> dict[str, Report]:
    """A report for every check, by name. Raises UserError before the first one runs where any of them cannot.

    where: the file that they stand in, for messages.
    """
    for name, check in checks.items():
        try:
            check.refuse()
        except PacklightError as error:
            raise UserError(f"{where}: checks.{name}: {error}") from error
    reports = {}
    for name, check in checks.items():
        reporter.step(f"check {name}")
        reports[name] = check.run(command, reporter)
    return reports
