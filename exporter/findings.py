"""What is found out about an artifact: how and where it is run, what it is held against, the lines of the report."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from exporter.report.report import Provenance, Report
from runtime.artifact import damage
from runtime.budget import Budget, Line, at_most, run_lines, size_line
from runtime.errors import CheckFailed, EngineError, PacklightError, UserError, said_of
from runtime.hosts import LOCAL
from runtime.hosts.base import Job, Watcher
from runtime.hosts.local import LocalHost
from runtime.measure import check_trials
from runtime.measurement import KV_TYPES, TURNS, RunOptions, Trials
from runtime.sessions.base import ENCODER_TASKS
from runtime.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from exporter.progress import Reporter
    from exporter.verify import VerifyOptions
    from runtime.artifact import Artifact
    from runtime.hosts.base import Host
    from runtime.measurement import Measurement
    from targets.device import Device
    from targets.drift import Drift, Thresholds
    from targets.encoder_drift import EncoderDrift, EncoderThresholds
    from targets.facts import ModelFacts


@dataclass(frozen=True)
class Limits:
    """What an artifact is held against.

    drift, encoder_drift: limits that replace the defaults for its bits per weight, of a model that generates and of an
        encoder
    """

    budget: Budget = field(default_factory=Budget)
    device: Device | None = None
    drift: Thresholds | None = None
    encoder_drift: EncoderThresholds | None = None

    @property
    def for_encoders(self) -> list[str]:
        """The options named that hold for encoders only."""
        named = {"--max-latency": self.budget.max_latency_ms, "a cosine, rank or label limit": self.encoder_drift}
        return [option for option, value in named.items() if value is not None]

    @property
    def for_decoders(self) -> list[str]:
        """The options named that hold only for models that generate."""
        budget = self.budget
        named = {
            "--max-first-token": budget.max_first_token_ms,
            "--min-speed": budget.min_decode_tokens_per_s,
            "a KL, perplexity or top-1 limit": self.drift,
        }
        return [option for option, value in named.items() if value is not None]


@dataclass(frozen=True)
class Running:
    """How an artifact is run, how much of it is measured, and where."""

    options: RunOptions = field(default_factory=RunOptions)
    trials: Trials = field(default_factory=Trials)
    host: Host = field(default_factory=LocalHost)

    def refuse(self, artifact_format: str, reporter: Reporter) -> None:
        """Raise what keeps an artifact of that format from being measured so, before hours of other work."""
        self.host.refuse(artifact_format, self.options, self.trials, watched_by(reporter))

    def job(self, artifact: Artifact, command: str) -> Job:
        """For the host."""
        return Job(artifact, self.options, self.trials, command)


@dataclass
class Findings:
    """What was found so far. A part that could not be done leaves a failing line: the artifact is kept and says so.

    tolerated: errors that become such a line; all others are raised
    """

    drift: Drift | EncoderDrift | None = None
    measurement: Measurement | None = None
    broken: list[Line] = field(default_factory=list)
    tolerated: tuple[type[PacklightError], ...] = (CheckFailed, EngineError)

    def look_whole(self, artifact: Artifact) -> None:
        """A line that fails where a file is another than the manifest says."""
        if damaged := damage(artifact):
            what = f"differ from the manifest's SHA-256: {', '.join(damaged)}; export the model again"
            self.broken.append(Line("files", what, "whole", ok=False, value=float(len(damaged)), limit=0.0))

    def verify(self, artifact: Artifact, facts: ModelFacts, options: VerifyOptions, reporter: Reporter) -> None:
        """Compare the artifact with its source."""
        from exporter.verify import verify

        reporter.step("verifying against the source")
        try:
            self.drift = verify(artifact, facts, options, reporter.advance)
        except self.tolerated as error:
            self.broken.append(not_done("verify", error))

    def measure(self, artifact: Artifact, how: Running, command: str, reporter: Reporter) -> None:
        """Run the artifact in a fresh process, here or on another machine."""
        reporter.step(f"measuring in a fresh process{elsewhere(how.host)}")
        try:
            self.measurement = how.host.measure(how.job(artifact, command), watched_by(reporter))
        except self.tolerated as error:
            self.broken.append(not_done("measure", error))

    def check(self, artifact: Artifact, cap: int, how: Running, command: str, reporter: Reporter) -> None:
        """Run the artifact under a cap of so many bytes; a line says whether it fits."""
        under = "running under a cap of" if how.host.caps else "comparing the peak with"
        reporter.step(f"{under} {format_bytes(cap)}{elsewhere(how.host)}")
        try:
            found = how.host.check(how.job(artifact, command), cap, watched_by(reporter))
        except self.tolerated as error:
            self.broken.append(not_done("measure", error))
            return
        self.measurement = found.measurement
        limit, needed = f"≤ {format_bytes(cap)}", float(found.needed_bytes or 0)
        self.broken.append(Line("fits the cap", found.text, limit, found.fits, needed, float(cap)))

    def report(
        self, artifact: Artifact, limits: Limits, where_from: Provenance, skipped: tuple[str, ...] = ()
    ) -> Report:
        """The report, its lines in the order people read them."""
        lines = [*_size_lines(artifact, limits), *self.broken]
        notes: list[str] = list(artifact.contract.get("notes", ()))
        if self.measurement is not None:
            lines += run_lines(self.measurement, limits.budget)
            notes += self.measurement.notes
        if self.measurement is not None and limits.device is not None:
            lines.append(_fits_line(self.measurement, limits.device))
            notes += _device_notes(limits.device, self.measurement)
        if self.drift is not None:
            lines += _drift_lines(self.drift, limits, artifact)
            notes += self.drift.notes
        return Report(
            artifact, tuple(lines), where_from, limits.device, self.measurement, self.drift, skipped, tuple(notes)
        )


def not_done(what: str, error: PacklightError | OSError) -> Line:
    """The failing line of a part that could not be done."""
    said = said_of(error) if isinstance(error, OSError) else str(error)
    return Line(what, said, "", ok=False, value=1.0, limit=0.0)


def refuse_other_limits(limits: Limits, task: Callable[[], str], running: Running | None = None) -> None:
    """Raise UserError for a limit or a phase on something that a model of this task, or the run, does not have.

    task: called only where there is such a limit, because it can be dear to know.
    """
    trials = running.trials if running is not None else Trials()
    if limits.budget.min_sustained_tokens_per_s is not None and not trials.sustained_s:
        raise UserError(
            "--min-sustained-speed needs a load that goes on; add --sustained, for example --sustained 5min"
        )
    if not limits.for_encoders and not limits.for_decoders and running is None:
        return
    named = task() if limits.for_encoders or limits.for_decoders or trials.fill_context or trials.turns != TURNS else ""
    if running is not None:
        check_trials(running.options, trials.resolved(encoder=False), encoder=named in ENCODER_TASKS)
    if named in ENCODER_TASKS and limits.for_decoders:
        raise UserError(
            f"{limits.for_decoders[0]} is for models that generate, this one is for {named}; "
            "its own limits are --max-latency, --min-cosine, --min-rank-correlation and --min-label-agreement"
        )
    if named not in ENCODER_TASKS and limits.for_encoders:
        raise UserError(
            f"{limits.for_encoders[0]} is for encoders, this model is for {named}; "
            "its own limits are --max-first-token, --min-speed, --max-kl and their kin"
        )


def refuse_kv_type(kv_type: str | None) -> None:
    """Raise UserError for what is no type of KV cache; None is nobody's wish."""
    if kv_type not in (None, *KV_TYPES):
        raise UserError(f"'{kv_type}' is not a type of KV cache; known: {', '.join(KV_TYPES)}")


