"""Which grid every matrix of an ONNX export is stored on, for methods that choose codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.errors import UnsupportedError
from targets.gguf.architectures.base import full_config, plan_tensors
from targets.groups import RowGrid
from targets.onnx.decoder_spec import architecture_with_graph, decoder_spec
from targets.onnx.linear import BlockScheme, DynamicScheme
from targets.onnx.plan import role_of
from targets.onnx.presets import PRESETS, table_scheme
from targets.planned import preset_named

if TYPE_CHECKING:
    from targets.base import EmitOptions
    from targets.facts import ModelFacts
    from targets.onnx.blocks import BlockGrid


def decoder_grids(facts: ModelFacts, options: EmitOptions) -> dict[str, BlockGrid | RowGrid]:
    """The grid of every weight of a decoder that a preset does not keep in floats, by its name; blocks divide its rows.

    Raises UnsupportedError for a preset of floats.
    """
    preset = preset_named(options.quant, PRESETS, "onnx")
    architecture = architecture_with_graph(facts.architecture)
    config = full_config(architecture, facts)
    tensors, _ = plan_tensors(architecture, config, facts)
    n_layers = decoder_spec(architecture, config).n_layers
    found: dict[str, BlockGrid | RowGrid] = {}
    for tensor in tensors:
        role, layer = role_of(tensor.name)
        if tensor.source is None or len(tensor.source.shape) != 2:
            continue
        columns = tensor.source.shape[1]
        # The largest blocks that divide a row: a side file knows a block by that.
        scheme = table_scheme(preset.scheme(role, layer, n_layers), columns)
        if isinstance(scheme, BlockScheme):
            found[tensor.source.name] = scheme.grid
        elif isinstance(scheme, DynamicScheme):
            found[tensor.source.name] = RowGrid(columns)
    if not found:
        known = [name for name in PRESETS if "int" in name]
        raise UnsupportedError(f"preset {preset.name} has no codes that could be chosen; use {', '.join(known)}")
    return found
