"""This machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.check import check
from runtime.measure import measure

if TYPE_CHECKING:
    from runtime.check import CapVerdict
    from runtime.hosts.base import Job, Watcher
    from runtime.measurement import Measurement, RunOptions, Trials


class LocalHost:
    """See `runtime.hosts.base.Host`."""

    name = "local"
    caps = True

    def refuse(self, artifact_format: str, options: RunOptions, trials: Trials, watcher: Watcher) -> None:
        """Nothing: an engine that is missing here says so when it is opened."""

    def measure(self, job: Job, watcher: Watcher) -> Measurement:
        """In a fresh process."""
        return measure(job.artifact, job.options, job.trials, progress=watcher.note, command=job.command)

    def check(self, job: Job, cap_bytes: int, watcher: Watcher) -> CapVerdict:
        """In a fresh process, under a cap."""
        return check(job.artifact, job.options, job.trials, cap_bytes, progress=watcher.note, command=job.command)