def elsewhere(host: Host) -> str:
    """For people, behind what is done; nothing where it is done here."""
    return "" if host.name == LOCAL else f" on {host.name}"


def watched_by(reporter: Reporter) -> Watcher:
    """A host tells the reporter how it goes on."""
    return Watcher(reporter.note, reporter.advance, reporter.pause)


def _size_lines(artifact: Artifact, limits: Limits) -> list[Line]:
    lines = [size_line(artifact.total_bytes, limits.budget)]
    if artifact.bits_per_weight:
        lines.append(at_most("bits per weight", artifact.bits_per_weight, None, f"{artifact.bits_per_weight:.2f}"))
    return lines


def _fits_line(measurement: Measurement, device: Device) -> Line:
    peak, usable = measurement.peak_rss_bytes, device.usable_bytes
    text = f"{format_bytes(peak)} on {measured_on(measurement)}"
    return at_most(f"fits {device.id}", peak, usable, text, format_bytes(usable))


def measured_on(measurement: Measurement) -> str:
    """The machine's name for people."""
    return str(measurement.host.get("on", "this host"))


def _device_notes(device: Device, measurement: Measurement) -> list[str]:
    usable, where = device.sources["usable"], measured_on(measurement)
    what = "memory and speed" if measurement.load_s is None else "memory, load and speed"
    known = f", not on the {device.name}"
    if "on" in measurement.host:
        known = f"; whether that is a machine like the {device.name} packlight does not know"
    return [
        f"{what} were measured on {where}{known}",
        f"usable memory of the {device.name}, {format_bytes(device.usable_bytes)}: {usable.kind}, {usable.text}",
    ]


def _drift_lines(drift: Drift | EncoderDrift, limits: Limits, artifact: Artifact) -> list[Line]:
    """The drift's lines; limits that the user named replace the defaults, one by one."""
    from targets.drift import judge as judge_drift
    from targets.drift import thresholds_for
    from targets.encoder_drift import EncoderDrift, encoder_thresholds_for, judge_encoder

    bits = artifact.bits_per_weight
    if isinstance(drift, EncoderDrift):
        defaults = encoder_thresholds_for(bits)
        return judge_encoder(drift, dataclasses.replace(defaults, **_named(limits.encoder_drift)))
    return judge_drift(drift, dataclasses.replace(thresholds_for(bits), **_named(limits.drift)))


def _named(overrides: Thresholds | EncoderThresholds | None) -> dict[str, float]:
    """The limits that are set."""
    values = dataclasses.asdict(overrides) if overrides is not None else {}
    return {key: value for key, value in values.items() if value is not None}
