"""The quantize step of a recipe: every matrix onto a grid of the format."""

from __future__ import annotations

import contextlib
import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from exporter.compress.factored import factored_modules, merge
from exporter.compress.quantize.gptq import is_pruned
from exporter.compress.subject import fact_now
from runtime.errors import ModelError, UserError
from targets.factors import Factors
from targets.ongrid import SIDE_FILES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from exporter.compress.quantize.fake import Over
    from exporter.compress.subject import Subject
    from exporter.steps import OnGrid, Quantize, Rule
    from targets.base import EmitOptions, Progress
    from targets.facts import ModelFacts
    from targets.gguf.grids import GgufGrid
    from targets.grids import Grid

    Bits = npt.NDArray[np.uint8]

SIDES = ("left", "right")
ALIGNMENT = 32
"""Bytes that a tensor's place in the file may be padded by."""


def run(step: Quantize, subject: Subject) -> None:
    """See `exporter.compress.registry.Runner`. The codes of every weight go into the subject's files."""
    with contextlib.nullcontext() if step.training is None else subject.kept.in_turn():
        before, weights, blocks = _chosen(step, subject)
    if step.training is not None:
        blocks = _trained(step.training, subject, blocks, weights, before)
    _note_lost_zeros(before, blocks, subject)
    found: dict[str, Any] = {}
    for name, (grid, packed) in blocks.items():
        found |= grid.tensors(name, packed)
    assert subject.target is not None
    subject.files[SIDE_FILES[subject.target.name]] = found


def _chosen(
    step: Quantize, subject: Subject
) -> tuple[dict[str, Bits], dict[str, torch.Tensor], dict[str, tuple[Grid, Bits]]]:
    """Where zeros were, weights as they were where a training needs them, and the bytes of all; by weights' names."""
    from exporter.compress.quantize.autoround import AutoRoundOptions
    from exporter.compress.quantize.run import METHODS, Learned, quantize

    assert subject.target is not None, "a recipe with a quantize step has a format"
    grids = _GRIDS[subject.target.name](step, subject)
    before = _pruned(subject)
    trains = step.training is not None and step.training.train == "all"
    weights = {name: subject.model.get_parameter(name).detach().clone() for name in grids} if trains else {}
    learned = None
    if step.method == "autoround":
        learned = Learned(AutoRoundOptions(step.iterations), subject.recipe.seed)
    chunks = subject.chunks if subject.kept.first else []  # all that text tells is kept
    try:
        blocks = quantize(subject.walk(chunks), grids, METHODS[step.method], subject.progress, learned, subject.kept)
    except OverflowError as error:
        raise ModelError(f"{subject.facts.requested}: {error}; use another preset") from error
    return before, weights, blocks


def _trained(
    training: OnGrid,
    subject: Subject,
    blocks: Mapping[str, tuple[Grid, Bits]],
    weights: dict[str, torch.Tensor],
    pruned: Mapping[str, Bits],
) -> dict[str, tuple[Grid, Bits]]:
    """Bytes that make the whole model predict more like the source.

    weights: what those that learn were before they were put on their grids; taken out of it
    """
    from exporter.compress.quantize.fake import FakeQuantized
    from exporter.compress.training.lessons import lessons
    from exporter.compress.training.student import Student
    from exporter.compress.training.trainer import train

    model = subject.model
    taught = lessons(training, subject)
    whole = training.train == "all"
    rest = [one for one in model.parameters() if whole or one.dim() == 1]
    rounded = {name: over for name, (grid, _) in blocks.items() if (over := _rounded_over(grid, subject))}
    fake = FakeQuantized(model, blocks, weights=whole, inputs=rounded)
    while weights:
        fake.lean(*weights.popitem())  # which leave the memory so
    matrices = {name: model.get_parameter(name) for name in pruned} if whole else {}
    zeros = {weight: partial(_where, pruned[name], weight.shape) for name, weight in matrices.items()}
    student = Student(model, rest, fake.scales(), zeros, fake.as_stored)
    train(student, taught, training, subject, "training on the grid")
    return fake.packed()


def _rounded_over(grid: Grid, subject: Subject) -> Over | None:
    """Over what an engine rounds the inputs of a product with such a matrix to 8 bits; None where it does not.

    Not where ranges are fixed, which an export finds by calibration, nor where an engine rounds within blocks of a row.
    """
    from targets.groups import RowGrid

    assert subject.target is not None
    assert subject.options is not None
    if subject.target.name == "executorch":
        return "token"
    dynamic = subject.target.name == "onnx" and subject.options.quant == "dynamic-int8"
    return "text" if dynamic and isinstance(grid, RowGrid) else None


