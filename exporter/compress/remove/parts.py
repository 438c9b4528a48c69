"""Groups of heads and feed-forward neurons of a layer: which rows and columns they are, their scores, their removal.

A group is a key and value head with the query heads that read it (grouped-query attention, https://arxiv.org/abs/2305.13245).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from exporter.compress.remove.repair import repaired
from exporter.compress.stack import find_forward
from exporter.compress.widths import head_width, kv_heads, query_groups
from runtime.errors import ModelError

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Part:
    """Units of a layer: what makes them, and what reads them.

    makers: matrices whose rows they are, each with its rows a unit; reader: the matrix whose columns they are
    below: the reader's name below the layer; width: columns of the reader for a unit; units: how many
    """

    makers: tuple[tuple[Any, int], ...]
    reader: Any
    below: str
    width: int
    units: int

    def columns(self, units: Indices) -> Indices:
        """The reader's columns of some units."""
        return _spread(units, self.width)

    def magnitude(self) -> Floats:
        """The squared weights of each unit, (units,)."""
        total = self.reader.weight.detach().square().sum(0).reshape(self.units, -1).sum(1)
        for module, rows in self.makers:
            total = total + module.weight.detach().square().sum(1).reshape(self.units, rows).sum(1)
        found: Floats = total.numpy()
        return found

    def activation(self, hessian: Floats) -> Floats:
        """The squared length of what each unit adds to the reader's outputs over all tokens, (units,)."""
        weight, found = self.reader.weight.detach().numpy(), np.empty(self.units, np.float32)
        if self.width == 1:
            made: Floats = np.square(weight).sum(0) * hessian.diagonal()
            return made
        for unit in range(self.units):
            columns = slice(unit * self.width, (unit + 1) * self.width)
            found[unit] = np.einsum("ij,jk,ik->", weight[:, columns], hessian[columns, columns], weight[:, columns])
        return found

    def left(self, columns: Indices, hessian: Floats | None) -> Floats:
        """What the reader is where only those columns are left, (rows, columns). hessian: as in `keep`."""
        weight = self.reader.weight.detach().numpy()
        return weight[:, columns] if hessian is None else repaired(weight, hessian, columns)

    def keep(self, units: Indices, hessian: Floats | None) -> None:
        """Take all other units out. hessian: of the reader's inputs, to repair it by; None leaves it as it is."""
        _replace(self.reader, self.left(self.columns(units), hessian), None)
        for module, rows in self.makers:
            _replace(module, module.weight.detach().numpy()[_spread(units, rows)], _spread(units, rows))


def heads(layer: Any, config: Any) -> Part:  # noqa: ANN401 - a decoder layer and its configuration
    """The groups of heads of a layer. Raises ModelError for attention that is built otherwise."""
    attention = getattr(layer, "self_attn", None)
    q, k, v, o = (getattr(attention, f"{name}_proj", None) for name in "qkvo")
    if any(module is None for module in (q, k, v, o)):
        raise ModelError(f"{type(layer).__name__}: has no q_proj, k_proj, v_proj and o_proj; heads cannot be removed")
    head = head_width(config)
    groups, queries = kv_heads(layer, config), query_groups(config) * head
    return Part(((q, queries), (k, head), (v, head)), o, "self_attn.o_proj", queries, groups)


def neurons(layer: Any) -> Part:  # noqa: ANN401 - a layer
    """The feed-forward neurons of a layer. Raises ModelError for a feed-forward that is built otherwise."""
    found = find_forward(layer)
    if found is None:
        raise ModelError(f"{type(layer).__name__}: its feed-forward is of another kind; neurons cannot be removed")
    makers, below = found
    reader = layer.get_submodule(below)
    return Part(tuple((maker, 1) for maker in makers), reader, below, 1, reader.weight.shape[1])


def _spread(units: Indices, width: int) -> Indices:
    found: Indices = (units[:, None] * width + np.arange(width)).reshape(-1)
    return found


def _replace(module: Any, weight: Floats, rows: Indices | None) -> None:  # noqa: ANN401 - a linear module
    """Give a linear module another weight, and those rows of its bias."""
    made = torch.from_numpy(np.ascontiguousarray(weight))
    module.weight = torch.nn.Parameter(made, requires_grad=False)
    module.out_features, module.in_features = made.shape
    if rows is not None and module.bias is not None:
        module.bias = torch.nn.Parameter(module.bias.detach()[torch.from_numpy(rows)], requires_grad=False)
