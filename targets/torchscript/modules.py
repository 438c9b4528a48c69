# No `from __future__ import annotations`: torch.jit.script reads the annotations.
"""Decoders and encoders in torch alone, written to be scripted: control flow stays, so lengths are free.

Decoder: (input_ids (batch, n) int64, cache, position, keep) -> (logits (batch, kept, vocab) float32, cache)
    cache: (layers, 2, batch, KV heads, capacity, head width), zeros at first: keys and values, written in place
    position: how many tokens the cache holds; keep: how many of the last positions get logits, 0 for all
    new_cache(capacity, batch=1) makes one
Encoder: (input_ids, attention_mask, token_type_ids or None, all (batch, n) int64) -> list of outputs, as the manifest
    names them
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class RmsNorm(nn.Module):
    """Root mean square norm, computed in float32."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight


class Beside(nn.Module):
    """Products of one input, their outputs one behind the other."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        found: list[Tensor] = []
        for part in self.parts:
            found.append(part(x))
        return torch.cat(found, -1)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions over a cache.

    window: tokens that a position sees, itself included; 0 for all
    """

    def __init__(self, qkv: nn.Module, output: nn.Module, q_norm: nn.Module, k_norm: nn.Module,
                 shape: tuple[int, int, int], scale: float, window: int) -> None:  # fmt: skip
        super().__init__()
        self.qkv, self.output, self.q_norm, self.k_norm = qkv, output, q_norm, k_norm
        self.heads, self.groups, self.width = shape[1], shape[0] // shape[1], shape[2]
        self.scale, self.window = scale, window

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        one, two = x.chunk(2, -1)
        return torch.cat((one * cos - two * sin, two * cos + one * sin), -1)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Tensor, position: int) -> Tensor:
        batch, n = x.size(0), x.size(1)
        total, heads, groups, width = position + n, self.heads, self.groups, self.width
        whole = self.qkv(x)
        q, k, v = whole.split([heads * groups * width, heads * width, heads * width], -1)
        q = self.rotate(self.q_norm(q.view(batch, n, heads * groups, width)), cos, sin)
        k = self.rotate(self.k_norm(k.view(batch, n, heads, width)), cos, sin)
        cache[0, :, :, position:total] = k.transpose(1, 2)
        cache[1, :, :, position:total] = v.view(batch, n, heads, width).transpose(1, 2)
        first = 0
        if self.window > 0 and n == 1:
            first = max(0, total - self.window)
        # The queries of a group are rows of one product with its keys: nothing is repeated.
        q = q.view(batch, n, heads, groups, width).permute(0, 2, 3, 1, 4).reshape(batch, heads, groups * n, width)
        y = functional.scaled_dot_product_attention(
            q, cache[0, :, :, first:total], cache[1, :, :, first:total], attn_mask=mask, scale=self.scale
        )
        y = y.view(batch, heads, groups, n, width).permute(0, 3, 1, 2, 4).reshape(batch, n, heads * groups * width)
        return self.output(y)


class GatedForward(nn.Module):
    """The gated feed-forward; gelu: its activation is GELU by tanh and not SiLU."""

    def __init__(self, gate_up: nn.Module, down: nn.Module, gelu: bool) -> None:
        super().__init__()
        self.gate_up, self.down, self.gelu = gate_up, down, gelu

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        if self.gelu:
            return self.down(functional.gelu(gate, approximate="tanh") * up)
        return self.down(functional.silu(gate) * up)


class DecoderLayer(nn.Module):
    """A layer; the norms behind attention and feed-forward are Gemma's, else they change nothing."""

    def __init__(self, attention: nn.Module, forward_: nn.Module, norms: list[nn.Module], local: bool,
                 windowed: bool) -> None:  # fmt: skip
        super().__init__()
        self.attention, self.feed_forward = attention, forward_
        self.attn_norm, self.ffn_norm, self.post_attn_norm, self.post_ffn_norm = norms
        self.local, self.windowed = local, windowed

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Tensor, position: int) -> Tensor:
        x = x + self.post_attn_norm(self.attention(self.attn_norm(x), cos, sin, mask, cache, position))
        return x + self.post_ffn_norm(self.feed_forward(self.ffn_norm(x)))


