"""All of an export to a PyTorch format that is decided before a weight is read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runtime.errors import ModelError, UnsupportedError
from runtime.memory import available_bytes
from runtime.sessions.base import ENCODER_TASKS
from runtime.units import format_bytes
from targets.base import Problem
from targets.damage import damage_in
from targets.factors import paired_notes, stored_factors
from targets.factors import problems as factor_problems
from targets.gguf.architectures.base import full_config, plan_tensors
from targets.ongrid import SIDE_FILES, foreign_grids, other_preset
from targets.onnx.decoder_spec import DecoderSpec, architecture_with_graph, decoder_spec, refusals
from targets.onnx.encoder_spec import EncoderSpec, account, encoder_spec
from targets.onnx.weights import Matrix, Part
from targets.planned import preset_named
from targets.pytorch.grids import decoder_grids, encoder_grids
from targets.pytorch.ongrid import OnGroups
from targets.pytorch.presets import INT4, INT8
from targets.task import TEXT_GENERATION, infer_task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from targets.base import EmitOptions
    from targets.factors import Factors
    from targets.facts import ModelFacts, TensorFact
    from targets.gguf.architectures.base import OutTensor
    from targets.groups import GroupedGrid
    from targets.pytorch.presets import Preset

TITLES = {"torchscript": "TorchScript", "ptl": "TorchScript", "executorch": "an ExecuTorch program"}
"""Formats as people call them."""
PAIRED = ("torchscript", "ptl")
"""Formats whose modules run a factorized matrix as two products."""
RECIPE_FORMATS = {"torchscript": "torchscript", "ptl": "torchscript", "executorch": "executorch"}
"""What a recipe calls the format whose codes each of TITLES stores."""


@dataclass(frozen=True)
class Plan:
    """An export that is ready to be written.

    config: config.json as it is; full: with its family's defaults
    matrices: what to read, by the names that `build` asks for; of a factorized MODULE.weight MODULE.right.weight and
        MODULE.left.weight, to which its bias belongs
    grids: of the matrices that are stored in codes, by the same names; given: the codes that some of them have already
    """

    task: str
    preset: Preset
    config: dict[str, Any]
    full: dict[str, Any]
    matrices: dict[str, Matrix]
    n_params: int
    context: int
    decoder: DecoderSpec | None = None
    encoder: EncoderSpec | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)
    grids: Mapping[str, GroupedGrid] = field(default_factory=dict)
    given: OnGroups | None = None

    @property
    def file_bytes(self) -> int:
        """Of the weights in the file, on their grids or in floats. Code and rotary tables come on top."""
        width, found = 2 if self.preset.dtype == "bfloat16" else 4, 0
        for name, matrix in self.matrices.items():
            fact, grid = matrix.parts[0].fact, self.grids.get(name)
            n_bytes = grid.n_bytes(*fact.shape) if grid is not None else width * fact.n_elements
            twice = self.preset.copies_table and name == "token_embd.weight" and "output.weight" not in self.matrices
            found += (1 + twice) * n_bytes
        return found

    @property
    def encoder_outputs(self) -> list[str]:
        """Names of what an encoder gives."""
        if self.task != "feature-extraction":
            return ["logits"]
        pooled = self.encoder is not None and self.encoder.pooling is not None
        return ["last_hidden_state", *(["sentence_embedding"] if pooled else [])]

    @property
    def n_vocab(self) -> int:
        """Rows of the table of tokens."""
        spec = self.decoder or self.encoder
        return spec.vocab if spec is not None else 0


def make_plan(facts: ModelFacts, options: EmitOptions, format_name: str, presets: Mapping[str, Preset]
              ) -> tuple[Plan | None, list[Problem]]:  # fmt: skip
    """The plan, or every problem that keeps the model from being written. Raises ModelError and UnsupportedError.

    format_name: one of TITLES; presets: of that format
    """
    preset, title = preset_named(options.quant, presets, format_name), TITLES[format_name]
    if facts.source == "gguf":
        fix = "name the Hugging Face directory that it was converted from"
        return None, [Problem(facts.requested, f"a .gguf file cannot be exported as {title}", fix)]
    task = infer_task(facts)
    if task != TEXT_GENERATION and task not in ENCODER_TASKS:
        known = ", ".join((TEXT_GENERATION, *ENCODER_TASKS))
        raise UnsupportedError(f"{facts.requested}: {task} cannot be written as {title} yet; known: {known}")
    if refused := _lies_elsewhere(facts, preset, RECIPE_FORMATS[format_name]):
        return None, refused
    given = OnGroups.of(facts.path, RECIPE_FORMATS[format_name])
    with damage_in(facts.path / "config.json"):
        if task == TEXT_GENERATION:
            factors = stored_factors(facts.path) if format_name in PAIRED else {}
            plan, problems = _plan_decoder(facts, preset, factors)
        else:
            plan, problems = _plan_encoder(facts, task, preset)
    if plan is not None and given is not None:
        plan = dataclasses.replace(plan, given=given)
        problems += given.problems(_stored(plan.matrices, plan.grids), _facts_of(plan.matrices))
    return plan, [*problems, *(_lack_of_memory(facts, plan) if plan is not None else ())]


def group_grids(facts: ModelFacts, task: str, quant: str, format_name: str, presets: Mapping[str, Preset],
                factors: Mapping[str, Factors]) -> dict[str, GroupedGrid]:  # fmt: skip
    """The grid of every stored matrix, by its name; two of a factorized one.

    facts: whatever their tensors have for a place; factors: by the names of the weights that they are
    Raises UnsupportedError for a preset whose codes are not chosen before the export, ModelError for a model that
    cannot be written.
    """
    preset = preset_named(quant, presets, format_name)
    if preset.layers not in (INT4, INT8):
        known = ", ".join(name for name, one in presets.items() if one.layers in (INT4, INT8))
        raise UnsupportedError(f"preset {preset.name} has no codes that could be chosen; use {known}")
    if task == TEXT_GENERATION:
        architecture = architecture_with_graph(facts.architecture)
        config = full_config(architecture, facts)
        tensors, _ = plan_tensors(architecture, config, facts)
        matrices = _matrices(tensors, factors)
        return _stored(matrices, decoder_grids(preset, matrices, decoder_spec(architecture, config).n_layers))
    plan, problems = _plan_encoder(facts, task, preset)
    if plan is None:
        raise ModelError(f"{facts.requested}: {problems[0]}")
    return _stored(plan.matrices, plan.grids)


def _lies_elsewhere(facts: ModelFacts, preset: Preset, recipe_format: str) -> list[Problem]:
    """What was rounded for another format or another preset."""
    foreign = foreign_grids(facts.path, SIDE_FILES[recipe_format])
    return foreign or other_preset(facts.path, recipe_format, preset.name, "on the grids")


def _facts_of(matrices: Mapping[str, Matrix]) -> dict[str, TensorFact]:
    """Stored tensors by their own names."""
    return {(fact := matrix.parts[0].fact).name: fact for matrix in matrices.values()}


def _stored(matrices: Mapping[str, Matrix], grids: Mapping[str, GroupedGrid]) -> dict[str, GroupedGrid]:
    """Grids by the names of the stored tensors."""
    return {matrices[name].parts[0].fact.name: grid for name, grid in grids.items()}


def _lack_of_memory(facts: ModelFacts, plan: Plan) -> list[Problem]:
    """The whole module lies in memory before it is written."""
    room, needed = available_bytes(), int(plan.n_params * plan.preset.bytes_per_weight)
    if room is None or needed <= room:
        return []
    what = f"the module takes {format_bytes(needed)} of memory, {format_bytes(room)} are available"
    return [Problem(facts.requested, what, "use a smaller --quant, or export on a larger machine")]


def _plan_decoder(facts: ModelFacts, preset: Preset, factors: Mapping[str, Factors]
                  ) -> tuple[Plan | None, list[Problem]]:  # fmt: skip
    architecture = architecture_with_graph(facts.architecture)
    config = full_config(architecture, facts)
    tensors, problems = plan_tensors(architecture, config, facts)
    problems += refusals(config) + factor_problems(facts, factors)
    if problems:
        return None, problems
    spec = decoder_spec(architecture, config)
    matrices = _matrices(tensors, factors)
    return Plan(
        task=TEXT_GENERATION,
        preset=preset,
        config=facts.config,
        full=config,
        matrices=matrices,
        n_params=sum(matrix.parts[0].fact.n_elements for matrix in matrices.values()),
        context=spec.context,
        decoder=spec,
        notes=(*spec.context_notes, *paired_notes(factors)),
        grids=decoder_grids(preset, matrices, spec.n_layers),
    ), []


def _matrices(tensors: Sequence[OutTensor], factors: Mapping[str, Factors]) -> dict[str, Matrix]:
    """See `Plan`: what is stored, two matrices in place of each that is factorized."""
    matrices = {t.name: Matrix((Part(t.source, t.plus),)) for t in tensors if t.source is not None}
    for name in [name for name, matrix in matrices.items() if matrix.parts[0].fact.name in factors]:
        module, pair = name.removesuffix(".weight"), factors[matrices.pop(name).parts[0].fact.name]
        matrices[f"{module}.right.weight"] = Matrix((Part(pair.right),))
        matrices[f"{module}.left.weight"] = Matrix((Part(pair.left),))
        if (bias := matrices.pop(f"{module}.bias", None)) is not None:
            matrices[f"{module}.left.bias"] = bias
    return matrices


def _plan_encoder(facts: ModelFacts, task: str, preset: Preset) -> tuple[Plan | None, list[Problem]]:
    tensors, problems = account(facts, task)
    if problems:
        return None, problems
    spec = encoder_spec(facts, task, tensors)
    matrices = {name: Matrix((Part(fact),)) for name, fact in tensors.items()}
    return Plan(
        task=task,
        preset=preset,
        config=facts.config,
        full=facts.config,
        matrices=matrices,
        n_params=sum(fact.n_elements for fact in tensors.values()),
        context=spec.max_tokens,
        encoder=spec,
        grids=encoder_grids(preset, matrices, spec),
    ), []
