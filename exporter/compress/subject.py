"""The model while a recipe changes it: `Subject`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from exporter.calibration import calibration_chunks, encoder_texts
from exporter.compress.factored import factored_modules
from exporter.compress.journal import Kept
from exporter.compress.mapped import MappedEncoder, MappedReference
from exporter.compress.stack import find_layers, layers_of, name_of_layers
from exporter.compress.walk import Walk
from targets.facts import TensorFact
from targets.task import TEXT_GENERATION

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from exporter.recipe import Recipe
    from targets.base import EmitOptions, Progress, Target
    from targets.facts import ModelFacts


@dataclass
class Subject:
    """A model in float32 in torch, and what the directory that it becomes has to hold beside it.

    facts: of the source; source: its tokenizer and its model, open
    target, options: what the recipe's quantize step is for; None where it has none
    config: keys of config.json that are not the source's any more; None for one that is gone
    files: more safetensors files by name, tensors by name: matrices on a grid, factors
    layers: the source's layer, from 0, that each of the model's was; none where the model is not made of them
    teachers: other models that steps name, by those names
    notes: what the user should know of the step that runs
    kept: what a step may tell of its finished work, for a run after a kill
    number: of the step that runs, from 0
    split: whether a training splits the weights over all processes
    """

    facts: ModelFacts
    source: MappedReference | MappedEncoder
    recipe: Recipe
    progress: Progress
    target: Target | None = None
    options: EmitOptions | None = None
    config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Mapping[str, npt.NDArray[np.generic]]] = field(default_factory=dict)
    layers: list[int] = field(init=False)
    teachers: Mapping[str, ModelFacts] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    kept: Kept = field(default_factory=Kept)
    number: int = 0
    split: bool = False

    def __post_init__(self) -> None:
        self.layers = list(range(len(find_layers(self.model) or ())))

    @property
    def task(self) -> str:
        """What the model is for, one of `targets.task.TASKS`."""
        return self.source.task if isinstance(self.source, MappedEncoder) else TEXT_GENERATION

    @property
    def model(self) -> Any:  # noqa: ANN401 - a model of transformers
        """The model. Steps write weights in place (`module.weight.data.copy_`) where the shape stays."""
        return self.source.model

    @property
    def work(self) -> Path:
        """Where the step that runs may keep files of its own, for a run after a kill; gone once the step is over."""
        return self.source.room / f"work-{self.number}"

    def teacher(self, name: str | None) -> MappedReference | MappedEncoder:
        """A model that a step names, or the source as it was, opened once more; for the caller to close."""
        return self.source.again(self.taught_by(name))

    def taught_by(self, name: str | None) -> ModelFacts:
        """The facts of `teacher`."""
        return self.facts if name is None else self.teachers[name]

    @cached_property
    def chunks(self) -> list[list[int]]:
        """Token ids to gather statistics on, in pieces. Asked for first before a step has changed anything."""
        wanted, seed = self.recipe.calibration, self.recipe.seed
        if isinstance(self.source, MappedEncoder):
            return encoder_texts(self.source, wanted, seed)
        return calibration_chunks(self.source, self.facts, wanted, seed, self.progress)

    def walk(self, chunks: Sequence[Sequence[int]]) -> Walk:
        """Through the layers as they are by now, with the hidden states of these tokens."""
        return Walk(self.model, chunks, layers_of(self.model) if isinstance(self.source, MappedEncoder) else None)

    def sparsity(self) -> float:
        """The share of zeros in the matrices of the layers."""
        zeros = total = 0
        for _, module in self.matrices():
            zeros += int((module.weight == 0).sum())
            total += module.weight.numel()
            self.source.give_back()
        return zeros / total

    def weights(self) -> dict[str, torch.Tensor]:
        """Every weight once, by name: a tied matrix under the name that the source has it under."""
        names, seen = set(self.facts.tensors), set()
        found: dict[str, torch.Tensor] = {}
        state = self.model.state_dict()
        again = set() if "tie_word_embeddings" in self.config else names  # some sources store a tied matrix twice
        for name in sorted(state, key=lambda name: name not in names):
            tensor = state[name]
            if tensor.data_ptr() not in seen or name in again:
                found[name] = tensor.contiguous()
                seen.add(tensor.data_ptr())
        return found

    def merged(self) -> dict[str, torch.Tensor]:
        """As `weights`, as transformers loads them: products in place of factors."""
        found = self.weights()
        for name, module in factored_modules(self.model):
            for part in ("left.weight", "right.weight", "left.bias"):
                found.pop(f"{name}.{part}", None)
            found[f"{name}.weight"] = module.weight
            if module.bias is not None:
                found[f"{name}.bias"] = module.bias
        return found

    def factors(self) -> dict[str, npt.NDArray[np.float32]]:
        """The factors by name, as `targets.factors` reads them."""
        return {
            f"{name}.{side}.weight": getattr(module, side).weight.detach().numpy()
            for name, module in factored_modules(self.model)
            for side in ("left", "right")
        }

    def now(self) -> ModelFacts:
        """The model as it is by now, its tensors without a place on the disk."""
        tensors = {name: fact_now(name, tensor) for name, tensor in self.merged().items()}
        return dataclasses.replace(self.facts, config=self.configured(self.facts.config), tensors=tensors)

    def configured(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A config.json of the source as it has to be by now; a key that is None in `self.config` is gone."""
        now = {**config, **self.config}
        return {key: value for key, value in now.items() if value is not None or key not in self.config}

    def matrices(self) -> Iterator[tuple[str, Any]]:
        """The linear modules of the layers, by the names of their weights."""
        prefix = name_of_layers(self.model)
        for name, module in self.model.named_modules():
            if isinstance(module, torch.nn.Linear) and name.startswith(prefix):
                yield f"{name}.weight", module


def fact_now(name: str, tensor: torch.Tensor) -> TensorFact:
    """A weight as it is by now, without a place on the disk."""
    return TensorFact(name, tuple(tensor.shape), "F32", Path(), 0, 4 * tensor.numel())
