"""Fake quantization: a model in training computes with the weights that its file will hold, and learns others.

Rounding has no gradient; that of the rounded weight is taken for the weight's own, as long as it lies within the codes'
range (the straight-through estimator, https://arxiv.org/abs/1308.3432). Scales learn too, with the gradient of LSQ
(https://arxiv.org/abs/1902.08153): as powers of e beside what they were, so that each keeps its sign and none depends
on how large it is. What a file stores as whole numbers, zero points and a k-quant's multiples, stays. Where an engine
rounds what a matrix is multiplied by, so does the model: to 8 bits over the range that it has at the time.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt
    from torch import Tensor

    from targets.grids import Grid

    Bytes = npt.NDArray[np.uint8]

STEPS, SHIFTS = "steps_learned", "shifts_learned"
"""Parameters beside a weight: logarithms of what its scales and shifts are multiplied by, (rows, units)."""
NEAR = 0.49
"""Of the distance between two codes: so far a weight may lie from its code's value to be rounded to it."""
MOVED = 0.25
"""Likewise, where a method chose another code than the nearest: what it rounded there lay nowhere in particular."""
MANY = 16
"""Codes from which on such a choice is worth more than what a first update says. Of fewer most change anyway."""
AT_A_TIME = 1 << 18
"""Weights that are rounded at a time."""
EIGHT_BITS = 255
"""Steps between the least and the greatest of 8-bit codes."""
Over = Literal["text", "token"]
_KINDS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class FakeQuantized:
    """Matrices of a model on grids, beginning with the codes that they have.

    model: holds the values of `packed`; packed: grids and bytes, by the weights' names
    weights: codes are learned; else scales alone
    inputs: over what the inputs of a linear layer are rounded, by the names of weights, for those whose inputs are
    """

    def __init__(
        self,
        model: nn.Module,
        packed: Mapping[str, tuple[Grid, Bytes]],
        *,
        weights: bool,
        inputs: Mapping[str, Over] | None = None,
    ) -> None:
        modules = dict(model.named_modules())
        self._matrices = {
            name: _Matrix(modules[name.removesuffix(".weight")], *found, weights=weights)
            # In an order of its own: an optimizer that goes on knows its parameters by their number alone.
            for name, found in sorted(packed.items())
        }
        owners: dict[int, list[nn.Module]] = {}
        for module in modules.values():
            if (weight := module._parameters.get("weight")) is not None:
                owners.setdefault(id(weight), []).append(module)
        self._owners = {name: owners[id(one.weight)] for name, one in self._matrices.items()}
        self._inputs = [
            (module, over)
            for name, over in (inputs or {}).items()
            for module in self._owners[name]
            if isinstance(module, nn.Linear)
        ]

    def scales(self) -> list[nn.Parameter]:
        """What scales learn by."""
        return [parameter for one in self._matrices.values() for parameter in one.learned()]

    def lean(self, name: str, before: Tensor) -> None:
        """Move a weight towards what it was before, as far as it keeps its code: so it knows which is next.

        Where its code is not the nearest of many, it makes up for errors of other weights (GPTQ): then it moves half
        way to the edge and no farther, or the first updates would undo that.
        """
        self._matrices[name].lean(before)

    @contextlib.contextmanager
    def as_stored(self) -> Iterator[None]:
        """The model computes with rounded weights meanwhile, backwards too; gradients reach what is learned."""
        handles = [module.register_forward_pre_hook(partial(_round_inputs, over)) for module, over in self._inputs]
        try:
            for name, one in self._matrices.items():
                values = one.values()
                for module in self._owners[name]:
                    # In the parameter's own place, though it is none: so their order stays, and an optimizer's.
                    module._parameters["weight"] = values  # type: ignore[assignment]
            yield
        finally:
            for handle in handles:
                handle.remove()
            for name, one in self._matrices.items():
                for module in self._owners[name]:
                    module._parameters["weight"] = one.weight

    def packed(self) -> dict[str, tuple[Grid, Bytes]]:
        """Grids and bytes by now, of which the model holds the values from here on; nothing stays beside weights."""
        return {name: (one.grid, one.settle()) for name, one in self._matrices.items()}


def in_eight_bits(x: Tensor, over: Over) -> Tensor:
    """`x` at the nearest of 256 values from its least to its greatest, 0 among them; gradients pass as if it were not.

    x: (pieces, tokens, features); over: what has a range of its own, a "token", or a "text" as a whole
    What ONNX's DynamicQuantizeLinear does with a piece of text, and XNNPACK with each token.
    """
    with torch.no_grad():
        dims = (-1,) if over == "token" else tuple(range(1, x.dim()))
        low, high = x.amin(dims, keepdim=True).clamp(max=0), x.amax(dims, keepdim=True).clamp(min=0)
        step = (high - low) / EIGHT_BITS
        step = torch.where(step == 0, 1, step)
        zero = (-low / step).round()
        moved = ((x / step).round() + zero).clamp(0, EIGHT_BITS).sub(zero).mul(step) - x
    return x + moved


