"""All of an export to a PyTorch format that is decided before a weight is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runtime.errors import UnsupportedError
from runtime.memory import available_bytes
from runtime.sessions.base import ENCODER_TASKS
from runtime.units import format_bytes
from targets.base import Problem
from targets.damage import damage_in
from targets.factors import paired_notes, stored_factors
from targets.factors import problems as factor_problems
from targets.gguf.architectures import architecture_of
from targets.gguf.architectures.base import full_config, plan_tensors
from targets.ongrid import foreign_grids
from targets.onnx.decoder_spec import DecoderSpec, decoder_spec, refusals
from targets.onnx.encoder_spec import EncoderSpec, account, encoder_spec
from targets.onnx.weights import Matrix, Part
from targets.planned import preset_named
from targets.task import TEXT_GENERATION, infer_task

if TYPE_CHECKING:
    from collections.abc import Mapping

    from targets.base import EmitOptions
    from targets.factors import Factors
    from targets.facts import ModelFacts
    from targets.pytorch.presets import Preset

TITLES = {"torchscript": "TorchScript", "ptl": "TorchScript", "executorch": "an ExecuTorch program"}
"""Formats as people call them."""
PAIRED = ("torchscript", "ptl")
"""Formats whose modules run a factorized matrix as two products."""


@dataclass(frozen=True)
class Plan:
    """An export that is ready to be written.

    config: config.json as it is; full: with its family's defaults
    matrices: what to read, by the names that `build` asks for; of a factorized MODULE.weight MODULE.right.weight and
        MODULE.left.weight, to which its bias belongs
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
    foreign = foreign_grids(facts.path)
    if foreign:
        return None, foreign
    with damage_in(facts.path / "config.json"):
        if task == TEXT_GENERATION:
            factors = stored_factors(facts.path) if format_name in PAIRED else {}
            plan, problems = _plan_decoder(facts, preset, factors)
        else:
            plan, problems = _plan_encoder(facts, task, preset)
    return plan, [*problems, *(_lack_of_memory(facts, plan) if plan is not None else ())]


def _lack_of_memory(facts: ModelFacts, plan: Plan) -> list[Problem]:
    """The whole module lies in memory before it is written."""
    room, needed = available_bytes(), int(plan.n_params * plan.preset.bytes_per_weight)
    if room is None or needed <= room:
        return []
    what = f"the module takes {format_bytes(needed)} of memory, {format_bytes(room)} are available"
    return [Problem(facts.requested, what, "use a smaller --quant, or export on a larger machine")]


def _plan_decoder(facts: ModelFacts, preset: Preset, factors: Mapping[str, Factors]
                  ) -> tuple[Plan | None, list[Problem]]:  # fmt: skip
    architecture = architecture_of(facts.architecture)
    config = full_config(architecture, facts)
    tensors, problems = plan_tensors(architecture, config, facts)
    problems += refusals(config) + factor_problems(facts, factors)
    if problems:
        return None, problems
    spec = decoder_spec(architecture, config)
    matrices = {t.name: Matrix((Part(t.source, t.plus),)) for t in tensors if t.source is not None}
    _put_pairs(matrices, factors)
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
    ), []


def _put_pairs(matrices: dict[str, Matrix], factors: Mapping[str, Factors]) -> None:
    """Put two matrices in place of each that is factorized; see `Plan`."""
    for name in [name for name, matrix in matrices.items() if matrix.parts[0].fact.name in factors]:
        module, pair = name.removesuffix(".weight"), factors[matrices.pop(name).parts[0].fact.name]
        matrices[f"{module}.right.weight"] = Matrix((Part(pair.right),))
        matrices[f"{module}.left.weight"] = Matrix((Part(pair.left),))
        if (bias := matrices.pop(f"{module}.bias", None)) is not None:
            matrices[f"{module}.left.bias"] = bias


def _plan_encoder(facts: ModelFacts, task: str, preset: Preset) -> tuple[Plan | None, list[Problem]]:
    tensors, problems = account(facts, task)
    if problems:
        return None, problems
    spec = encoder_spec(facts, task, tensors)
    return Plan(
        task=task,
        preset=preset,
        config=facts.config,
        full=facts.config,
        matrices={name: Matrix((Part(fact),)) for name, fact in tensors.items()},
        n_params=sum(fact.n_elements for fact in tensors.values()),
        context=spec.max_tokens,
        encoder=spec,
    ), []
