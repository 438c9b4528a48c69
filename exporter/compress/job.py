"""`packlight compress`: a model through a recipe, into a directory that transformers loads and `export` packs."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from exporter.pipeline import refuse_problems, resolve_model
from exporter.quant import known_quant
from exporter.staging import publish, refuse_occupied, staging
from runtime.atomic import write_json
from runtime.errors import ModelError, UserError
from targets import get_target
from targets.base import Calibration, EmitOptions
from targets.ongrid import GGML, RECIPE
from targets.safetensors import read_facts
from targets.text import default_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from exporter.progress import Reporter
    from exporter.recipe import Recipe, Rule
    from exporter.verify.reference import TransformersReference
    from targets.base import Progress
    from targets.facts import ModelFacts
    from targets.gguf.grids import GgufGrid

EVALUATED = (4, 512)
"""Chunks and tokens that drift is told on after a step; `verify` of the export is the certificate."""
ALIGNMENT = 32
"""Bytes that a tensor's place in the file may be padded by."""
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".pth", ".pt", ".gguf", ".onnx")


@dataclass(frozen=True)
class CompressRequest:
    """One compression, as the user asked for it. recipe_name: as typed; threads: None for torch's own choice."""

    model: str
    out: Path
    recipe: Recipe
    recipe_name: str
    threads: int | None = None
    trust_remote_code: bool = False
    revision: str | None = None


@dataclass(frozen=True)
class StepReport:
    """What a step did.

    file_bytes: of the file that an export makes of the result; n_params: weights
    mean_kl, same_top1: of the model so far against the source, on the evaluation text
    """

    step: str
    seconds: float
    file_bytes: int
    n_params: int
    mean_kl: float
    same_top1: float