def _round_inputs(over: Over, _module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (in_eight_bits(inputs[0], over), *inputs[1:])


class _Matrix:
    """A weight, its grid, its scales as they were and what they learn."""

    def __init__(self, module: nn.Module, grid: Grid, packed: Bytes, *, weights: bool) -> None:
        self.grid, self.weight = grid, module.get_parameter("weight")
        self._module, self._packed = module, packed
        fitted = grid.fitted(packed)
        stored = grid.stored(fitted)
        self._kind = _KINDS[stored.kind]
        self._buffers = {
            name: torch.from_numpy(np.array(value, np.float32))
            for name in ("steps", "shifts", "scale_by", "step_by", "shift_by")
            if (value := getattr(stored, name)) is not None
        }
        values = np.arange(grid.largest + 1, dtype=np.uint8)
        one = np.ones(values.shape, np.float32)
        self._buffers["levels"] = torch.from_numpy(grid.values(values, one, np.zeros_like(one)))
        if not weights:
            scales, offsets = (grid.spread(part, slice(None)) for part in (fitted.scales, fitted.offsets))
            codes = grid.nearest(grid.dequantize(packed), scales, offsets)
            self._buffers["taken"] = self._buffers["levels"][torch.from_numpy(codes).long()]
        module.register_parameter(STEPS, nn.Parameter(torch.zeros_like(self._buffers["steps"])))
        if "shifts" in self._buffers:
            module.register_parameter(SHIFTS, nn.Parameter(torch.zeros_like(self._buffers["shifts"])))

    def learned(self) -> Iterator[nn.Parameter]:
        for name in (STEPS, SHIFTS):
            if name in self._module._parameters:
                yield self._module.get_parameter(name)

    def lean(self, before: Tensor) -> None:
        with torch.no_grad():
            scales, _ = self._scales()
            step = self._buffers["levels"].diff().min() * scales.abs()[..., None]
            moved = (before - self.weight).reshape(*scales.shape, -1)
            far = MOVED if self.grid.largest + 1 >= MANY else NEAR
            near = torch.where(moved.abs() <= step / 2, NEAR, far) * step
            self.weight.add_(moved.clamp(-near, near).reshape(self.weight.shape))

    def values(self) -> Tensor:
        """As a file holds them."""
        scales, offsets = self._scales()
        buffers = self._on(scales.device)
        if "taken" in buffers:
            found = scales[..., None] * buffers["taken"].reshape(*scales.shape, -1) + offsets[..., None]
        else:
            found = rounded(self.weight.reshape(*scales.shape, -1), scales, offsets, buffers["levels"])
        return found.reshape(self.weight.shape)

    def settle(self) -> Bytes:
        """The bytes by now; the weight takes their values, and what was registered beside it goes."""
        with torch.no_grad():
            steps, shifts = self._numbers()
            scales, offsets = self._scales()
            buffers = self._on(scales.device)
            taken = buffers.get("taken")
            if taken is None:
                taken = _in_steps(self.weight.reshape(*scales.shape, -1), scales, offsets)
            codes = nearest(taken, buffers["levels"]).to(torch.uint8)
            numbers = steps.cpu().numpy(), None if shifts is None else shifts.cpu().numpy()
            fitted = self.grid.moved(self.grid.fitted(self._packed), *numbers)
            packed = self.grid.pack(fitted, codes.cpu().reshape(self.weight.shape).numpy())
            self.weight.copy_(torch.from_numpy(self.grid.dequantize(packed)))
        for name in (STEPS, SHIFTS):
            self._module._parameters.pop(name, None)
        return packed

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        """What is not learned, where the model is by now."""
        self._buffers = {name: value.to(device) for name, value in self._buffers.items()}
        return self._buffers

    def _numbers(self) -> tuple[Tensor, Tensor | None]:
        """Steps and shifts as the file's type holds them, (rows, units)."""
        return self._number("steps", STEPS), self._number("shifts", SHIFTS) if "shifts" in self._buffers else None

    def _number(self, name: str, learned: str) -> Tensor:
        factor = self._module.get_parameter(learned)
        exact = self._on(factor.device)[name] * factor.exp()
        return exact + (exact.to(self._kind).float() - exact).detach()

    def _scales(self) -> tuple[Tensor, Tensor]:
        """Scales and offsets, (rows, scales of a row) each."""
        steps, shifts = self._numbers()
        buffers = self._on(steps.device)
        scales = steps[..., None] * buffers["scale_by"]
        offsets = torch.zeros_like(scales)
        if "step_by" in buffers:
            offsets = offsets + steps[..., None] * buffers["step_by"]
        if "shift_by" in buffers and shifts is not None:
            offsets = offsets + shifts[..., None] * buffers["shift_by"]
        return scales.flatten(1), offsets.flatten(1)


def _in_steps(weight: Tensor, scales: Tensor, offsets: Tensor) -> Tensor:
    """Weights in units of their scale, not limited; 0 where that is zero."""
    scale, none = scales[..., None], scales == 0
    if not bool(none.any()):
        return (weight - offsets[..., None]).div_(scale)
    return torch.where(none[..., None], 0, (weight - offsets[..., None]) / torch.where(none[..., None], 1, scale))


def nearest(steps: Tensor, levels: Tensor) -> Tensor:
    """The codes whose levels, which rise, are nearest; of what is not a number any."""
    if _is_even(levels):
        return (steps - levels[0]).nan_to_num().round().clamp(0, len(levels) - 1).long()
    return torch.bucketize(steps, (levels[1:] + levels[:-1]) / 2)


def _is_even(levels: Tensor) -> bool:
    """Whether they are whole steps of one apart."""
    return bool((levels.diff() == 1).all())


class _Rounded(torch.autograd.Function):
    """See `rounded`. Some rows at a time, which stay in a processor's cache meanwhile.

    Of whole matrices each of the twenty operations would go through memory once more, which takes as long as the
    model's own products. What the way back needs is computed again, and not kept: it would be as large as the weights.
    """

    # Any: what torch hands to both has no class that is known before.
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scales: Tensor, offsets: Tensor, levels: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(weight, scales, offsets, levels)
        result, even = torch.empty_like(weight), _is_even(levels)
        for rows in _rows(weight):
            _, found = _rounded_steps(weight[rows], scales[rows], offsets[rows], levels, even=even)
            torch.add(found.mul_(scales[rows][..., None]), offsets[rows][..., None], out=result[rows])
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # noqa: ANN401
        weight, scales, offsets, levels = ctx.saved_tensors
        (gradient,) = gradients
        through, of_scales, of_offsets = (torch.empty_like(one) for one in (weight, scales, offsets))
        even, ends = _is_even(levels), (float(levels[0]) - 0.5, float(levels[-1]) + 0.5)
        for rows in _rows(weight):
            steps, found = _rounded_steps(weight[rows], scales[rows], offsets[rows], levels, even=even)
            inside = _within(gradient[rows], steps, ends)
            none = (scales[rows] == 0)[..., None]
            if bool(none.any()):
                inside.masked_fill_(none, 0)
            through[rows] = inside
            torch.sum(found.sub_(_within(steps, steps, ends)).mul_(gradient[rows]), -1, out=of_scales[rows])
            torch.sum(torch.sub(gradient[rows], inside, out=inside), -1, out=of_offsets[rows])
        return through, of_scales, of_offsets, None


def _within(values: Tensor, steps: Tensor, ends: tuple[float, float]) -> Tensor:
    """Values where steps lie between the ends, else 0: in one operation, which the derivative of a clamp is."""
    found: Tensor = torch.ops.aten.hardtanh_backward(values, steps, *ends)
    return found


def _rows(weight: Tensor) -> Iterator[slice]:
    step = max(1, AT_A_TIME // weight[0].numel())
    return (slice(start, start + step) for start in range(0, len(weight), step))


def _rounded_steps(
    weight: Tensor, scales: Tensor, offsets: Tensor, levels: Tensor, *, even: bool
) -> tuple[Tensor, Tensor]:
    """Weights in units of their scale, and the levels that are nearest; what is not a number stays so: it shows."""
    steps = _in_steps(weight, scales, offsets)
    if even:
        return steps, (steps - levels[0]).round_().clamp_(0, len(levels) - 1).add_(levels[0])
    return steps, torch.where(steps.isnan(), steps, levels[nearest(steps, levels)])


def rounded(weight: Tensor, scales: Tensor, offsets: Tensor, levels: Tensor) -> Tensor:
    """Weights at their nearest codes, scale * level + offset; a weight's gradient is that of its rounded value.

    weight: (rows, scales of a row, weights of a scale); scales, offsets: (rows, scales of a row)
    levels: what codes stand for, rising. Beyond half a step past either end a weight has no gradient.
    """
    found: Tensor = _Rounded.apply(weight, scales, offsets, levels)  # type: ignore[no-untyped-call] # torch's own
    return found