class Decoder(nn.Module):
    """See the top of the file.

    tables: cosines and sines (positions, 1, width / 2) of all layers and of local ones
    cache_shape: layers, KV heads, head width
    """

    def __init__(self, table: nn.Module, layers: list[nn.Module], norm: nn.Module, head: nn.Module | None,
                 tables: list[Tensor], embedding_scale: float, softcap: float, window: int, groups: int,
                 cache_shape: tuple[int, int, int]) -> None:  # fmt: skip
        super().__init__()
        self.table, self.layers, self.norm = table, nn.ModuleList(layers), norm
        self.head = nn.Identity() if head is None else head
        self.tied = head is None
        for name, values in zip(("cos", "sin", "local_cos", "local_sin"), tables, strict=True):
            self.register_buffer(name, values)
        self.embedding_scale, self.softcap, self.window, self.groups = embedding_scale, softcap, window, groups
        self.cache_shape = list(cache_shape)

    @torch.jit.export
    def new_cache(self, capacity: int, batch: int = 1) -> Tensor:
        """An empty cache for so many tokens."""
        first = self.cache_shape
        return torch.zeros([first[0], 2, batch, first[1], capacity, first[2]], dtype=self.cos.dtype)

    def mask(self, n: int, position: int, window: int, like: Tensor) -> Tensor | None:
        """What is added to the scores, (groups * n, position + n); None where every key is seen."""
        if n == 1:
            return None
        row = torch.arange(position, position + n).unsqueeze(1)
        column = torch.arange(position + n).unsqueeze(0)
        hidden = column > row
        if window > 0:
            hidden = hidden | (row - column >= window)
        return torch.zeros(hidden.shape, dtype=like.dtype).masked_fill(hidden, float("-inf")).repeat(self.groups, 1)

    def forward(self, input_ids: Tensor, cache: Tensor, position: int, keep: int = 1) -> tuple[Tensor, Tensor]:
        n = input_ids.size(1)
        total = position + n
        if total > cache.size(4) or total > self.cos.size(0):
            raise RuntimeError("the cache or the model holds fewer tokens than that")
        x = self.table(input_ids)
        if self.embedding_scale != 1.0:
            x = x * self.embedding_scale
        whole = self.mask(n, position, 0, x)
        windowed = whole
        if self.window > 0:
            windowed = self.mask(n, position, self.window, x)
        cos, sin = self.cos[position:total], self.sin[position:total]
        local_cos, local_sin = self.local_cos[position:total], self.local_sin[position:total]
        for number, layer in enumerate(self.layers):
            x = layer(
                x, local_cos if layer.local else cos, local_sin if layer.local else sin,
                windowed if layer.windowed else whole, cache[number], position,
            )  # fmt: skip
        if keep > 0:
            x = x[:, -keep:]
        x = self.norm(x)
        logits = self.table.logits(x) if self.tied else self.head(x)
        logits = logits.float()
        if self.softcap > 0.0:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits, cache


class LayerNorm(nn.Module):
    """Layer norm over the last dimension."""

    def __init__(self, weight: Tensor, bias: Tensor, eps: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, [x.size(-1)], self.weight, self.bias, self.eps)


class EncoderLayer(nn.Module):
    """A BERT layer: norms behind the sums. activation: "gelu", "gelu_tanh" or "relu"."""

    def __init__(self, qkv: nn.Module, output: nn.Module, up: nn.Module, down: nn.Module, norms: list[nn.Module],
                 heads: int, activation: str) -> None:  # fmt: skip
        super().__init__()
        self.qkv, self.output, self.up, self.down = qkv, output, up, down
        self.attn_norm, self.ffn_norm = norms
        self.heads, self.activation = heads, activation

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, n, hidden = x.size(0), x.size(1), x.size(2)
        q, k, v = self.qkv(x).view(batch, n, 3, self.heads, hidden // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.attn_norm(x + self.output(y.transpose(1, 2).reshape(batch, n, hidden)))
        y = self.up(x)
        if self.activation == "relu":
            y = functional.relu(y)
        elif self.activation == "gelu":
            y = functional.gelu(y)
        else:
            y = functional.gelu(y, approximate="tanh")
        return self.ffn_norm(x + self.down(y))


class Encoder(nn.Module):
    """See the top of the file.

    positions: (places, hidden); types: (kinds, hidden), one row of zeros where the family has none
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
        self.head = nn.Identity() if head is None else head
        self.classifies, self.per_token = head is not None, per_token
        self.first_position, self.padded, self.pooling, self.normalize = first_position, padded, pooling, normalize

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> list[Tensor]:
        n = input_ids.size(1)
        if n + self.first_position > self.positions.size(0):
            raise RuntimeError("the text has more tokens than the model takes")
        x = self.table(input_ids)
        if self.padded:
            places = attention_mask.cumsum(1) * attention_mask + (self.first_position - 1)
            x = x + functional.embedding(places, self.positions)
        else:
            x = x + self.positions[:n]
        x = x + (self.types[0] if token_type_ids is None else functional.embedding(token_type_ids, self.types))
        x = self.norm(x)
        mask = attention_mask[:, None, None, :] != 0
        for layer in self.layers:
            x = layer(x, mask)
        if self.classifies:
            return [self.head(x if self.per_token else x[:, 0]).float()]
        outputs = [x.float()]
        if self.pooling != "":
            pooled = outputs[0][:, 0]
            if self.pooling == "mean":
                weights = attention_mask.unsqueeze(-1).float()
                pooled = (outputs[0] * weights).sum(1) / weights.sum(1)
            if self.normalize:
                pooled = functional.normalize(pooled, dim=-1)
            outputs.append(pooled)
        return outputs
