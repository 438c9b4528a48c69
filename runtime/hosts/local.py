"""This machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.check import check
from runtime.measure import measure

if TYPE_CHECKING:
    from runtime.artifact import Artifact
    from runtime.check import CapVerdict
    from runtime.hosts.base import Watcher
    from runtime.measurement import Measurement, RunOptions, Trials


class LocalHost:
    """See `runtime.hosts.base.Host`."""

    name = "local"

    def refuse(self, artifact_format: str, watcher: Watcher) -> None:
        """Nothing: an engine that is missing here says so when it is opened."""

    def measure(
        self, artifact: Artifact, options: RunOptions, trials: Trials, watcher: Watcher, command: str = ""
    ) -> Measurement:
        """In a fresh process."""
        return measure(artifact, options, trials, progress=watcher.note, command=command)

    def check(
        self,
        artifact: Artifact,
        options: RunOptions,
        trials: Trials,
        cap_bytes: int,
        watcher: Watcher,
        command: str = "",
    ) -> CapVerdict:
        """In a fresh process, under a cap."""
        return check(artifact, options, trials, cap_bytes, progress=watcher.note, command=command)
