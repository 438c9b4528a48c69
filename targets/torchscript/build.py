"""The module of a plan, its weights read and quantized matrix by matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from targets.pytorch.presets import DYNAMIC, FLOAT, GROUP, INT4, INT8
from targets.pytorch.reading import MatrixReader, encoder_ways, int8_rows, rows_to_int8
from targets.torchscript.layers import DynamicLinear, FloatLinear, FloatTable, Int4Linear, Int8Linear, Int8Table
from targets.torchscript.modules import (
    Attention,
    Beside,
    Decoder,
    DecoderLayer,
    Encoder,
    EncoderLayer,
    GatedForward,
    LayerNorm,
    RmsNorm,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt
    from torch import Tensor, nn

    from targets.base import Progress
    from targets.groups import Parts
    from targets.onnx.decoder_spec import DecoderSpec
    from targets.onnx.encoder_spec import EncoderSpec
    from targets.pytorch.plan import Plan
    from targets.weights import WeightReader

    Floats = npt.NDArray[np.float32]


class Builder(MatrixReader):
    """Reads the matrices of a plan and makes modules of them.

    smoothing: by the name of a product, what each feature of its input is divided by; narrow: see DynamicLinear
    products: what was made, by the same names
    """

    def __init__(self, plan: Plan, reader: WeightReader, progress: Progress, *, narrow: bool = False,
                 smoothing: Mapping[str, Floats] | None = None) -> None:  # fmt: skip
        super().__init__(plan, reader, progress)
        self.narrow, self.smoothing = narrow, smoothing or {}
        self.products: dict[str, nn.Module] = {}

    def _linear(self, title: str, kind: str, *names: str) -> nn.Module:
        """A product of stored matrices, one below the other, with their biases; factorized ones are two in turn."""
        if all(name in self.plan.matrices for name in names):
            return self._product(title, kind, *names)
        made: list[nn.Module] = []
        for name in names:
            role = name.removesuffix(".weight")
            of = title if len(names) == 1 else f"{title}.{role.rpartition('.')[2]}"
            if name in self.plan.matrices:
                made.append(self._product(of, kind, name))
            else:
                sides = [self._product(f"{of}.{side}", kind, f"{role}.{side}.weight") for side in ("right", "left")]
                made.append(torch.nn.Sequential(*sides))
        return made[0] if len(made) == 1 else Beside(made)

    def _product(self, title: str, kind: str, *names: str) -> nn.Module:
        """One module for stored matrices, one below the other, with their biases."""
        bias = self.biases(names)
        made: nn.Module
        if kind == FLOAT:
            made = FloatLinear(torch.from_numpy(self.read(*names)).to(self.dtype), bias)
        elif kind == DYNAMIC:
            rows = self.read(*names)
            made = self._dynamic(title, rows, bias)
            self.stored += rows.size + 4 * len(rows)  # behind torch's own packing
        elif self.plan.grids[names[0]].bits == 4:
            kind = INT4
            made = _int4(self.coded(*names), bias)
        else:
            kind = INT8
            codes, scales = int8_rows(self.coded(*names))
            made = Int8Linear(codes, scales.to(self.dtype), bias)
        self.counts[kind] += len(names)
        self.products[title] = self.counted(made)
        return made

    def _dynamic(self, title: str, rows: Floats, bias: Tensor | None) -> nn.Module:
        factors = self.smoothing.get(title)
        codes, scales = rows_to_int8(rows if factors is None else rows * factors)
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        # Made of the codes and not of the floats: torch would round with scales of its own type.
        weight = torch._make_per_channel_quantized_tensor(codes, scales.double(), zeros, 0)
        return DynamicLinear(weight, bias, None if factors is None else torch.from_numpy(1 / factors), self.narrow)

    def _table(self, name: str) -> nn.Module:
        self.counts[self.plan.preset.table] += 1
        if self.plan.preset.table == FLOAT:
            return self.counted(FloatTable(torch.from_numpy(self.read(name)).to(self.dtype)))
        codes, scales = int8_rows(self.coded(name))
        return self.counted(Int8Table(codes, scales.to(self.dtype)))

    def _decoder(self, spec: DecoderSpec) -> nn.Module:
        preset = self.plan.preset
        windowed = next((window for window in spec.windows if window), 0)
        layers: list[nn.Module] = []
        table = self._table("token_embd.weight")
        for number in range(spec.n_layers):
            start = f"blk.{number}."

            def norm(name: str, start: str = start, *, there: bool = True) -> nn.Module:
                return RmsNorm(self.vector(f"{start}{name}.weight"), spec.eps) if there else torch.nn.Identity()

            def product(title: str, *roles: str, start: str = start, number: int = number) -> nn.Module:
                kind = preset.kind(roles[0], number, spec.n_layers)
                return self._linear(f"{start}{title}", kind, *(f"{start}{role}.weight" for role in roles))

            attention = Attention(
                product("qkv", "attn_q", "attn_k", "attn_v"), product("output", "attn_output"),
                norm("attn_q_norm", there=spec.head_norms), norm("attn_k_norm", there=spec.head_norms),
                (spec.n_heads, spec.n_kv_heads, spec.head_dim), spec.scale, spec.windows[number],
            )  # fmt: skip
            forward = GatedForward(
                product("gate_up", "ffn_gate", "ffn_up"), product("down", "ffn_down"), spec.activation != "silu"
            )
            norms = [norm("attn_norm"), norm("ffn_norm"), norm("post_attention_norm", there=spec.post_norms),
                     norm("post_ffw_norm", there=spec.post_norms)]  # fmt: skip
            layers.append(DecoderLayer(attention, forward, norms, spec.local[number], spec.windows[number] > 0))
        head = None if spec.tied else self._linear("output", preset.table, "output.weight")
        return Decoder(
            table, layers, RmsNorm(self.vector("output_norm.weight"), spec.eps), head, self.rotary(spec, spec.context),
            float(spec.embedding_scale), float(spec.softcap), windowed, spec.n_heads // spec.n_kv_heads,
            (spec.n_layers, spec.n_kv_heads, spec.head_dim),
        )  # fmt: skip

    def _encoder(self, spec: EncoderSpec) -> nn.Module:
        preset = self.plan.preset
        names, family = spec.family.embeddings, spec.family

        def norm(module: str) -> nn.Module:
            return LayerNorm(self.vector(f"{module}.weight"), self.vector(f"{module}.bias"), spec.eps)

        layers: list[nn.Module] = []
        table = self._table(f"{names['word']}.weight")
        for number in range(spec.n_layers):
            module = {role: family.layers.format(i=number) + end for role, end in family.modules.items()}

            def product(title: str, *roles: str, module: dict[str, str] = module, number: int = number) -> nn.Module:
                kind = preset.kind(roles[0], number, spec.n_layers)
                return self._linear(f"layers.{number}.{title}", kind, *(f"{module[role]}.weight" for role in roles))

            layers.append(EncoderLayer(
                product("qkv", "attn_q", "attn_k", "attn_v"), product("output", "attn_output"),
                product("up", "ffn_up"), product("down", "ffn_down"),
                [norm(module["attn_norm"]), norm(module["ffn_norm"])], spec.n_heads, spec.activation,
            ))  # fmt: skip
        positions, types = self.embeddings(spec)
        # In floats: a classifier's matrices are small and decide.
        head = self.classifier(spec, lambda title, name: self._linear(title, FLOAT, name))
        return Encoder(table, positions, types, norm(names["norm"]), layers, head, *encoder_ways(spec))


def _int4(parts: Parts, bias: Tensor | None) -> nn.Module:
    codes = parts.codes
    floats = [torch.from_numpy(part).to(torch.bfloat16) for part in (parts.scales, parts.shifts)]
    both = torch.stack(floats, -1).permute(1, 0, 2).contiguous()
    return Int4Linear(torch.from_numpy(codes[:, ::2] | codes[:, 1::2] << np.uint8(4)), both, bias, GROUP)