@dataclass(frozen=True)
class CompressReport:
    """What a compression did, as it lies in the directory too."""

    model: str
    out: str
    recipe_name: str
    format: str
    preset: str
    steps: tuple[StepReport, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {**dataclasses.asdict(self), "packlight": version("packlight")}


def compress(request: CompressRequest, reporter: Reporter) -> CompressReport:
    """Run the recipe and write OUT. Raises UserError and its kin; OUT is then as it was."""
    from exporter.verify import VerifyOptions, refuse_too_large

    out, (step,) = request.out.absolute(), request.recipe.steps
    refuse_occupied(out, overwrite=False)
    target = get_target(request.recipe.format)
    preset = known_quant(step.preset, target.presets())
    reporter.step(f"reading {request.model}")
    facts = resolve_model(request.model, trust_remote_code=request.trust_remote_code, revision=request.revision)
    if facts.source != "huggingface":
        raise UserError(f"{request.model}: a .gguf file is compressed already; name the Hugging Face directory")
    if (facts.path / RECIPE).is_file():
        raise UserError(f"{request.model}: went through a recipe already; name the original model")
    options = EmitOptions(preset, request.threads)
    refuse_problems(target, facts, options)
    refuse_too_large(facts, VerifyOptions())
    grids, ruled = _grids(facts, options, step.rules)
    with staging(out) as room, _opened(facts, request) as model:
        reporter.step(f"{step.step} by {step.method} onto {request.recipe.format} {preset}")
        start = time.monotonic()
        drift = _Drift(model)
        blocks = _quantize(model, request, (grids, ruled), reporter)
        mean_kl, same_top1 = drift.now()
        seconds = time.monotonic() - start
        reporter.step("writing the directory")
        _write(room, facts, model, blocks)
        done = StepReport(
            step=f"{step.step} {preset} {step.method}", seconds=seconds,
            file_bytes=_file_bytes(room, out.name, options),
            n_params=sum(fact.n_elements for fact in facts.tensors.values()), mean_kl=mean_kl, same_top1=same_top1,
        )  # fmt: skip
        report = CompressReport(request.model, str(out), request.recipe_name, request.recipe.format, preset, (done,))
        write_json(room / RECIPE, report.to_json())
        publish(room, out)
    return report


def _grids(facts: ModelFacts, options: EmitOptions, rules: Sequence[Rule]) -> tuple[dict[str, GgufGrid], set[str]]:
    """The grid of every weight that the preset quantizes, by the weight's name, and the names that rules decided."""
    from targets.gguf.grids import GRIDS
    from targets.gguf.plan import make_plan

    plan, _ = make_plan(facts, options)
    if plan is None:
        raise ModelError(f"{facts.requested}: cannot be written as GGUF")
    found, ruled = {}, set()
    for tensor, placed in plan.tensors:
        if tensor.source is None or placed.kind.name not in GRIDS:
            continue
        rule = next((rule for rule in rules if fnmatchcase(tensor.name, rule.tensors)), None)
        name = placed.kind.name if rule is None else rule.type.upper()
        if name not in GRIDS:
            raise UserError(f"--recipe: type '{name.lower()}' is none of {', '.join(GRIDS).lower()}")
        if not GRIDS[name].kind.fits(tensor.shape[-1]):
            what = f"rows of {tensor.shape[-1]} weights are no whole blocks of {name.lower()}, {GRIDS[name].block}"
            raise UserError(f"--recipe: {tensor.name}: {what}; choose another type")
        found[tensor.source.name] = GRIDS[name]
        ruled |= {tensor.source.name} if rule is not None else set()
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
    choices: dict[str, list[Choice]] = {}
    budget = 0
    for number, (name, grid) in enumerate(grids.items()):
        progress("types", number, len(grids))
        n_rows, columns = weights[name].shape
        budget += n_rows * grid.kind.row_bytes(columns) - ALIGNMENT
        fitting = [grid] if name in ruled else [one for one in GRIDS.values() if one.kind.fits(columns)]
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


def _opened(facts: ModelFacts, request: CompressRequest) -> Any:  # noqa: ANN401 - a context manager
    import contextlib

    from exporter.verify.reference import TransformersReference

    return contextlib.closing(
        TransformersReference(
            facts.path, dtype="float32", threads=request.threads, trust_remote_code=request.trust_remote_code
        )
    )


def _quantize(
    model: TransformersReference, request: CompressRequest, types: tuple[dict[str, GgufGrid], set[str]],
    reporter: Reporter,
) -> dict[str, tuple[GgufGrid, npt.NDArray[np.uint8]]]:  # fmt: skip
    """The blocks of every weight by its name. types: grids, and the names whose grids rules have decided."""
    from exporter.compress.quantize.run import METHODS, quantize
    from exporter.compress.walk import Walk
    from targets.onnx.calibration import token_chunks

    given = request.recipe.calibration
    wanted = Calibration(text=given.text, chunks=given.chunks, tokens=given.tokens)
    chunks, _ = token_chunks(model.path / "tokenizer.json", wanted)
    (step,), (grids, ruled) = request.recipe.steps, types
    if step.types == "measured":
        grids = _measured_grids(model.model, grids, ruled, chunks, reporter.advance)
    try:
        return quantize(Walk(model.model, chunks), grids, METHODS[step.method], reporter.advance)
    except OverflowError as error:
        raise ModelError(f"{request.model}: {error}; use another preset") from error


class _Drift:
    """How far a model in torch has moved from what it was when this was made."""

    def __init__(self, model: TransformersReference) -> None:
        from exporter.verify.run import cut_chunks

        n, tokens = EVALUATED
        self._model, self._first = model, tokens // 2
        self._chunks = cut_chunks(model, default_text("evaluation"), n, tokens)
        self._expected = [self._logits(ids) for ids in self._chunks]

    def _logits(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return self._model.logits(ids.tolist(), self._first)[:-1]

    def now(self) -> tuple[float, float]:
        """Mean KL divergence and share of same top-1."""
        from targets.drift import DriftAccumulator

        accumulator = DriftAccumulator()
        for ids, expected in zip(self._chunks, self._expected, strict=True):
            accumulator.add(expected, self._logits(ids), ids[self._first + 1 :])
        found = accumulator.statistics()
        return found.mean_kl, found.same_top1


def _write(
    room: Path, facts: ModelFacts, model: TransformersReference,
    blocks: Mapping[str, tuple[GgufGrid, npt.NDArray[np.uint8]]],
) -> None:  # fmt: skip
    """The source's own files, its weights as they are now in float32, and the blocks beside them."""
    from safetensors.numpy import save_file as save_arrays
    from safetensors.torch import save_file

    for path in facts.path.iterdir():
        if path.is_file() and not path.name.endswith(_WEIGHTS) and path.name != RECIPE:
            shutil.copyfile(path, room / path.name)
    config = json.loads((facts.path / "config.json").read_text(encoding="utf-8"))
    config = {key: value for key, value in config.items() if key not in ("torch_dtype", "dtype")}
    write_json(room / "config.json", {**config, "dtype": "float32"})
    state = model.model.state_dict()
    if missing := sorted(set(facts.tensors) - set(state)):
        raise ModelError(f"{facts.requested}: transformers has no weight {missing[0]}; it cannot be compressed")
    try:
        save_file(
            {name: state[name].contiguous() for name in facts.tensors}, room / "model.safetensors", {"format": "pt"}
        )
        save_arrays({f"{name}.{grid.name}": packed for name, (grid, packed) in blocks.items()}, room / GGML)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"{room.parent}: cannot be written ({error}); free space or choose another -o") from error


def _file_bytes(directory: Path, name: str, options: EmitOptions) -> int:
    """Of the file that an export of the directory, once it has its name, writes."""
    from targets.gguf.plan import make_plan

    plan, problems = make_plan(read_facts(directory, str(directory), name), options)
    if plan is None:
        raise ModelError("; ".join(map(str, problems)))
    return plan.file_bytes
