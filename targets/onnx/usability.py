"""ONNX Runtime's mobile usability check: would a phone's accelerator take enough of the graph to be worth trying?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from targets.onnx.mobile import load_graph, run_worker

if TYPE_CHECKING:
    from pathlib import Path

PROVIDERS = ("NNAPI", "CoreML NeuralNetwork", "CoreML MLProgram")


@dataclass(frozen=True)
class Partitioning:
    """How one execution provider would cut the graph.

    nodes: all of them; supported: those that the provider takes; partitions: pieces they fall into, each of which
        costs a copy to the accelerator and back; suitability: ONNX Runtime's word, "yes", "maybe" or "no"
    """

    nodes: int
    supported: int
    partitions: int
    suitability: str


@dataclass(frozen=True)
class ProviderUse:
    """What the check says of one provider.

    as_is: with the shapes of the graph, dynamic where it has them; fixed: as if every shape were fixed
    unsupported: operators, as "domain:name", that the provider has not
    """

    name: str
    as_is: Partitioning
    fixed: Partitioning
    unsupported: tuple[str, ...]

    @property
    def worth_trying(self) -> bool:
        """Whether the check calls it worth a measurement on a device, with fixed shapes at least."""
        return self.as_is.suitability != "no" or self.fixed.suitability != "no"

    def note(self) -> str:
        """One line for people."""
        part = self.as_is if self.as_is.suitability != "no" else self.fixed
        pieces = "1 partition" if part.partitions == 1 else f"{part.partitions} partitions"
        takes = f"{self.name} would take {part.supported} of {part.nodes} nodes in {pieces}"
        if self.as_is.suitability != "no":
            return f"{takes}: compare it with the CPU on a device"
        if self.worth_trying:
            return f"{takes} if every shape were fixed: compare it with the CPU on a device"
        return f"{takes}: run on the CPU"


@dataclass(frozen=True)
class Usability:
    """The check's result, by provider in the order of PROVIDERS."""

    providers: tuple[ProviderUse, ...]

    def notes(self) -> list[str]:
        """A line for each provider."""
        return [provider.note() for provider in self.providers]

    def recorded(self, contract: dict[str, Any]) -> dict[str, Any]:
        """An artifact's contract with the result and its notes."""
        return {**contract, "mobile_usability": self.to_json(), "notes": [*contract.get("notes", ()), *self.notes()]}

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        from dataclasses import asdict

        providers = [{**asdict(one), "unsupported": list(one.unsupported)} for one in self.providers]
        return {"providers": providers, "notes": self.notes()}


def usability(model: Path) -> Usability:
    """Run ONNX Runtime's mobile usability check on the .onnx at `model`; its weights are not loaded.

    The check goes by the kinds of operators and the shapes that ONNX can infer; no device is asked. It counts nodes of
    the graph as it is stored. Raises ArtifactError for a model that cannot be read, EngineError where the check fails.
    """
    load_graph(model)
    answer = run_worker("usability", {"model": str(model)}, model)
    return Usability(tuple(_provider(entry) for entry in answer["providers"]))


def _provider(entry: dict[str, Any]) -> ProviderUse:
    """One provider from the worker's answer."""
    fields = ("nodes", "supported", "partitions", "suitability")
    as_is, fixed = (Partitioning(**{name: entry[which][name] for name in fields}) for which in ("as_is", "fixed"))
    return ProviderUse(entry["name"], as_is, fixed, tuple(entry["fixed"]["unsupported"]))
