"""Configurations with an entry that makes no sense."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from runtime.errors import ModelError, UnsupportedError
from targets.damage import damage_in
from targets.facts import ModelFacts
from targets.gguf.architectures.base import full_config, plan_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from targets.gguf.architectures.base import Architecture

NONSENSE: tuple[object, ...] = ("x", -1, 0, 1.5, None, [1], {"a": 1}, float("inf"), 10**15)


def refused(architecture: Architecture, plain: dict[str, Any], directory: Path) -> int:
    """How many configurations, each with one entry of `plain` changed, end in an error for people; others raise."""
    count = 0
    for key, value in itertools.product(plain, NONSENSE):
        facts = ModelFacts("huggingface", directory, "m", "m", {**plain, key: value}, {})
        try:
            with damage_in(directory / "config.json"):
                full = full_config(architecture, facts)
                plan_tensors(architecture, full, facts)
                architecture.refuse(full)
                architecture.hyper_parameters(full)
        except (ModelError, UnsupportedError):
            count += 1
    return count
