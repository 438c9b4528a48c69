"""Decoders and encoders for torch.export: as much of a layer as there is between two attentions is one XNNPACK graph.

XNNPACK has no mean over a row and no slices of tensors whose length is free: a mean is a product with a constant row,
the rotation of a head's halves a product with a constant matrix, and q, k and v are three products.

Decoder: (input_ids (1, n) int64, input_pos (1,) int64) -> logits (1, 1, vocab) float32, of the last token
    the cache lies in the module, for `capacity` tokens; input_pos: how many of them it holds
Encoder: (input_ids, attention_mask[, token_type_ids], all (1, n) int64) -> list of outputs, as the manifest names them
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

UNSEEN = -1e9
"""What is added to scores of tokens that a position does not see: finite, because of rows that see none of a block."""


def mean_row(width: int) -> Tensor:
    """(1, width), whose product with a vector is its mean."""
    return torch.full((1, width), 1 / width)


def rotation(width: int) -> Tensor:
    """(width, width), whose product with a head is its second half, negated, and its first one."""
    half = width // 2
    made = torch.zeros(width, width)
    made[:half, half:], made[half:, :half] = -torch.eye(half), torch.eye(half)
    return made


def gelu_by_tanh(x: Tensor) -> Tensor:
    """GELU's approximation by tanh, written out: XNNPACK's own operator is off by 4e-4 of a logit."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


class RmsNorm(nn.Module):
    """Root mean square norm over the last dimension."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("row", mean_row(len(weight)))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(functional.linear(x * x, self.row) + self.eps) * self.weight


class Attention(nn.Module):
    """Grouped-query attention over a cache that it keeps. shape: heads, KV heads, head width; capacity: tokens."""

    def __init__(self, products: list[nn.Module], q_norm: nn.Module, k_norm: nn.Module, shape: tuple[int, int, int],
                 scale: float, capacity: int) -> None:  # fmt: skip
        super().__init__()
        self.q, self.k, self.v, self.output = products
        self.q_norm, self.k_norm, self.scale = q_norm, k_norm, scale
        self.n_heads, self.n_kv_heads, self.width = shape
        self.register_buffer("rotation", rotation(self.width))
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(1, capacity, self.n_kv_heads, self.width))

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return x * cos + functional.linear(x, self.rotation) * sin

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, position: int) -> Tensor:
        own = torch.ops.llama
        q = self.rotate(self.q_norm(self.q(x).view(1, -1, self.n_heads, self.width)), cos, sin)
        k = self.rotate(self.k_norm(self.k(x).view(1, -1, self.n_kv_heads, self.width)), cos, sin)
        own.update_cache(k, self.keys, position)
        own.update_cache(self.v(x).view(1, -1, self.n_kv_heads, self.width), self.values, position)
        y = own.custom_sdpa(q, self.keys, self.values, position, mask, 0.0, mask is None, self.scale)
        return self.output(y.view(1, -1, self.n_heads * self.width))


class GatedForward(nn.Module):
    """The gated feed-forward; gelu: its activation is GELU by tanh and not SiLU."""

    def __init__(self, gate: nn.Module, up: nn.Module, down: nn.Module, gelu: bool) -> None:
        super().__init__()
        self.gate, self.up, self.down, self.gelu = gate, up, down, gelu

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        active = gelu_by_tanh(gate) if self.gelu else functional.silu(gate)
        return self.down(active * self.up(x))


class DecoderLayer(nn.Module):
    """A layer; the norms behind attention and feed-forward are Gemma's, else they change nothing."""

    def __init__(self, attention: nn.Module, forward_: nn.Module, norms: list[nn.Module], local: bool,
                 windowed: bool) -> None:  # fmt: skip
        super().__init__()
        self.attention, self.feed_forward = attention, forward_
        self.attn_norm, self.ffn_norm, self.post_attn_norm, self.post_ffn_norm = norms
        self.local, self.windowed = local, windowed

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, position: int) -> Tensor:
        x = x + self.post_attn_norm(self.attention(self.attn_norm(x), cos, sin, mask, position))
        return x + self.post_ffn_norm(self.feed_forward(self.ffn_norm(x)))