def _where(bits: Bits, shape: torch.Size) -> torch.Tensor:
    return torch.from_numpy(np.unpackbits(bits, count=shape.numel()).astype(bool)).reshape(shape)


def _pruned(subject: Subject) -> dict[str, Bits]:
    """Where the zeros are of every matrix that was pruned, by name, eight weights a byte."""
    found = {}
    for name, module in subject.matrices():
        weight = module.weight.detach().numpy()
        if is_pruned(weight):
            found[name] = np.packbits(weight == 0)
        subject.source.give_back()
    return found


def _note_lost_zeros(before: Mapping[str, Bits], blocks: Mapping[str, tuple[Grid, Any]], subject: Subject) -> None:
    """Say which grids did not keep the zeros that were pruned."""
    n_before = n_kept = 0
    types = set()
    for name, module in subject.matrices():
        if name in before and name in blocks:
            kept = before[name] & np.packbits(module.weight.detach().numpy() == 0)
            n, n_left = (int(np.unpackbits(bits).sum()) for bits in (before[name], kept))
            n_before, n_kept = n_before + n, n_kept + n_left
            types |= {blocks[name][0].name} if n_left < n else set()
            subject.source.give_back()
    if types:
        what, share = ", ".join(sorted(types)), n_kept / n_before
        subject.notes.append(f"zeros: {share:.0%} of the pruned weights still are: no exact zero in {what}")


def _for_gguf(step: Quantize, subject: Subject) -> Mapping[str, Grid]:
    """The grids of a GGUF preset, or those that measuring gives for its bytes; factors are multiplied out."""
    if n := merge(subject.model):
        subject.notes.append(f"factors: {n} pairs were multiplied out first: GGUF has no pairs, its file is no smaller")
    assert subject.options is not None
    grids, ruled = _grids(subject.now(), subject.options, step.rules)
    if step.types == "measured":
        grids = _kept_grids(
            subject, lambda: _measured_grids(subject.model, grids, ruled, subject.chunks, subject.progress)
        )
    return grids


def _kept_grids(subject: Subject, measure: Callable[[], dict[str, GgufGrid]]) -> dict[str, GgufGrid]:
    """What was measured before a kill, or is now: what layers were put on already must not come out otherwise."""
    from targets.gguf.grids import GRIDS

    if (known := subject.kept.find("types")) is not None:
        return {name: GRIDS[grid] for name, grid in known["grids"].items()}
    grids = measure()
    subject.kept.note("types", grids={name: grid.name for name, grid in grids.items()})
    return grids


def _for_onnx(_step: Quantize, subject: Subject) -> Mapping[str, Grid]:
    """The blocks and rows of an ONNX preset; two factors have those of their matrix."""
    from targets.groups import RowGrid
    from targets.onnx.blockgrid import CompressionGrid
    from targets.onnx.blocks import BlockGrid
    from targets.onnx.grids import matrix_grids

    assert subject.options is not None
    grids = matrix_grids(subject.now(), subject.task, subject.options)
    for name, module in factored_modules(subject.model):
        grid = grids.pop(f"{name}.weight")
        for side in ("left", "right"):
            columns, size = getattr(module, side).weight.shape[1], grid.size
            if isinstance(grid, RowGrid):
                size = columns
            while columns % size:
                size //= 2
            grids[f"{name}.{side}.weight"] = dataclasses.replace(grid, size=size)
    return {name: CompressionGrid(grid) if isinstance(grid, BlockGrid) else grid for name, grid in grids.items()}


def _for_torchscript(step: Quantize, subject: Subject) -> Mapping[str, Grid]:
    """The groups of a TorchScript preset; factors are products of their own."""
    from targets.pytorch.plan import group_grids
    from targets.torchscript.presets import PRESETS

    factors = {
        f"{name}.weight": Factors(*(fact_now(f"{name}.{side}.weight", getattr(module, side).weight) for side in SIDES))
        for name, module in factored_modules(subject.model)
    }
    return group_grids(subject.now(), subject.task, step.preset, "torchscript", PRESETS, factors)


