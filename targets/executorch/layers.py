"""Linear layers and tables as XNNPACK takes them: floats, and 8 or 4 bits with activations in 8 bits a token.

Every tensor owns its storage: executorch 1.5 writes a view of another one from that one's start, which is wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401 - registers torch.ops.quantized_decomposed
from torch.nn import functional

from targets.torchscript.layers import FloatLinear

__all__ = ["FloatLinear", "GroupLinear", "RowLinear", "Table"]


def rounded(x: Tensor) -> Tensor:
    """`x` as 8-bit codes with a scale and a zero point a token, and back: XNNPACK computes with the codes."""
    known = torch.ops.quantized_decomposed
    scale, zero = known.choose_qparams_per_token_asymmetric(x, torch.int8)
    codes = known.quantize_per_token(x, scale, zero, -128, 127, torch.int8)
    return known.dequantize_per_token(codes, scale, zero, -128, 127, torch.int8, torch.float32)


class RowLinear(nn.Module):
    """x @ weight.T + bias with weight = codes * scales[:, None]. codes: int8 (outputs, inputs); scales: (outputs,)."""

    def __init__(self, codes: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)
        self.register_buffer("zeros", torch.zeros(len(scales), dtype=torch.int8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.ops.quantized_decomposed.dequantize_per_channel(
            self.codes, self.scales, self.zeros, 0, -127, 127, torch.int8
        )
        return functional.linear(rounded(x), weight, self.bias)


class GroupLinear(nn.Module):
    """As RowLinear, with codes of four bits, -8 to 7, in groups along a row. scales: (outputs, inputs / group)."""

    def __init__(self, codes: Tensor, scales: Tensor, bias: Tensor | None, group: int) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)
        self.register_buffer("zeros", torch.zeros(scales.shape, dtype=torch.int8), persistent=False)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.ops.quantized_decomposed.dequantize_per_channel_group(
            self.codes, self.scales, self.zeros, -8, 7, torch.int8, self.group, torch.float32
        )
        return functional.linear(rounded(x), weight, self.bias)


class Table(nn.Module):
    """Rows by token id. values: (tokens, features), float32, or int8 with scales (tokens, 1)."""

    def __init__(self, values: Tensor, scales: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)

    def forward(self, ids: Tensor) -> Tensor:
        rows = functional.embedding(ids, self.values)
        return rows if self.scales is None else rows.float() * functional.embedding(ids, self.scales)
