# No `from __future__ import annotations`: torch.jit.script reads the annotations.
"""Linear layers and tables as TorchScript: float, int8 with a scale a row, int4 in groups, int8 with int8 activations.

This file and its neighbour `modules` import torch at their top: they are imported only where an export needs them.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class FloatLinear(nn.Module):
    """x @ weight.T + bias. weight: (outputs, inputs)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


def int8_product(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """x @ (codes * scales[:, None]).T in float32; x: (…, inputs) float32.

    The product takes bfloat16 inputs: torch's kernels for packed weights are fast for them only, twenty times and more
    on a processor with AVX-512. Scales stay float32, behind it. From some rows on a product with codes that are
    decoded for it is faster than the kernel.
    """
    rows = x.reshape(-1, x.size(-1)).to(torch.bfloat16)
    if rows.size(0) < 16:
        ones = torch.ones(codes.size(0), dtype=torch.bfloat16)
        y = torch._weight_int8pack_mm(rows, codes, ones)
    else:
        y = functional.linear(rows, codes.to(torch.bfloat16))
    return (y.float() * scales).unflatten(0, x.shape[:-1])


class Int8Linear(nn.Module):
    """As FloatLinear, with weight = codes * scales[:, None]. codes: int8 (outputs, inputs); scales: (outputs,)."""

    def __init__(self, codes: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        y = int8_product(x, self.codes, self.scales)
        if self.bias is not None:
            y = y + self.bias
        return y


class Int4Linear(nn.Module):
    """As FloatLinear, with weights of four bits in groups along a row: weight = (code - zero) * scale.

    The file has codes as nibbles, (outputs, inputs / 2), the first of a pair in the lower bits. Their order in memory
    is another one on every kind of processor: they are packed when the module is first called.

    scales_and_zeros: (inputs / group, outputs, 2) bfloat16, of each group the scale and (8 - zero) * scale
    """

    def __init__(self, nibbles: Tensor, scales_and_zeros: Tensor, bias: Tensor | None, group: int) -> None:
        super().__init__()
        self.register_buffer("nibbles", nibbles)
        self.register_buffer("scales_and_zeros", scales_and_zeros)
        self.register_buffer("bias", bias)
        self.register_buffer("packed", torch.empty(0, dtype=torch.uint8))
        self.group = group

    @torch.jit.export
    def pack(self) -> None:
        """Bring the codes into this processor's order and drop the others."""
        if self.packed.numel() == 0:
            codes = torch.stack((self.nibbles & 15, self.nibbles >> 4), -1).reshape(self.nibbles.size(0), -1)
            self.packed = torch._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)
            self.nibbles = torch.empty(0, dtype=torch.uint8)

    def forward(self, x: Tensor) -> Tensor:
        self.pack()
        rows = x.reshape(-1, x.size(-1)).to(torch.bfloat16)
        y = torch._weight_int4pack_mm_for_cpu(rows, self.packed, self.group, self.scales_and_zeros)
        y = y.float().unflatten(0, x.shape[:-1])
        if self.bias is not None:
            y = y + self.bias
        return y


class DynamicLinear(nn.Module):
    """int8 weights with a scale a row, activations in 8 bits by their range at run time; see torch.ao.

    weight: quantized per channel, (outputs, inputs); smoothing: what each input feature is multiplied by first
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, smoothing: Tensor | None, narrow: bool) -> None:
        super().__init__()
        self.packed = torch.ops.quantized.linear_prepack(weight, bias)
        self.register_buffer("smoothing", smoothing)
        self.narrow = narrow  # activations take 7 bits: two products fit into 16 bits on x86 without VNNI

    def forward(self, x: Tensor) -> Tensor:
        if self.smoothing is not None:
            x = x * self.smoothing
        return torch.ops.quantized.linear_dynamic(x, self.packed, self.narrow)


class FloatTable(nn.Module):
    """Rows by token id, and the same table as the head. weight: (tokens, features)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, ids: Tensor) -> Tensor:
        return functional.embedding(ids, self.weight)

    @torch.jit.export
    def logits(self, x: Tensor) -> Tensor:
        """x @ weight.T."""
        return functional.linear(x, self.weight)


class Int8Table(nn.Module):
    """As FloatTable, with int8 codes (tokens, features) and a scale a row."""

    def __init__(self, codes: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)

    def forward(self, ids: Tensor) -> Tensor:
        return functional.embedding(ids, self.codes).to(self.scales.dtype) * self.scales[ids].unsqueeze(-1)

    @torch.jit.export
    def logits(self, x: Tensor) -> Tensor:
        """x @ weight.T."""
        return int8_product(x, self.codes, self.scales)
