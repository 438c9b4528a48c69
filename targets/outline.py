"""What a backend knows of an artifact before it is written: bytes, memory, what a token costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtime.measurement import RunOptions
    from targets.base import Problem
    from targets.processor import Processor


@dataclass(frozen=True)
class Footprint:
    """Peak resident bytes of a process that runs an artifact, in the parts of `runtime.measurement.MemorySplit`."""

    weights_bytes: int
    kv_cache_bytes: int
    compute_bytes: int
    other_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Their sum."""
        return self.weights_bytes + self.kv_cache_bytes + self.compute_bytes + self.other_bytes


@dataclass(frozen=True)
class Work:
    """What one token costs, in what a host's speed is calibrated by.

    weights: elements that are multiplied by, by the label of how they are stored; head: of those the output's
    weight_bytes: read for one token; n_layers: of the model
    kv_elements: of the cache that one position has in all layers, keys and values
    attention: products with those, over all heads
    """

    weights: Mapping[str, int]
    head: Mapping[str, int]
    weight_bytes: int
    n_layers: int
    kv_elements: int = 0
    attention: int = 0


class Outline(Protocol):
    """One artifact that is not there yet."""

    @property
    def format(self) -> str:
        """Of the artifact."""

    @property
    def quant(self) -> str:
        """The preset."""

    @property
    def file_bytes(self) -> int:
        """Bytes that have to be shipped: `Artifact.total_bytes` of what `emit` writes."""

    def bytes_with(self, context: int) -> int:
        """The same where it depends on the context that the file is made for."""

    @property
    def exact(self) -> bool:
        """Whether that is known to the byte."""

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each weight."""

    @property
    def context(self) -> int:
        """Most tokens that it can hold."""

    @property
    def encoder(self) -> bool:
        """Whether it reads texts and generates none."""

    def kv_types(self) -> Sequence[str]:
        """Element types that its cache can have, of `runtime.measurement.KV_TYPES`; one where the file fixes it."""

    def footprint(self, options: RunOptions, processor: Processor) -> Footprint | None:
        """What it takes with its context full; None where that is not known yet."""

    def work(self) -> Work:
        """What one token costs."""


@dataclass(frozen=True)
class Outlined:
    """The outlines of one format's presets, and the problems of those that cannot be written, by preset."""

    outlines: tuple[Outline, ...]
    refused: Mapping[str, str] = field(default_factory=dict)


def first_problem(problems: Sequence[Problem]) -> str:
    """One line for a preset that cannot be written."""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{problems[0]}{more}"