def _for_executorch(step: Quantize, subject: Subject) -> Mapping[str, Grid]:
    """The groups of an ExecuTorch preset; factors are multiplied out."""
    from targets.executorch.presets import PRESETS
    from targets.pytorch.plan import group_grids

    if n := merge(subject.model):
        what = "ExecuTorch's program has no pairs, its file is no smaller"
        subject.notes.append(f"factors: {n} pairs were multiplied out first: {what}")
    return group_grids(subject.now(), subject.task, step.preset, "executorch", PRESETS, {})


def preset_grids(step: Quantize, subject: Subject) -> Mapping[str, Grid]:
    """The grids of the step's preset, rules seen, before any measuring: what the steps before it may plan for."""
    assert subject.target is not None
    return _GRIDS[subject.target.name](step.model_copy(update={"types": "preset"}), subject)


_GRIDS = {
    "gguf": _for_gguf,
    "onnx": _for_onnx,
    "torchscript": _for_torchscript,
    "executorch": _for_executorch,
}


def _grids(facts: ModelFacts, options: EmitOptions, rules: Sequence[Rule]) -> tuple[dict[str, GgufGrid], set[str]]:
    """The grid of every weight that the preset quantizes, by the weight's name, and the names that rules decided."""
    from targets.gguf.grids import GRIDS
    from targets.gguf.plan import make_plan

    plan, _ = make_plan(facts, options)
    if plan is None:
        raise ModelError(f"{facts.requested}: cannot be written as GGUF")
    found, ruled = {}, set()
    used: set[Rule] = set()
    for tensor, placed in plan.tensors:
        rule = next((rule for rule in rules if rule.fits(tensor.name)), None)
        used |= {one for one in rules if one.fits(tensor.name)}
        if tensor.source is None or placed.kind.name not in GRIDS:
            continue
        name = placed.kind.name if rule is None else rule.type.upper()
        if name not in GRIDS:
            raise UserError(f"--recipe: type '{name.lower()}' is none of {', '.join(GRIDS).lower()}")
        if not GRIDS[name].kind.fits(tensor.shape[-1]):
            what = f"rows of {tensor.shape[-1]} weights are no whole blocks of {name.lower()}, {GRIDS[name].block}"
            raise UserError(f"--recipe: {tensor.name}: {what}; choose another type")
        found[tensor.source.name] = GRIDS[name]
        ruled |= {tensor.source.name} if rule is not None else set()
    if unused := [rule for rule in rules if rule not in used]:
        what = f"the rule for {unused[0].tensors or unused[0].regex} is for no tensor"
        raise UserError(f"--recipe: {what}; they are named such as {plan.tensors[0][0].name}")
    if not found:
        raise UserError(f"--recipe: preset {options.quant} keeps floats, there is nothing to choose codes for")
    return found, ruled


def _measured_grids(
    model: Any,  # noqa: ANN401 - a model of transformers
    grids: Mapping[str, GgufGrid],
    ruled: set[str],
    chunks: Sequence[Sequence[int]],
    progress: Progress,
) -> dict[str, GgufGrid]:
    """Other grids that take no more bytes together and cost the model less; those of `ruled` stay."""
    from exporter.compress.quantize.allocate import Choice, allocate, losses, sensitivity
    from targets.gguf.grids import GRIDS

    seen = sensitivity(model, chunks, progress)
    names = {id(module): f"{name}.weight" for name, module in model.named_modules()}
    table, head = names[id(model.get_input_embeddings())], names[id(model.get_output_embeddings())]
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    keys = {table: "head" if tied else "", head: "head"}
    weights = dict(model.named_parameters())
    choices: dict[str, list[Choice[GgufGrid]]] = {}
    budget = 0
    known = [one for one in GRIDS.values() if not one.coarse]  # no weight that was not trained to it is near one
    for number, (name, grid) in enumerate(grids.items()):
        progress("types", number, len(grids))
        n_rows, columns = weights[name].shape
        budget += n_rows * grid.kind.row_bytes(columns) - ALIGNMENT
        fitting = [grid] if name in ruled else [one for one in known if one.kind.fits(columns)]
        key = keys.get(name, name)
        lost = losses(weights[name].detach().numpy(), seen, key, fitting, tied=tied and name == table)
        choices[name] = [
            Choice(one, n_rows * one.kind.row_bytes(columns), loss) for one, loss in zip(fitting, lost, strict=True)
        ]
    progress("types", len(grids), len(grids))
    try:
        return {name: choice.grid for name, choice in allocate(choices, budget).items()}
    except ValueError as error:
        raise UserError(f"--recipe: {error}; take rules out, or name a larger preset") from error
