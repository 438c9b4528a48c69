"""The TorchScript backend: a scripted module in one file for libtorch, and the tokenizer beside it."""

from __future__ import annotations

import contextlib
import os
import warnings
from typing import TYPE_CHECKING, Any

from runtime.errors import ModelError, in_one_line
from targets.base import Problem
from targets.ongrid import recorded_preset
from targets.onnx import calibration
from targets.onnx.clients import copy_side_files
from targets.planned import PlannedTarget
from targets.processor import arch_here
from targets.pytorch.directory import finish
from targets.pytorch.plan import Plan, make_plan
from targets.pytorch.presets import DYNAMIC, FLOAT
from targets.task import TEXT_GENERATION, infer_task
from targets.torchscript.presets import PRESETS
from targets.weights import WeightReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from runtime.artifact import Artifact
    from targets.base import EmitOptions, Progress
    from targets.facts import ModelFacts
    from targets.torchscript.build import Builder

    Floats = npt.NDArray[np.float32]

ENGINES = {"x86_64": ("x86", "fbgemm"), "aarch64": ("qnnpack",)}
"""Engines of the products with 8-bit activations by kind of processor, the best first."""


class TorchScriptTarget(PlannedTarget[Plan]):
    """Writes directories with a `.pt` that torch or libtorch loads alone.

    file: always the same, since TorchScript writes the file's name into the file
    """

    name = "torchscript"
    file = "model.pt"

    def presets(self) -> dict[str, str]:
        """Quantization presets by name, with a line for people."""
        return {preset.name: preset.help for preset in PRESETS.values()}

    def default_quant(self, facts: ModelFacts) -> str:
        """The preset where the user names none."""
        if recorded := recorded_preset(facts.path, "torchscript"):
            return recorded
        return "int8" if infer_task(facts) == TEXT_GENERATION else "dynamic-int8"

    def make_plan(self, facts: ModelFacts, options: EmitOptions) -> tuple[Plan | None, list[Problem]]:
        """See `PlannedTarget`."""
        plan, problems = make_plan(facts, options, self.name, PRESETS)
        if plan is not None and plan.preset.layers == DYNAMIC and not _engine_for(options):
            what = f"this build of torch has none of the engines {', '.join(ENGINES.get(_arch(options), ('x86',)))}"
            problems.append(Problem(f"--quant {plan.preset.name}", what, "use --quant fp32 or bf16"))
        return plan, problems

    def emit(self, facts: ModelFacts, options: EmitOptions, out: Path, progress: Progress) -> Artifact:
        """Write the directory. Raises ModelError for NaN or infinite weights."""
        plan = self.plan(facts, options)
        side_files = copy_side_files(facts.path, out)
        engine, notes = "", list(plan.notes)
        with warnings.catch_warnings():
            # Deprecated, as the docs say; a user who asked for it need not read it of every call.
            warnings.filterwarnings("ignore", message=".*(torch.jit|Lite Interpreter).*", category=DeprecationWarning)
            warnings.filterwarnings("ignore", message=".*quantize_per_channel.*deprecated.*", category=UserWarning)
            if plan.preset.layers == DYNAMIC:
                engine = _engine_for(options)
            made, module = _module(facts, plan, options, progress, notes, engine)
            self.save(module, out / self.file)
        contract = _contract(plan, dict(made.counts), engine, notes)
        return finish(out, facts, plan, (self.name, self.file, side_files), made.stored, plan.context, contract)

    def save(self, module: Any, path: Path) -> None:  # noqa: ANN401 - torch is untyped here
        """Write a scripted module. Raises ModelError where it cannot be written."""
        import torch

        with writing(path):
            torch.jit.save(module, str(path))


def _arch(options: EmitOptions) -> str:
    """The kind of processor that the export is for."""
    return options.arch or arch_here()


