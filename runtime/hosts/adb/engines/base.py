"""What is asked of the tools of an engine, and what they are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from runtime.artifact import Artifact
    from runtime.hosts.adb.watched import Watched
    from runtime.measurement import RunOptions, Stat, Trials

WORD = "the"
"""What a prompt for tools that take text is made of: with most tokenizers a token each. The tools say how many."""


@dataclass(frozen=True)
class Figures:
    """What the tools tell; None for what they do not.

    memory: the run whose memory counts; engine: name, version where it is told, and the tool
    trials: as they were made
    """

    memory: Watched
    engine: str
    trials: Trials
    prefill_tokens_per_s: Stat | None = None
    decode_tokens_per_s: Stat | None = None
    first_token_ms: Stat | None = None
    latency_ms: Stat | None = None
    notes: tuple[str, ...] = ()


class Bench(Protocol):
    """A phone that has the artifact and the tools."""

    @property
    def artifact(self) -> Artifact:
        """Here."""

    @property
    def options(self) -> RunOptions:
        """Every default is filled in."""

    @property
    def trials(self) -> Trials:
        """Every default is filled in."""

    @property
    def model(self) -> str:
        """Path there of the artifact's entry."""

    def beside(self, name: str) -> str:
        """Path there of a file of the artifact, by its name relative to the artifact's root."""

    def has(self, tool: str) -> bool:
        """Whether the user has given that tool."""

    def run(self, tool: str, arguments: Sequence[str], what: str, *, fails: bool = False) -> Watched:
        """Run a tool. fails: the caller looks at its status. Else raises EngineError with the last that it said."""

    def send(self, directory: Path) -> None:
        """Put a directory of small files beside the artifact's entry, under its own name and for this run alone."""

    def drop(self, name: str) -> None:
        """Remove a directory that was sent."""


class Engine(Protocol):
    """The tools of one engine."""

    @property
    def tools(self) -> tuple[str, ...]:
        """Their names, the preferred first."""

    @property
    def needs(self) -> str:
        """Which of them, for people."""

    @property
    def reads_weights(self) -> bool:
        """Whether they can read weights instead of mapping them."""

    def run_of(self, found: Sequence[str], artifact: Artifact | None, /) -> Sequence[str]:
        """Those of the tools that are run, of those that the user has given. artifact: None before there is one"""

    def refuse(self, artifact: Artifact, /) -> None:
        """Raise HostError for an artifact that the tools cannot run, before anything is sent."""

    def measure(self, bench: Bench) -> Figures:
        """Run them. Raises EngineError."""
