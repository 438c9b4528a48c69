"""The checks of a budget file: several artifacts, each held against what it has to be, in one command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.findings import Findings, Limits, Running, not_done, refuse_kv_type, refuse_other_limits
from exporter.pipeline import Source, provenance, with_source
from exporter.report.report import Report
from runtime.artifact import open_artifact
from runtime.errors import PacklightError, UserError
from runtime.sessions.base import task_of
from targets.text import load_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from exporter.progress import Reporter
    from exporter.verify import VerifyOptions
    from runtime.artifact import Artifact


@dataclass(frozen=True)
class Check:
    """One check of a budget file: an artifact, how it is run, what it is held against.

    verifying: the source to compare with, and how; None leaves that out
    """

    artifact: Path
    limits: Limits
    running: Running
    verifying: tuple[Source, VerifyOptions] | None = None

    def opened(self) -> Artifact:
        """The artifact. Raises UserError for what can be known to be wrong before anything is run."""
        artifact = open_artifact(self.artifact)
        refuse_other_limits(self.limits, lambda: task_of(artifact), self.running)
        refuse_kv_type(self.running.options.kv_type)
        if self.verifying is not None and self.verifying[1].text is not None:
            load_text(self.verifying[1].text)
        if self.verifying is not None and is_path(model := self.verifying[0].model) and not Path(model).exists():
            raise UserError(f"{model}: no such file or directory; against names a model")
        return artifact

    def run(self, artifact: Artifact, command: str, reporter: Reporter) -> Report:
        """All that was asked for, in one report. Whatever goes wrong is a failing line: other checks wait."""
        facts = None
        findings = Findings(tolerated=(PacklightError,))
        findings.look_whole(artifact)
        if self.verifying is not None:
            source, options = self.verifying
            try:
                artifact, facts = with_source(artifact, source, options, reporter)
            except PacklightError as error:
                findings.broken.append(not_done("verify", error))
            else:
                findings.verify(artifact, facts, options, reporter)
        cap = self.limits.budget.max_memory_bytes
        if cap is None:
            findings.measure(artifact, self.running, command, reporter)
        else:
            findings.check(artifact, cap, self.running, command, reporter)
        return findings.report(artifact, self.limits, provenance(command, facts))


def open_all(checks: Mapping[str, Check], where: str) -> dict[str, Artifact]:
    """The artifacts, by the checks' names. Raises UserError where any of them cannot be checked.

    where: the file that the checks stand in, for messages.
    """
    artifacts = {}
    for name, check in checks.items():
        try:
            artifacts[name] = check.opened()
        except PacklightError as error:
            raise UserError(f"{where}: checks.{name}: {error}") from error
    return artifacts


def run_all(
    checks: Mapping[str, Check], artifacts: Mapping[str, Artifact], command: str, reporter: Reporter
) -> dict[str, Report]:
    """A report for every check, by name."""
    reports = {}
    for name, check in checks.items():
        reporter.step(f"check {name}")
        try:
            reports[name] = check.run(artifacts[name], command, reporter)
        except (PacklightError, OSError) as error:  # a file that went meanwhile, a full disk
            reports[name] = Report(
                artifacts[name], (not_done("check", error),), provenance(command), check.limits.device
            )
    return reports


def is_path(model: str) -> bool:
    """Whether a MODEL can be nothing but a path: no id of the hub looks like that."""
    return model.startswith((".", "/", "~")) or model.endswith(".gguf")