def _engine_for(options: EmitOptions) -> str:
    """torch's best engine for 8-bit activations on the device; empty where this build has none of them."""
    import torch

    known = torch.backends.quantized.supported_engines
    return next((name for name in ENGINES.get(_arch(options), ()) if name in known), "")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes `path`: a full disk is one clear line, and the bytes are on it. Raises ModelError."""
    try:
        yield
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        reason = in_one_line(error)
        raise ModelError(f"{path.parent}: cannot be written ({reason}); free space or choose another -o") from error


def _module(facts: ModelFacts, plan: Plan, options: EmitOptions, progress: Progress, notes: list[str], engine: str
            ) -> tuple[Builder, Any]:  # fmt: skip
    """The scripted module, and what built it, which knows what it is made of."""
    import torch

    from targets.torchscript.build import Builder

    if engine:
        torch.backends.quantized.engine = engine
    # Engine x86 is fbgemm's kernels, whose sums of 16 bits overflow, where the processor has no VNNI.
    narrow = engine == "fbgemm" or (engine == "x86" and not torch.cpu._is_vnni_supported())
    with WeightReader() as reader, torch.inference_mode():
        smoothing: dict[str, Floats] = {}
        if plan.preset.layers == DYNAMIC:
            smoothing, method = _smoothing(facts, plan, options, reader, progress)
            notes.append(method)
        builder = Builder(plan, reader, progress, narrow=narrow, smoothing=smoothing)
        return builder, _scripted(builder.build(), plan)


def _smoothing(facts: ModelFacts, plan: Plan, options: EmitOptions, reader: WeightReader, progress: Progress
               ) -> tuple[dict[str, Floats], str]:  # fmt: skip
    """Of each product, what its input features are divided by: from running the float model over the text."""
    import dataclasses

    import torch

    from targets.torchscript.build import Builder

    pieces = dataclasses.replace(options.calibration, tokens=min(options.calibration.tokens, plan.context))
    chunks, name = calibration.token_chunks(facts.path / "tokenizer.json", pieces)
    floats = Builder(dataclasses.replace(plan, preset=PRESETS["fp32"], grids={}), reader, progress)
    module: Any = floats.build()
    peaks: dict[str, Any] = {}

    def watch(title: str) -> Callable[..., None]:
        def see(_module: object, inputs: tuple[Any, ...]) -> None:
            found = inputs[0].abs().reshape(-1, inputs[0].shape[-1]).amax(0)
            peaks[title] = torch.maximum(peaks[title], found) if title in peaks else found

        return see

    for title, product in floats.products.items():
        product.register_forward_pre_hook(watch(title))
    for number, chunk in enumerate(chunks):
        ids = torch.tensor([chunk])
        if plan.encoder is not None:
            module(ids, torch.ones_like(ids))
        else:
            module(ids, module.new_cache(len(chunk)), 0)
        progress("calibrate", number + 1, len(chunks))
    factors = {title: calibration.smoothing_factors(found.numpy()) for title, found in peaks.items()}
    tokens = sum(map(len, chunks))
    kept = {title: factor for title, factor in factors.items() if factor is not None}
    return kept, f"inputs smoothed by what {tokens} tokens of {name} showed"


def _scripted(module: Any, plan: Plan) -> Any:  # noqa: ANN401 - torch is untyped here
    """The module, scripted and frozen."""
    import torch

    scripted = torch.jit.script(module)
    # Freezing computes what depends on weights only: of 8-bit codes it would store their floats.
    if plan.preset.layers == FLOAT or (plan.preset.layers == DYNAMIC and plan.encoder is not None):
        kept = ["new_cache"] if plan.decoder is not None else None
        scripted = torch.jit.freeze(scripted, preserved_attrs=kept)
    return scripted


def _contract(plan: Plan, counts: dict[str, int], engine: str, notes: list[str]) -> dict[str, Any]:
    """What a client has to know to call the module."""
    import torch

    contract: dict[str, Any] = {
        "engine": "libtorch",
        "task": plan.task,
        "torch": torch.__version__.split("+")[0],
        "tensors": counts,
        "notes": notes,
    }
    if engine:
        contract["quantized_engine"] = engine
    if plan.decoder is not None:
        names = {"inputs": ["input_ids", "cache", "position", "keep"], "outputs": ["logits", "cache"]}
        return contract | names | {"methods": ["new_cache"], "n_vocab": plan.n_vocab}
    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    return contract | {"inputs": inputs, "outputs": plan.encoder_outputs, "n_vocab": plan.n_vocab}
