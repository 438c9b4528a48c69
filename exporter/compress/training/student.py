"""What is trained, and what is done to a model while it learns."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from torch.distributed.tensor import DTensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

DROPPED = ("attention_dropout", "activation_dropout", "dropout")
"""Of modules that hand a share to drop to a function."""
IN_FLOAT32 = "packlight_sdpa_float32"
"""What transformers is told to call `attention_in_float32`."""


@dataclass(frozen=True)
class Student:
    """What is trained.

    model: of transformers; parameters: that learn; quick: more of them, that learn faster, see `trainer.QUICK`
    zeros: of parameters, which weights are to stay as they are, asked for at every update
    as_stored: within it the model computes with the weights that its file will hold
    before: within it the model is what the trained one has to do better than
    after_update: called with the number of updates done and the optimizer
    judged_from: the update from which on the held-out pieces say which weights are best
    """

    model: Any
    parameters: Sequence[torch.nn.Parameter]
    quick: Sequence[torch.nn.Parameter] = ()
    zeros: Mapping[torch.nn.Parameter, Callable[[], torch.Tensor]] = field(default_factory=dict)
    as_stored: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    before: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    after_update: Callable[[int, Any], None] | None = None
    judged_from: int = 0


def zeros_of(parameter: torch.Tensor) -> torch.Tensor:
    """For `Student.zeros`: those that are zero by then."""
    return parameter == 0


def averaged(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Give parameters the mean of their gradients over all processes; none, where it has none in any of them.

    Those of split parameters are means by then.
    """
    parameters = [one for one in parameters if not is_split(one)]
    if not (distributed.is_initialized() and parameters):
        return
    there = torch.tensor([one.grad is not None for one in parameters], dtype=torch.int32, device=parameters[0].device)
    distributed.all_reduce(there, distributed.ReduceOp.MAX)
    pending = []
    for parameter, known in zip(parameters, there.tolist(), strict=True):
        if known:
            if parameter.grad is None:  # an expert that no token went to
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad /= distributed.get_world_size()
            pending.append(distributed.all_reduce(parameter.grad, async_op=True))
    for one in pending:
        one.wait()


@contextlib.contextmanager
def without_traces(model: Any) -> Iterator[None]:  # noqa: ANN401
    """What accelerate writes on a model goes at the end: a forward in bfloat16, and that it is prepared."""
    before = set(vars(model))
    try:
        yield
    finally:
        for name in set(vars(model)) - before:
            delattr(model, name)


def keep_zeros(student: Student) -> None:
    """No gradient for what is to stay as it is: Adam leaves it then."""
    for parameter, where in student.zeros.items():
        if parameter.grad is not None:
            gradient = local(parameter.grad)
            gradient.masked_fill_(local(where()).to(gradient.device), 0)


@contextlib.contextmanager
def nothing_dropped(model: Any) -> Iterator[None]:  # noqa: ANN401 - a model of transformers
    """No dropout: a student that is given its teacher's very function is to follow it, and has nothing to overfit."""
    found = [(module, "p", module.p) for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    found += [(module, name, share) for module in model.modules() for name in DROPPED
              if isinstance(share := getattr(module, name, None), float)]  # fmt: skip
    for module, name, _ in found:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, share in found:
            setattr(module, name, share)


@contextlib.contextmanager
def activations_computed_again(model: Any, *, on: bool) -> Iterator[None]:  # noqa: ANN401
    """Gradient checkpointing. Its name in transformers has changed within version 5, by which it is switched."""
    name = "activation_checkpointing" if hasattr(model, "activation_checkpointing_enable") else "gradient_checkpointing"
    if on:
        getattr(model, f"{name}_enable")()
    try:
        yield
    finally:
        if on:
            getattr(model, f"{name}_disable")()


@contextlib.contextmanager
def attention_in_float32(model: Any, *, on: bool) -> Iterator[None]:  # noqa: ANN401
    """The attention itself, between its matrices, computed in float32 also where autocast takes bfloat16.

    torch's attention for the CPU goes back through bfloat16 more slowly than through float32: 7 times for texts of 64
    tokens in heads of 32, twice at 256 (torch 2.13, a Xeon that multiplies bfloat16). A model that computes its
    attention in another way is left alone.
    """
    on = on and model.config._attn_implementation == "sdpa"
    if on:
        AttentionInterface.register(IN_FLOAT32, _in_float32)
        AttentionMaskInterface.register(IN_FLOAT32, sdpa_mask)
        model.set_attn_implementation(IN_FLOAT32)
    try:
        yield
    finally:
        if on:
            model.set_attn_implementation("sdpa")


def _in_float32(
    module: Any,  # noqa: ANN401 - as transformers calls it
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.float()
    with torch.autocast(query.device.type, enabled=False):
        found, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), mask, **options)
    return found.to(query.dtype), None


@contextlib.contextmanager
def learning(model: Any, parameters: list[torch.nn.Parameter]) -> Iterator[None]:  # noqa: ANN401
    """These weights of a model ask for gradients and lie in memory, not in a mapped file that updates would write to.

    Afterwards all weights are where they were before, wherever the training has moved the model to.
    """
    homes = [(parameter, parameter.data) for parameter in model.parameters()]
    for parameter in parameters:
        parameter.data = parameter.data.clone()
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        learned = {id(parameter) for parameter in parameters}
        for parameter, home in homes:
            if id(parameter) in learned:
                home.copy_(parameter.data)
            parameter.requires_grad_(False)
            parameter.grad, parameter.data = None, home
        model.to("cpu")  # what else it has, such as tables of angles


def is_split(tensor: torch.Tensor) -> bool:
    """Whether each process has a part of it."""
    return isinstance(tensor, DTensor)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor that is split, or the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
