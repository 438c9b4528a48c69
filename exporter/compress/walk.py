"""A model walked through layer by layer, with the calibration text's hidden states beside it.

Every layer sees what the layers before it give as they are by then, quantized or pruned: so errors are seen and not
added up unseen (GPTQ's order of work, https://arxiv.org/abs/2210.17323, section 4). What is held beside the model is
one hidden state a token, and one layer's statistics.
"""

from __future__ import annotations

import contextlib
import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.func import functional_call

from exporter.compress.stack import layers_of
from runtime.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn


@dataclass
class Inputs:
    """What the linear layers of a piece of the model were given. A layer's inputs are known by its name.

    hessians: the sum of x x' over tokens x, (features, features) float32, shared by layers of one input
    peaks: the largest |x| of each feature, (features,)
    tokens: how many were seen
    """

    hessians: dict[str, Tensor] = field(default_factory=dict)
    peaks: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0


class Walk:
    """A model in float32 and the hidden states before the layer that is next.

    model: a causal language model of transformers whose layers `layers_of` finds
    chunks: token ids
    layers: of a model that has them elsewhere, or whose layers give more than hidden states, and of an encoder; there
        is no `observe_head` then
    """

    def __init__(self, model: Any, chunks: Sequence[Sequence[int]], layers: Any = None) -> None:  # noqa: ANN401 - a ModuleList
        self.model: Any = model
        self.layers: Any = layers_of(model) if layers is None else layers
        if layers is None and not hasattr(self.model.base_model, "norm"):
            raise ModelError(f"{type(model).__name__} keeps its norm where packlight does not look for it")
        self._looks = layers is not None
        self._more: tuple[Any, ...] | None = None
        known = inspect.signature(model.base_model.forward).parameters
        self._options = {"use_cache": False} if "use_cache" in known else {}
        self.hidden: list[Tensor] = []
        self._arguments: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = []
        with torch.no_grad():
            for ids in chunks:
                self._enter(torch.tensor([list(ids)]))

    def _enter(self, ids: Tensor) -> None:
        """Note what every layer is called with for these tokens, and what the first one gets; none is computed."""
        first: list[Tensor] = []
        called: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def see(hidden: Tensor, *rest: Any, **keywords: Any) -> Any:  # noqa: ANN401 - what a layer gives
            first.append(hidden)
            called.append((rest, keywords))
            if self._looks:  # once
                self._looks = False
                self._more = _beside(self.layers[0], hidden, *rest, **keywords)
            return hidden if self._more is None else (hidden, *self._more)

        with contextlib.ExitStack() as stack:
            for layer in self.layers:
                stack.enter_context(_replaced(layer, see))
            self.model.base_model(input_ids=ids, **self._options)
        self.hidden.append(first[0])
        self._arguments.append(called)

    def observe(self, number: int) -> Inputs:
        """The inputs of the linear layers of layer `number` over all chunks, by names below the layer."""
        inputs = Inputs()
        with torch.no_grad(), _watched(self.layers[number], inputs):
            for chunk in range(len(self.hidden)):
                self._run(number, chunk)
        return inputs

    def advance(self, number: int) -> None:
        """Bring the hidden states behind layer `number`, as it is by now."""
        with torch.no_grad():
            self.hidden = [self._run(number, chunk) for chunk in range(len(self.hidden))]

    def observe_head(self) -> Inputs:
        """The inputs of the head, under the name "": the hidden states behind the last layer, normed."""
        inputs = Inputs()
        with torch.no_grad():
            for hidden in self.hidden:
                _add(inputs, "", self.model.base_model.norm(hidden))
        return inputs

    def run(self, number: int, chunk: int, weights: Mapping[str, Tensor]) -> Tensor:
        """What layer `number` gives for a chunk with other weights, by their names below the layer; gradients pass."""
        rest, keywords = self._arguments[chunk][number]
        found: Tensor = functional_call(
            self.layers[number], dict(weights), (self.hidden[chunk], *rest), keywords, tie_weights=False
        )
        return found

    def _run(self, number: int, chunk: int) -> Tensor:
        rest, keywords = self._arguments[chunk][number]
        given = self.layers[number](self.hidden[chunk], *rest, **keywords)
        found: Tensor = given[0] if isinstance(given, tuple) else given
        return found


@contextlib.contextmanager
def skipped(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Within it a model runs as if these layers of it were gone: they hand on the hidden state."""
    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_replaced(layer, _handing_on(layer)))
        yield


def _handing_on(layer: nn.Module) -> Any:  # noqa: ANN401 - a forward
    more: list[Any] = []

    def hand_on(hidden: Tensor, *rest: Any, **keywords: Any) -> Any:  # noqa: ANN401 - what a layer gives
        if not more:  # once
            more.append(_beside(layer, hidden, *rest, **keywords))
        return hidden if more[0] is None else (hidden, *more[0])

    return hand_on


def _beside(layer: nn.Module, *given: Any, **keywords: Any) -> tuple[Any, ...] | None:
    """What the model's own loop takes from a layer beside its hidden states, known by running it; None for nothing."""
    found = type(layer).forward(layer, *given, **keywords)
    return found[1:] if isinstance(found, tuple) else None


@contextlib.contextmanager
def _replaced(module: nn.Module, forward: Any) -> Iterator[None]:  # noqa: ANN401 - a forward
    module.forward = forward
    try:
        yield
    finally:
        del module.forward  # the class's own shows again


@contextlib.contextmanager
def _watched(layer: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Count the inputs of every linear layer below; those that follow each other with one input are counted once."""
    last: list[tuple[Tensor, str]] = []

    def see(name: str, x: Tensor) -> None:
        if last and last[0][0] is x:
            inputs.hessians[name], inputs.peaks[name] = inputs.hessians[last[0][1]], inputs.peaks[last[0][1]]
            return
        last[:] = [(x, name)]
        _add(inputs, name, x)

    handles = [
        module.register_forward_pre_hook(lambda _module, args, name=name: see(name, args[0]))
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add(inputs: Inputs, name: str, x: Tensor) -> None:
    rows = x.reshape(-1, x.shape[-1])
    if name not in inputs.hessians:
        inputs.hessians[name] = torch.zeros(rows.shape[1], rows.shape[1])
        inputs.peaks[name] = torch.zeros(rows.shape[1])
    inputs.hessians[name].addmm_(rows.T, rows)
    torch.maximum(inputs.peaks[name], rows.abs().amax(0), out=inputs.peaks[name])
    inputs.tokens += len(rows)
