"""Which grid every matrix of an ONNX export is stored on, for methods that choose codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.errors import ModelError, UnsupportedError
from targets.gguf.architectures.base import full_config, plan_tensors
from targets.groups import RowGrid
from targets.onnx.decoder_spec import architecture_with_graph, decoder_spec
from targets.onnx.encoder_spec import account, encoder_spec
from targets.onnx.linear import BlockScheme, DynamicScheme
from targets.onnx.plan import encoder_names, role_of
from targets.onnx.presets import PRESETS, table_scheme
from targets.planned import preset_named
from targets.task import TEXT_GENERATION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from targets.base import EmitOptions
    from targets.facts import ModelFacts, TensorFact
    from targets.onnx.blocks import BlockGrid
    from targets.onnx.linear import Scheme
    from targets.onnx.presets import Preset


def matrix_grids(facts: ModelFacts, task: str, options: EmitOptions) -> dict[str, BlockGrid | RowGrid]:
    """The grid of every weight that a preset does not keep in floats, by its name; blocks divide its rows.

    Raises UnsupportedError for a preset of floats, ModelError for a model that has not all of its weights.
    """
    preset = preset_named(options.quant, PRESETS, "onnx")
    matrices = _of_decoder(facts, preset) if task == TEXT_GENERATION else _of_encoder(facts, task, preset)
    found: dict[str, BlockGrid | RowGrid] = {}
    for weight, scheme in matrices:
        columns = weight.shape[1]
        # The largest blocks that divide a row: a side file knows a block by that.
        fitting = table_scheme(scheme, columns)
        if isinstance(fitting, BlockScheme):
            found[weight.name] = fitting.grid
        elif isinstance(fitting, DynamicScheme):
            found[weight.name] = RowGrid(columns)
    if not found:
        known = [name for name in PRESETS if "int" in name]
        raise UnsupportedError(f"preset {preset.name} has no codes that could be chosen; use {', '.join(known)}")
    return found


def _of_decoder(facts: ModelFacts, preset: Preset) -> Iterator[tuple[TensorFact, Scheme]]:
    """Matrices and their schemes."""
    architecture = architecture_with_graph(facts.architecture)
    config = full_config(architecture, facts)
    tensors, _ = plan_tensors(architecture, config, facts)
    n_layers = decoder_spec(architecture, config).n_layers
    for tensor in tensors:
        role, layer = role_of(tensor.name)
        if tensor.source is not None and len(tensor.source.shape) == 2:
            yield tensor.source, preset.scheme(role, layer, n_layers)


def _of_encoder(facts: ModelFacts, task: str, preset: Preset) -> Iterator[tuple[TensorFact, Scheme]]:
    """Matrices and their schemes; the table of positions has that of words."""
    tensors, problems = account(facts, task)
    if problems:
        raise ModelError(f"{facts.requested}: {problems[0]}")
    spec = encoder_spec(facts, task, tensors)
    for (role, layer), name in encoder_names(spec, tensors).items():
        yield facts.tensors[name], preset.scheme(role, layer, spec.n_layers)
    yield tensors[f"{spec.family.embeddings['position']}.weight"], preset.scheme("token_embd", 0, spec.n_layers)
