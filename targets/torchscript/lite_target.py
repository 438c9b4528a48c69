"""The `.ptl` backend: the TorchScript export in the bytecode of PyTorch's lite interpreter."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from runtime.artifact import record
from runtime.atomic import write_text
from targets.base import Problem
from targets.torchscript.target import TorchScriptTarget, writing

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.artifact import Artifact
    from targets.base import EmitOptions, Progress
    from targets.facts import ModelFacts
    from targets.pytorch.plan import Plan

OPERATORS = "operators.yaml"
"""What PyTorch's selective build takes as SELECTED_OP_LIST."""
INTERPRETER = "torch.jit.mobile"


class LiteTarget(TorchScriptTarget):
    """Writes directories with a `.ptl` and the operators that it needs."""

    name = "ptl"
    file = "model.ptl"

    def make_plan(self, facts: ModelFacts, options: EmitOptions) -> tuple[Plan | None, list[Problem]]:
        """See `PlannedTarget`; a torch without the interpreter is one more problem."""
        plan, problems = super().make_plan(facts, options)
        if importlib.util.find_spec(INTERPRETER) is None:
            problems.append(Problem("--format ptl", "this torch has no lite interpreter", "use --format torchscript"))
        return plan, problems

    def emit(self, facts: ModelFacts, options: EmitOptions, out: Path, progress: Progress) -> Artifact:
        """Write the directory. Raises ModelError for bad weights."""
        mobile: Any = importlib.import_module(INTERPRETER)
        artifact = super().emit(facts, options, out, progress)
        model = str(artifact.entry_path)
        write_text(out / OPERATORS, "".join(f"- {name}\n" for name in sorted(mobile._get_model_ops_and_info(model))))
        contract = {**artifact.contract, "bytecode": mobile._get_model_bytecode_version(model)}
        files = {**artifact.files, OPERATORS: record(out / OPERATORS)}
        return dataclasses.replace(artifact, contract=contract, files=files)

    def save(self, module: Any, path: Path) -> None:  # noqa: ANN401 - torch is untyped here
        """See `TorchScriptTarget`."""
        with writing(path):
            module._save_for_lite_interpreter(str(path))
