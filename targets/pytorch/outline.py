"""What a file of a PyTorch format will be before it is written: bytes and multiplications. No torch is imported.

Memory is not known beforehand: what torch's interpreters and ExecuTorch take beside the weights has not been fitted.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.measurement import RunOptions
from targets.base import EmitOptions
from targets.onnx.clients import copy_side_files
from targets.outline import Footprint, Outlined, Work, first_problem
from targets.pytorch.grids import decoder_grids, encoder_grids
from targets.pytorch.plan import make_plan
from targets.pytorch.presets import DYNAMIC, INT8

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from targets.facts import ModelFacts
    from targets.groups import GroupedGrid
    from targets.processor import Processor
    from targets.pytorch.plan import Plan
    from targets.pytorch.presets import Preset

CODE = {"torchscript": (10_000, 3_000), "ptl": (10_000, 8_000), "executorch": (20_000, 7_000)}
"""Bytes of code and names, of all and for each layer; fitted to files of MiniLM and three decoders."""
DYNAMIC_ROW = 12
"""Bytes of a row of a product with 8-bit activations beside its codes and scale: that in double, and a zero point."""
TABLE, HEAD = "token_embd.weight", "output.weight"


@dataclass(frozen=True)
class PytorchOutline:
    """See `targets.outline.Outline`. side_bytes: of config.json, the tokenizer and what else lies beside."""

    format: str
    plan: Plan
    side_bytes: int
    exact: bool = False

    @property
    def quant(self) -> str:
        """The preset."""
        return self.plan.preset.name

    @property
    def encoder(self) -> bool:
        """Whether it reads texts and generates none."""
        return self.plan.encoder is not None

    @property
    def context(self) -> int:
        """Most tokens that it can hold."""
        return self.plan.decoder.trained_context if self.plan.decoder is not None else self.plan.context

    @property
    def file_bytes(self) -> int:
        """With the context that an export has where nobody names one."""
        return self.bytes_with(min(RunOptions.context, self.context))

    def bytes_with(self, context: int) -> int:
        """A program of ExecuTorch has rotary tables for its context, a TorchScript for the model's own."""
        spec = self.plan.decoder or self.plan.encoder
        base, each = CODE[self.format]
        code = base + each * (spec.n_layers if spec is not None else 0)
        return sum(self._stored.values()) + self._rotary_bytes(context) + code + self.side_bytes

    def _rotary_bytes(self, context: int) -> int:
        spec = self.plan.decoder
        if spec is None:
            return 0
        kinds = 2 if any(spec.local) else 1
        if self.format == "executorch":  # as wide as a head, not half of it
            return kinds * 2 * context * spec.head_dim * 4
        return kinds * spec.context * spec.head_dim * self._width

    @property
    def _width(self) -> int:
        return 2 if self.plan.preset.dtype == "bfloat16" else 4

    @cached_property
    def _stored(self) -> dict[str, int]:
        """Bytes of every matrix and vector, by name."""
        plan, found = self.plan, {}
        grids = {**self._dynamic, **plan.grids}
        for name, matrix in plan.matrices.items():
            fact, grid = matrix.parts[0].fact, grids.get(name)
            n_bytes = grid.n_bytes(*fact.shape) if grid is not None else self._width * fact.n_elements
            if name in self._rounded:
                n_bytes += DYNAMIC_ROW * fact.shape[0]
            twice = plan.preset.copies_table and name == TABLE and HEAD not in plan.matrices
            found[name] = (1 + twice) * n_bytes
        return found

    @cached_property
    def _rounded(self) -> set[str]:
        """Products with activations in 8 bits."""
        return self._dynamic.keys() - self.plan.grids.keys()

    @cached_property
    def _dynamic(self) -> Mapping[str, GroupedGrid]:
        """Grids of the products that are rounded while they are written."""
        plan = self.plan
        if plan.preset.layers != DYNAMIC:
            return {}
        rows = dataclasses.replace(plan.preset, layers=INT8)
        if plan.decoder is not None:
            return decoder_grids(rows, plan.matrices, plan.decoder.n_layers)
        return encoder_grids(rows, plan.matrices, plan.encoder) if plan.encoder is not None else {}

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each weight, without what torch keeps in doubles beside a row."""
        doubles = sum(DYNAMIC_ROW * self.plan.matrices[n].parts[0].fact.shape[0] for n in self._rounded)
        return 8 * (sum(self._stored.values()) - doubles) / self.plan.n_params

    def kv_types(self) -> Sequence[str]:
        """The one that the module has."""
        return ("bf16",) if self._width == 2 else ("f32",)

    def footprint(self, options: RunOptions, processor: Processor) -> Footprint | None:
        """Not known."""
        del options, processor
        unknown: Footprint | None = None
        return unknown

    def work(self) -> Work:
        """Every matrix once; a table that is also the head is multiplied by, one that is not is looked up in."""
        spec = self.plan.decoder
        head = HEAD if HEAD in self.plan.matrices else TABLE
        layers = {name for name in self._stored if name.startswith("blk.") or name == head}
        multiplied = {n for n in layers if len(self.plan.matrices[n].parts[0].fact.shape) == 2}
        elements = sum(self.plan.matrices[name].parts[0].fact.n_elements for name in multiplied)
        n_bytes = sum(self._stored[name] for name in multiplied)
        if spec is None:
            return Work({self.quant: elements}, {}, n_bytes, self.plan.encoder.n_layers if self.plan.encoder else 0)
        per_layer = 2 * spec.head_dim * spec.n_layers
        return Work(
            weights={self.quant: elements},
            head={},
            weight_bytes=n_bytes,
            n_layers=spec.n_layers,
            kv_elements=spec.n_kv_heads * per_layer,
            attention=spec.n_heads * per_layer,
        )


def outlines(
    facts: ModelFacts, quants: Sequence[str] | None, format_name: str, presets: Mapping[str, Preset]
) -> Outlined:
    """As those of targets/onnx/outline.py. presets: of that format"""
    found: list[PytorchOutline] = []
    refused: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as directory:
        room = Path(directory)
        if facts.path.is_dir():
            copy_side_files(facts.path, room)
        side = sum(path.stat().st_size for path in room.rglob("*") if path.is_file())
    side += len(json.dumps(facts.config, indent=2)) + 1
    for name in quants or presets:
        plan, problems = make_plan(facts, EmitOptions(name), format_name, presets)
        if plan is None or problems:
            refused[name] = first_problem(problems)
        else:
            found.append(PytorchOutline(format_name, plan, side))
    return Outlined(tuple(found), refused)
