"""The ExecuTorch backend: a program in one file, and the tokenizer beside it."""

from __future__ import annotations

import importlib.util
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from runtime.errors import UserError
from runtime.measurement import RunOptions
from targets.base import Problem
from targets.executorch.presets import PRESETS
from targets.factors import merged_notes
from targets.ongrid import recorded_preset
from targets.onnx.clients import copy_side_files
from targets.planned import PlannedTarget
from targets.pytorch.directory import finish
from targets.pytorch.plan import Plan, make_plan
from targets.weights import WeightReader

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.artifact import Artifact
    from targets.base import EmitOptions, Progress
    from targets.executorch.build import Builder
    from targets.facts import ModelFacts
    from targets.onnx.decoder_spec import DecoderSpec

FILE = "model.pte"
PIECE = 128
"""Most tokens that a decoder's program takes at once: memory for their activations is planned into the program."""


class ExecuTorchTarget(PlannedTarget[Plan]):
    """Writes directories with a `.pte` for ExecuTorch's runtime."""

    name = "executorch"

    def presets(self) -> dict[str, str]:
        """Quantization presets by name, with a line for people."""
        return {preset.name: preset.help for preset in PRESETS.values()}

    def default_quant(self, facts: ModelFacts) -> str:
        """The preset where the user names none."""
        return recorded_preset(facts.path, self.name) or "int8"

    def make_plan(self, facts: ModelFacts, options: EmitOptions) -> tuple[Plan | None, list[Problem]]:
        """See `PlannedTarget`. Raises UserError where executorch is not installed."""
        if importlib.util.find_spec("executorch") is None:
            raise UserError("--format executorch needs the package executorch; pip install 'packlight[executorch]'")
        plan, problems = make_plan(facts, options, self.name, PRESETS)
        if plan is not None and plan.decoder is not None and (options.context or 0) > plan.decoder.trained_context:
            longest = plan.decoder.trained_context
            what = f"{options.context} tokens are more than the {longest} that the model has"
            return None, [Problem("--context", what, f"choose --context {longest} or fewer")]
        return plan, problems

    def emit(self, facts: ModelFacts, options: EmitOptions, out: Path, progress: Progress) -> Artifact:
        """Write the directory. Raises ModelError for NaN or infinite weights."""
        plan = self.plan(facts, options)
        side_files = copy_side_files(facts.path, out)
        capacity = plan.context
        if plan.decoder is not None:  # its rotary tables are as long as the cache, however long that is
            capacity = min(options.context or RunOptions.context, plan.decoder.trained_context)
        made, contract = _write(plan, capacity, out / FILE, progress)
        contract["notes"] = merged_notes(facts.path)
        return finish(out, facts, plan, (self.name, FILE, side_files), made.stored, capacity, contract)


def _write(plan: Plan, capacity: int, path: Path, progress: Progress) -> tuple[Builder, dict[str, Any]]:
    """Build, lower and write the module; what built it knows what it is made of. The second is its contract."""
    from targets.executorch.lower import quiet, register_operators, write_program

    with WeightReader() as reader, quiet():
        import torch

        from targets.executorch.build import Builder

        if plan.decoder is not None:
            register_operators()
        with torch.no_grad():
            builder = Builder(plan, reader, progress, capacity)
            module = builder.build()
            progress("lower", 0, 1)
            if plan.decoder is not None:
                longest = min(PIECE, capacity)
                start = torch.zeros(1, dtype=torch.int64)
                write_program(module, 1, longest, _metadata(plan, capacity, longest), path, [start])
            else:
                write_program(module, _kinds(module) + 2, capacity, {}, path)
            progress("lower", 1, 1)
    return builder, _contract(plan, capacity, module, dict(builder.counts))


def _kinds(module: Any) -> int:  # noqa: ANN401 - torch is untyped here
    """1 for an encoder that knows more kinds of tokens than one, and so takes their ids."""
    return int(len(module.types) > 1)


def _metadata(plan: Plan, capacity: int, longest: int) -> dict[str, Any]:
    """Constant methods that ExecuTorch's own LLM runner asks for, by its names."""
    ends = plan.config.get("eos_token_id")
    start = plan.config.get("bos_token_id")
    known: dict[str, Any] = {
        "get_max_seq_len": longest,
        "get_max_context_len": capacity,
        "get_vocab_size": plan.n_vocab,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "enable_dynamic_shape": True,
    }
    if isinstance(start, int):
        known["get_bos_id"] = start
    if ends is not None:
        known["get_eos_ids"] = [int(end) for end in (ends if isinstance(ends, list) else [ends])]
    return known


def _cache_contract(spec: DecoderSpec, capacity: int) -> dict[str, Any]:
    """Of a decoder: piece, tokens that a call takes at most; kv_bytes, of the cache that the program keeps."""
    kv_bytes = 2 * spec.n_layers * capacity * spec.n_kv_heads * spec.head_dim * 4
    return {"piece": min(PIECE, capacity), "kv_type": "f32", "kv_bytes": kv_bytes}


def _contract(plan: Plan, capacity: int, module: Any, counts: dict[str, int]) -> dict[str, Any]:  # noqa: ANN401
    """What a client has to know to call the program."""
    contract: dict[str, Any] = {
        "engine": "ExecuTorch",
        "task": plan.task,
        "executorch": version("executorch"),
        "backend": "XNNPACK",
        "tensors": counts,
    }
    if plan.decoder is not None:
        names = {"inputs": ["input_ids", "input_pos"], "outputs": ["logits"], "n_vocab": plan.n_vocab}
        return contract | names | _cache_contract(plan.decoder, capacity)
    inputs = ["input_ids", "attention_mask", *["token_type_ids"] * _kinds(module)]
    return contract | {"inputs": inputs, "outputs": plan.encoder_outputs, "n_vocab": plan.n_vocab}
