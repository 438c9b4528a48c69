"""What backends share that decide everything about a file before a weight is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from runtime.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from targets.base import EmitOptions, Problem
    from targets.facts import ModelFacts


class Planned(Protocol):
    """What every plan knows."""

    @property
    def file_bytes(self) -> int:
        """Of the weights' files, and for GGUF of the whole file."""


PlanT = TypeVar("PlanT", bound=Planned)
PresetT = TypeVar("PresetT")


def preset_named(name: str, presets: Mapping[str, PresetT], format_name: str) -> PresetT:
    """The preset of that name, in whatever case. Raises UnsupportedError that lists the known ones."""
    if name.lower() not in presets:
        raise UnsupportedError(f"unknown quantization '{name}' for {format_name}; known: {', '.join(presets)}")
    return presets[name.lower()]


class PlannedTarget(ABC, Generic[PlanT]):
    """check() and emit() follow each other on the same model: it is planned once.

    name: of the format
    """

    name: str

    def __init__(self) -> None:
        self._planned: tuple[ModelFacts, EmitOptions, PlanT] | None = None

    @abstractmethod
    def make_plan(self, facts: ModelFacts, options: EmitOptions) -> tuple[PlanT | None, list[Problem]]:
        """The plan, or every problem that keeps the model from being written."""

    def check(self, facts: ModelFacts, options: EmitOptions) -> list[Problem]:
        """Every problem that can be known before a weight is read. Raises ModelError for files that are broken."""
        plan, problems = self.make_plan(facts, options)
        self._planned = (facts, options, plan) if plan is not None and not problems else None
        return problems

    def plan(self, facts: ModelFacts, options: EmitOptions) -> PlanT:
        """The plan that `check` made, or a new one. Raises UnsupportedError that lists every problem."""
        if self._planned is None or self._planned[0] is not facts or self._planned[1] != options:
            problems = self.check(facts, options)
            if problems:
                raise UnsupportedError("\n".join(map(str, problems)))
        if self._planned is None:
            raise UnsupportedError(f"{facts.path}: cannot be written as {self.name}")
        return self._planned[2]

    def file_bytes(self, facts: ModelFacts, options: EmitOptions) -> int:
        """What `emit` will write, as far as plans know it. Raises UnsupportedError that lists every problem."""
        return self.plan(facts, options).file_bytes

    def taken_plan(self, facts: ModelFacts, options: EmitOptions) -> PlanT:
        """As `plan`, for a plan that changes while it is written: the next call makes a new one."""
        plan = self.plan(facts, options)
        self._planned = None
        return plan
