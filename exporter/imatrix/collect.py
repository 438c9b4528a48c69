"""Sums of the squares of what a model's matrices are multiplied by, in torch.

Products are seen where torch's functions are called, by the address of the weight: so linear layers, fused ones,
GPT-2's transposed ones and each expert of a three-dimensional weight are the same to it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from exporter.compress.mapped import MappedReference
from exporter.compress.stack import decoder_layers
from runtime.memory import return_freed_memory
from targets.gguf.imatrix import Sums

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

    from torch import Tensor, nn

    from targets.facts import ModelFacts


class Collector(TorchFunctionMode):
    """Within its block every product with a weight of a model is counted.

    weights: the model's, by the names that they are to be counted under
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._experts = {name: weight.shape[0] if weight.dim() == 3 else 1 for name, weight in weights.items()}
        self._places: dict[int, list[tuple[str, int]]] = {}
        self._squares: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        for name, weight in weights.items():
            size = weight.numel() // self._experts[name] * weight.element_size()
            for expert in range(self._experts[name]):
                self._places.setdefault(weight.data_ptr() + expert * size, []).append((name, expert))
        self._last: tuple[Tensor, Tensor] | None = None

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """See `torch.overrides.TorchFunctionMode`."""
        keywords = kwargs or {}
        place = _PRODUCTS.get(func)
        if place is not None and len(args) > max(place):
            self._see(args[place[0]], args[place[1]])
        elif place is not None and "weight" in keywords:
            self._see(args[0] if args else keywords["input"], keywords["weight"])
        return func(*args, **keywords)

    def _see(self, x: Tensor, weight: Tensor) -> None:
        found = self._places.get(weight.data_ptr()) if weight.dim() == 2 else None
        if not found:
            return
        if self._last is None or self._last[0] is not x:
            rows = x.detach().reshape(-1, x.shape[-1])
            self._last = (x, rows.float().square().sum(0).double())
        squares, n_rows = self._last[1], x.numel() // x.shape[-1]
        for name, expert in found:
            if name not in self._squares:
                self._squares[name] = torch.zeros(self._experts[name], len(squares), dtype=torch.float64)
                self._counts[name] = torch.zeros(self._experts[name], dtype=torch.int64)
            self._squares[name][expert] += squares
            self._counts[name][expert] += n_rows

    def forget(self) -> None:
        """Hold no input any more: one is kept for the products that follow with the same."""
        self._last = None

    def sums(self) -> dict[str, Sums]:
        """What was seen, by the names of weights."""
        return {
            name: Sums(squares.numpy().astype(np.float32), self._counts[name].numpy().copy())
            for name, squares in self._squares.items()
        }


# Functions that multiply by a weight, and where its input and the weight itself stand.
_PRODUCTS: dict[Any, tuple[int, int]] = {
    torch.nn.functional.linear: (0, 1),
    torch.addmm: (1, 2),
    torch.mm: (0, 1),
    torch.matmul: (0, 1),
    torch.Tensor.matmul: (0, 1),
    torch.Tensor.__matmul__: (0, 1),
}


class LowMemory(MappedReference):
    """A model of which no more than a layer is in memory, however small it is: that was asked for."""

    always_drops = True

    def load(self, transformers: Any, kind: str, options: dict[str, Any]) -> tuple[Any, list[str]]:  # noqa: ANN401
        """See `Mapped`. The head is not run, and some checkpoints call it otherwise: it may be missing."""
        model, missing = super().load(transformers, kind, options)
        return model, [name for name in missing if name.startswith(f"{model.base_model_prefix}.")]

    def named_as(self, owners: Container[str], prefix: str) -> ModelFacts:
        """See `Mapped`. Some checkpoints have no prefix, as GPT-2's."""
        own = {
            name if name in owners or f"{prefix}.{name}" not in owners else f"{prefix}.{name}": fact
            for name, fact in self._facts.tensors.items()
        }
        return dataclasses.replace(self._facts, tensors=own)

    def layers_in(self, model: Any) -> Any:  # noqa: ANN401 - as in `Mapped`
        """See `Mapped`."""
        return decoder_layers(model)


def whole(model: Any, chunks: list[list[int]], collector: Collector, progress: Callable[[int, int], None]) -> None:  # noqa: ANN401
    """Run a decoder of transformers over the chunks, without its head."""
    _seen_by_eye(model)
    for number, ids in enumerate(chunks):
        progress(number, len(chunks))
        with torch.no_grad(), collector:
            model.base_model(input_ids=torch.tensor([ids]), use_cache=False)
        collector.forget()
    progress(len(chunks), len(chunks))


def by_layers(model: Any, chunks: list[list[int]], collector: Collector, progress: Callable[[int, int], None]) -> None:  # noqa: ANN401
    """As `whole`, all chunks through a layer before the next one is touched. Raises ModelError for other layouts."""
    from exporter.compress.walk import Walk

    _seen_by_eye(model)
    return_freed_memory()  # hidden states that are gone would stay with the process, more with every layer
    walk = Walk(model, chunks, decoder_layers(model))
    for number in range(len(walk.layers)):
        progress(number, len(walk.layers))
        with collector:
            walk.advance(number)
        collector.forget()
    progress(len(walk.layers), len(walk.layers))


def _seen_by_eye(model: nn.Module) -> None:
    """Experts one after the other, in products of their own: transformers has faster ways, which no one sees into."""
    choose = getattr(model, "set_experts_implementation", None)
    if choose is not None:
        choose("eager")
