"""The module of a plan, its weights read and quantized matrix by matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from targets.executorch.layers import FloatLinear, GroupLinear, RowLinear, Table
from targets.executorch.modules import (
    Attention,
    Decoder,
    DecoderLayer,
    Encoder,
    EncoderLayer,
    GatedForward,
    LayerNorm,
    RmsNorm,
)
from targets.pytorch.presets import FLOAT, GROUP, INT4, INT8
from targets.pytorch.reading import MatrixReader, encoder_ways, int8_rows

if TYPE_CHECKING:
    from torch import Tensor, nn

    from targets.base import Progress
    from targets.onnx.decoder_spec import DecoderSpec
    from targets.onnx.encoder_spec import EncoderSpec
    from targets.pytorch.plan import Plan
    from targets.weights import WeightReader


class Builder(MatrixReader):
    """Reads the matrices of a plan and makes modules of them. capacity: tokens of a decoder's cache."""

    def __init__(self, plan: Plan, reader: WeightReader, progress: Progress, capacity: int) -> None:
        super().__init__(plan, reader, progress)
        self.capacity = capacity

    def _linear(self, kind: str, name: str) -> nn.Module:
        """The product of a stored matrix, with its bias."""
        bias = self.biases([name])
        if kind == FLOAT:
            self.counts[FLOAT] += 1
            return self.counted(FloatLinear(torch.from_numpy(self.read(name).copy()), bias))
        grid, parts = self.plan.grids[name], self.coded(name)
        self.stored += grid.n_bytes(*parts.codes.shape)
        if grid.bits == 4:
            self.counts[INT4] += 1
            codes = torch.from_numpy(parts.codes.view(np.int8) - np.int8(grid.middle))
            return GroupLinear(codes, torch.from_numpy(parts.scales), bias, GROUP)
        self.counts[INT8] += 1
        return RowLinear(*int8_rows(parts), bias)

    def _decoder(self, spec: DecoderSpec) -> nn.Module:
        preset = self.plan.preset
        layers: list[nn.Module] = []
        table, head = self._table_and_head(spec)
        for number in range(spec.n_layers):
            start = f"blk.{number}."

            def norm(name: str, start: str = start, *, there: bool = True) -> nn.Module:
                return RmsNorm(self.vector(f"{start}{name}.weight"), spec.eps) if there else torch.nn.Identity()

            def product(role: str, start: str = start, number: int = number) -> nn.Module:
                return self._linear(preset.kind(role, number, spec.n_layers), f"{start}{role}.weight")

            attention = Attention(
                [product(role) for role in ("attn_q", "attn_k", "attn_v", "attn_output")],
                norm("attn_q_norm", there=spec.head_norms), norm("attn_k_norm", there=spec.head_norms),
                (spec.n_heads, spec.n_kv_heads, spec.head_dim), spec.scale, self.capacity,
            )  # fmt: skip
            forward = GatedForward(
                product("ffn_gate"), product("ffn_up"), product("ffn_down"), spec.activation != "silu"
            )
            norms = [norm("attn_norm"), norm("ffn_norm"), norm("post_attention_norm", there=spec.post_norms),
                     norm("post_ffw_norm", there=spec.post_norms)]  # fmt: skip
            # A window that the cache never outgrows hides nothing.
            windowed = 0 < spec.windows[number] < self.capacity
            layers.append(DecoderLayer(attention, forward, norms, spec.local[number], windowed))
        windows = {window for window in spec.windows if 0 < window < self.capacity}
        return Decoder(
            table, layers, RmsNorm(self.vector("output_norm.weight"), spec.eps), head,
            self.rotary(spec, self.capacity), float(spec.embedding_scale), float(spec.softcap), max(windows, default=0),
        )  # fmt: skip

    def _table_and_head(self, spec: DecoderSpec) -> tuple[nn.Module, nn.Module]:
        """The table of tokens, and the product that gives logits: XNNPACK keeps a copy of its own of that."""
        table, rows = self._table("token_embd.weight")
        if not spec.tied:
            return table, self._linear(self.plan.preset.table, "output.weight")
        if isinstance(rows, tuple):
            self.stored += rows[0].numel() + 4 * len(rows[0])
            return table, RowLinear(*rows, None)
        return table, self.counted(FloatLinear(rows, None))

    def _table(self, name: str) -> tuple[nn.Module, Tensor | tuple[Tensor, Tensor]]:
        """The table of tokens, and its rows: floats, or codes and scales."""
        kind = self.plan.preset.table
        self.counts[kind] += 1
        if kind == FLOAT:
            values = torch.from_numpy(self.read(name).copy())
            return self.counted(Table(values, None)), values
        codes, scales = int8_rows(self.coded(name))
        return self.counted(Table(codes, scales.unsqueeze(1).clone())), (codes, scales)

    def _encoder(self, spec: EncoderSpec) -> nn.Module:
        preset = self.plan.preset
        names, family = spec.family.embeddings, spec.family

        def norm(module: str) -> nn.Module:
            return LayerNorm(self.vector(f"{module}.weight"), self.vector(f"{module}.bias"), spec.eps)

        layers: list[nn.Module] = []
        table, _ = self._table(f"{names['word']}.weight")
        for number in range(spec.n_layers):
            module = {role: family.layers.format(i=number) + end for role, end in family.modules.items()}
            products = [
                self._linear(preset.kind(role, number, spec.n_layers), f"{module[role]}.weight")
                for role in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down")
            ]
            norms = [norm(module["attn_norm"]), norm(module["ffn_norm"])]
            layers.append(EncoderLayer(products, norms, spec.n_heads, spec.hidden, spec.activation))
        positions, types = self.embeddings(spec)
        # In floats: a classifier's matrices are small and decide.
        head = self.classifier(spec, lambda _title, name: self._linear(FLOAT, name))
        return Encoder(table, positions, types, norm(names["norm"]), layers, head, *encoder_ways(spec))
