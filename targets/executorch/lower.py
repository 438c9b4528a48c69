"""A module of torch as an ExecuTorch program: torch.export, XNNPACK for what it takes, kernels for the rest."""

from __future__ import annotations

import contextlib
import os
import warnings
from typing import TYPE_CHECKING, Any

import torch

from runtime.errors import ModelError
from targets.quiet import no_log_below_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

EXAMPLE = 7
"""Tokens of the example that torch.export traces: neither 0 nor 1, which it would take for fixed."""
TRACED = "packlight_traced"
"""In what torch keeps of a graph: its structure when it was last traced."""


@contextlib.contextmanager
def traced_once() -> Iterator[None]:
    """Passes that have changed nothing trace a graph no more.

    ExecuTorch has most of its passes trace the whole graph anew, whether there is anything that they change: for each
    of XNNPACK's graphs a dozen times. What comes out is what went in, and so are the bytes of the program. (The passes
    of to_executorch have to give another graph than they get; one of them always traces.)
    """
    from executorch.exir.pass_base import ExportPass, PassResult

    trace = ExportPass.call

    def call(self: Any, graph_module: Any) -> Any:  # noqa: ANN401 - of executorch and torch
        if not _only_traces(type(self), ExportPass):
            return trace(self, graph_module)
        if graph_module.meta.get(TRACED) == _structure(graph_module):
            return PassResult(graph_module, modified=False)
        found = trace(self, graph_module)
        found.graph_module.meta[TRACED] = _structure(found.graph_module)
        return found

    ExportPass.call = call
    try:
        yield
    finally:
        ExportPass.call = trace


def _only_traces(kind: type, base: type) -> bool:
    """Whether all that a pass does besides tracing it does before: it takes over none of what is called meanwhile."""
    own = (name for name in dir(base) if not name.startswith(("__", "_abc")) and name != "call")
    return all(getattr(kind, name) is getattr(base, name) for name in own)


def _structure(graph_module: Any) -> str:  # noqa: ANN401 - as above
    """Operators and what they are given, of the graph and of graphs within it."""
    return "\n".join(str(module.graph) for module in graph_module.modules() if isinstance(module, torch.fx.GraphModule))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what executorch and torchao say to their developers."""
    with no_log_below_error(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def register_operators() -> None:
    """Make torch know the operators of the cache and of attention over it, llama::update_cache and custom_sdpa."""
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401


def write_program(module: nn.Module, n_inputs: int, longest: int, metadata: Mapping[str, Any], path: Path,
                  fixed: Sequence[Tensor] = ()) -> None:  # fmt: skip
    """Write a program whose method `forward` takes 1 to `longest` tokens. Raises ModelError where it cannot be written.

    n_inputs: inputs of shape (1, tokens), int64, that come first; fixed: examples of those behind them
    metadata: more methods by name, each giving a constant
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    # Each a tensor of its own: one tensor given twice would be one input.
    rows = [torch.ones(1, min(EXAMPLE, longest), dtype=torch.int64) for _ in range(n_inputs)]
    shape = {1: torch.export.Dim("tokens", min=1, max=longest)}
    exported = torch.export.export(
        module,
        (*rows, *fixed),
        dynamic_shapes=tuple([shape] * n_inputs + [None] * len(fixed)),
        strict=False,
    )
    with traced_once():
        edge = to_edge_transform_and_lower(
            exported,
            partitioner=[XnnpackPartitioner()],
            # The check knows no custom operators.
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
            constant_methods=dict(metadata),
        )
        program = edge.to_executorch()
    try:
        with path.open("wb") as file:
            program.write_to_file(file)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ModelError(f"{path.parent}: cannot be written ({error}); free space or choose another -o") from error
