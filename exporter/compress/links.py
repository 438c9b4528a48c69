"""Where a decoder's channels can be scaled without changing its function: what makes a channel, and what reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from exporter.compress.widths import head_width, query_groups

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


@dataclass(frozen=True)
class Link:
    """A module whose outputs, channel by channel, only some linear layers read, linearly.

    producer: a norm, or a linear layer whose rows are the channels; consumers: by their names below the layer
    repeated: how many groups of a consumer's columns read the same channel, `head` channels at a time (grouped queries)
    """

    producer: Any
    consumers: dict[str, Any]
    repeated: int = 1
    head: int = 0

    @property
    def channels(self) -> int:
        """How many there are."""
        return int(self.producer.weight.shape[0])

    def read(self, per_channel: Tensor) -> Tensor:
        """Of a value a channel, that of each of the consumers' columns."""
        if self.repeated == 1:
            return per_channel
        return per_channel.reshape(-1, 1, self.head).expand(-1, self.repeated, -1).reshape(-1)

    def gathered(self, per_column: Tensor) -> Tensor:
        """Of a value a column of the consumers, the largest of each channel."""
        if self.repeated == 1:
            return per_column
        return per_column.reshape(-1, self.repeated, self.head).amax(1).reshape(-1)

    def scale(self, factors: Tensor) -> None:
        """Divide the channels by positive factors, (channels,), and multiply the consumers' columns by them."""
        divide(self.producer, factors)
        for module in self.consumers.values():
            module.weight.data.mul_(self.read(factors))


def links(layer: Any, config: Any) -> Iterator[Link]:  # noqa: ANN401 - a decoder layer and its configuration
    """The links of a layer, in the order of the data: norm to q, k, v; v to o; norm to gate, up; up to down."""
    attention, forward = layer.self_attn, layer.mlp
    yield Link(layer.input_layernorm, {f"self_attn.{name}": getattr(attention, name) for name in _QKV})
    yield Link(attention.v_proj, {"self_attn.o_proj": attention.o_proj}, query_groups(config), head_width(config))
    yield Link(forward_norm(layer), {f"mlp.{name}": getattr(forward, name) for name in ("gate_proj", "up_proj")})
    yield Link(forward.up_proj, {"mlp.down_proj": forward.down_proj})


_QKV = ("q_proj", "k_proj", "v_proj")


def forward_norm(layer: Any) -> Any:  # noqa: ANN401
    """The norm in front of the feed-forward."""
    return getattr(layer, "pre_feedforward_layernorm", None) or layer.post_attention_layernorm


def has_post_norms(layer: Any) -> bool:  # noqa: ANN401
    """Whether what a layer adds goes through a norm of its own (Gemma)."""
    return hasattr(layer, "pre_feedforward_layernorm")


def gain(norm: Any) -> Tensor:  # noqa: ANN401
    """What a norm multiplies by: Gemma stores that minus one."""
    weight: Tensor = norm.weight.detach()
    return weight + 1 if _minus_one(norm) else weight


def set_gain(norm: Any, values: Tensor) -> None:  # noqa: ANN401
    """Make a norm multiply by `values`."""
    norm.weight.data.copy_(values - 1 if _minus_one(norm) else values)


def divide(producer: Any, factors: Tensor) -> None:  # noqa: ANN401
    """Divide what a norm or a linear layer gives, channel by channel."""
    if not isinstance(producer, torch.nn.Linear):
        set_gain(producer, gain(producer) / factors)
        return
    producer.weight.data.div_(factors[:, None])
    if producer.bias is not None:
        producer.bias.data.div_(factors)


def _minus_one(norm: Any) -> bool:  # noqa: ANN401
    return "Gemma" in type(norm).__name__
