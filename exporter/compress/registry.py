"""Which function does a step of a recipe. Each is called with the step and the `Subject`, and changes the subject."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from exporter.compress.subject import Subject


class Runner(Protocol):
    """What does a step. Raises UserError for a step that this model cannot take."""

    def __call__(self, step: Any, subject: Subject) -> None:  # noqa: ANN401 - each its own class of exporter.steps
        """Change `subject` as `step` says."""


_RUNNERS = {
    "distill": "exporter.compress.distill.step:run",
    "factorize": "exporter.compress.factorize.step:run",
    "initialize": "exporter.compress.initialize.step:run",
    "prune": "exporter.compress.prune.step:run",
    "remove": "exporter.compress.remove.step:run",
    "rotate": "exporter.compress.rotate.step:run",
    "share": "exporter.compress.share.step:run",
    "smooth": "exporter.compress.smooth.step:run",
    "quantize": "exporter.compress.quantize.step:run",
}


def runner(step: str) -> Runner:
    """The function of a step by the step's name."""
    module, _, name = _RUNNERS[step].partition(":")
    found: Runner = getattr(import_module(module), name)
    return found