class Decoder(nn.Module):
    """See the top of the file.

    tables: cosines and sines (capacity, 1, width / 2) of all layers and of local ones
    window: tokens that a position of a windowed layer sees, itself included; 0 for all
    """

    def __init__(self, table: nn.Module, layers: list[nn.Module], norm: nn.Module, head: nn.Module,
                 tables: list[Tensor], embedding_scale: float, softcap: float, window: int) -> None:  # fmt: skip
        super().__init__()
        self.table, self.layers, self.norm, self.head = table, nn.ModuleList(layers), norm, head
        self.capacity = len(tables[0])
        for name, values in zip(("cos", "sin", "local_cos", "local_sin"), tables, strict=True):
            self.register_buffer(name, torch.cat((values, values), -1))
        self.embedding_scale, self.softcap, self.window = embedding_scale, softcap, window
        self.register_buffer("places", torch.arange(self.capacity))

    def mask(self, position: int, n: int) -> Tensor:
        """What is added to the scores of windowed layers, (n, capacity)."""
        row = self.places.narrow(0, position, n).unsqueeze(1)
        column = self.places.unsqueeze(0)
        hidden = (column > row) | (row - column >= self.window)
        return torch.where(hidden, UNSEEN, 0.0)

    def forward(self, input_ids: Tensor, input_pos: Tensor) -> Tensor:
        position, n = input_pos[0].item(), input_ids.size(1)  # no int(): it would fix the position
        torch._check(position >= 0)
        torch._check(position + n <= self.capacity)
        x = self.table(input_ids)
        if self.embedding_scale != 1.0:
            x = x * self.embedding_scale
        near = [table.narrow(0, position, n).unsqueeze(0) for table in (self.local_cos, self.local_sin)]
        far = [table.narrow(0, position, n).unsqueeze(0) for table in (self.cos, self.sin)]
        mask = self.mask(position, n) if self.window > 0 else None
        for layer in self.layers:
            x = layer(x, *(near if layer.local else far), mask if layer.windowed else None, position)
        logits = self.head(self.norm(x[:, -1:]))
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap > 0.0 else logits


class LayerNorm(nn.Module):
    """Layer norm over the last dimension."""

    def __init__(self, weight: Tensor, bias: Tensor, eps: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("row", mean_row(len(weight)))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        centred = x - functional.linear(x, self.row)
        spread = torch.rsqrt(functional.linear(centred * centred, self.row) + self.eps)
        return centred * spread * self.weight + self.bias


class EncoderLayer(nn.Module):
    """A BERT layer: norms behind the sums. activation: "gelu", "gelu_tanh" or "relu"."""

    def __init__(self, products: list[nn.Module], norms: list[nn.Module], n_heads: int, hidden: int,
                 activation: str) -> None:  # fmt: skip
        super().__init__()
        self.q, self.k, self.v, self.output, self.up, self.down = products
        self.attn_norm, self.ffn_norm = norms
        self.n_heads, self.hidden, self.activation = n_heads, hidden, activation

    def heads(self, x: Tensor) -> Tensor:
        """(1, n, hidden) as (n, heads, width)."""
        return x.view(-1, self.n_heads, self.hidden // self.n_heads)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scale = (self.hidden // self.n_heads) ** -0.5
        scores = torch.bmm(self.heads(self.q(x)).permute(1, 0, 2), self.heads(self.k(x)).permute(1, 2, 0))
        shares = functional.softmax(scores * scale + mask, dim=-1)
        y = torch.bmm(shares, self.heads(self.v(x)).permute(1, 0, 2)).permute(1, 0, 2)
        x = self.attn_norm(x + self.output(y.reshape(1, -1, self.hidden)))
        y = self.up(x)
        if self.activation == "relu":
            y = functional.relu(y)
        else:
            y = functional.gelu(y) if self.activation == "gelu" else gelu_by_tanh(y)
        return self.ffn_norm(x + self.down(y))


class Encoder(nn.Module):
    """See the top of the file.

    positions: (places, hidden); types: (kinds, hidden), one row where the model has one kind and takes no ids of them
    first_position: of the first token, 0, or behind the padding's row where `padded` tokens are not counted
    pooling: "mean", "cls" or ""; head: of a classifier; per_token: it reads every token and not the first
    """

    def __init__(
        self, table: nn.Module, positions: Tensor, types: Tensor, norm: nn.Module, layers: list[nn.Module],
        head: nn.Module | None, first_position: int, padded: bool, pooling: str, normalize: bool, per_token: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.table, self.norm, self.layers = table, norm, nn.ModuleList(layers)
        self.register_buffer("positions", positions)
        self.register_buffer("types", types)
        self.head = head
        self.per_token = per_token
        self.first_position, self.padded, self.pooling, self.normalize = first_position, padded, pooling, normalize

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> list[Tensor]:
        n = input_ids.size(1)
        x = self.table(input_ids)
        if self.padded:
            places = attention_mask.cumsum(1) * attention_mask + (self.first_position - 1)
            x = x + functional.embedding(places, self.positions)
        else:
            x = x + self.positions.narrow(0, 0, n)
        x = x + (self.types[0] if token_type_ids is None else functional.embedding(token_type_ids, self.types))
        seen = attention_mask.float()
        mask = (seen - 1.0).unsqueeze(0) * -UNSEEN
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, mask)
        if self.head is not None:
            return [self.head(x if self.per_token else x[:, 0])]
        if self.pooling == "":
            return [x]
        pooled = x[:, 0]
        if self.pooling == "mean":
            pooled = (x * seen.unsqueeze(-1)).sum(1) / seen.sum(1, keepdim=True)
        if self.normalize:
            pooled = pooled / pooled.square().sum(-1, keepdim=True).sqrt().clamp_min(1e-12)
        return [x, pooled]
