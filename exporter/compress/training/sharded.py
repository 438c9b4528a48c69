"""Weights, gradients and moments of a training split over the processes, each with its share: PyTorch's FSDP2.

Source: PyTorch FSDP, https://arxiv.org/abs/2304.11277, split by parameter as `torch.distributed.fsdp.fully_shard` does
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import warnings
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed import is_initialized
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load as read_parts
from torch.distributed.checkpoint.state_dict_saver import save as write_part
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from exporter.compress.processes import count_now
from exporter.compress.stack import find_layers
from exporter.compress.training.student import zeros_of
from runtime.errors import ModelError, UserError, in_one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from exporter.compress.training.student import Student

    Parameters = Sequence[torch.nn.Parameter]

INDEX = ".metadata"
"""Of a checkpoint that is written in parts, what lies in which of them."""


def twin(student: Student, model: Any) -> tuple[Student, Any]:  # noqa: ANN401 - a model of transformers
    """A student with modules of its own and the same weights: splitting them leaves the model as it is.

    model: the subject's, around which a student's may have more; returned second: what stands for it in the copy
    """
    (name,) = (name for name, module in student.model.named_modules() if module is model)
    found = copy.deepcopy(student.model, {id(one): one for one in student.model.parameters()})
    return dataclasses.replace(student, model=found), found.get_submodule(name)


def split_over(model: Any, around: Any, device: Any) -> None:  # noqa: ANN401 - of transformers; as torch names one
    """Split the weights over all processes: of each layer of `model` by itself, and with `around` what is left.

    Raises UserError for a model that torch does not split.
    """
    mesh = init_device_mesh(device.type, (count_now(),))
    homes = [(parameter, parameter.data) for parameter in around.parameters()]
    layers = list(find_layers(model) or ())
    uses = Counter(id(parameter) for layer in layers for parameter in layer.parameters())
    if any(count > 1 for count in uses.values()):
        raise UserError("FSDP: layers of this model share weights, which it would part; go on without it")
    try:
        for part in (*layers, around):
            # Also of the outermost: behind a forward without a backward it would be whole, and so in the optimizer.
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
            for parameter, home in homes:  # it was moved to the device as a whole, and need not stay there
                parameter.data = home
    except (ValueError, NotImplementedError) as error:
        what = f"this model's weights cannot be split ({in_one_line(error)})"
        raise UserError(f"FSDP: {what}; go on without it") from error
    if hasattr(around, "set_reduce_scatter_unused_params"):  # newer than torch 2.6
        around.set_reduce_scatter_unused_params(True)  # an expert that no token of this process went to


@contextlib.contextmanager
def split(student: Student, model: Any, device: Any) -> Iterator[Student]:  # noqa: ANN401 - as above
    """A `twin` student to train, its weights split; what was learned is put together at the end, where it was before.

    model: see `twin`
    """
    named = dict(student.model.named_parameters())
    names = {id(parameter): name for name, parameter in named.items()}
    for parameter in student.parameters:
        parameter.requires_grad_(True)
    try:
        split_over(model, student.model, device)
        now = dict(student.model.named_parameters())
        parts = {parameter: now[names[id(parameter)]] for parameter in student.parameters}
        zeros = {parts[one]: partial(zeros_of, parts[one]) for one in student.zeros}
        yield dataclasses.replace(student, parameters=list(parts.values()), zeros=zeros)
        with torch.no_grad():
            for parameter, part in parts.items():
                parameter.data.copy_(_whole(part))
    finally:
        for parameter in student.parameters:
            parameter.requires_grad_(False)


def _whole(part: torch.Tensor) -> torch.Tensor:
    assert isinstance(part, DTensor)
    return part.full_tensor()


def _weights(parameters: Parameters) -> dict[str, torch.Tensor]:
    return {f"weight.{number}": one.detach() for number, one in enumerate(parameters)}


def _moments(parameters: Parameters, state: Mapping[Any, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {
        f"moment.{number}.{key}": tensor
        for number, one in enumerate(parameters)
        for key, tensor in state.get(one, {}).items()
    }


def save(directory: Path, parameters: Parameters, more: Parameters, optimizer: Any) -> None:  # noqa: ANN401
    """Write a checkpoint, each process its own part. more: parameters of which only the moments are written"""
    everything = _weights(parameters) | _moments([*parameters, *more], optimizer.state)
    with _failures(OSError):  # as where it is written whole
        write_part(everything, checkpoint_id=directory)


def is_in_parts(directory: Path) -> bool:
    """Whether `save` has written a checkpoint, whatever the number of processes."""
    return (directory / INDEX).is_file()


def load(directory: Path, parameters: Parameters) -> None:
    """Put the weights of a checkpoint into parameters, split or whole. Raises ModelError where they are not there."""
    _read(directory, _weights(parameters))


def load_moments(directory: Path, parameters: Parameters, more: Parameters, optimizer: Any) -> None:  # noqa: ANN401
    """Put the moments of a checkpoint into an optimizer that has none yet. See `save` and `load`."""
    known = FileSystemReader(directory).read_metadata().state_dict_metadata.keys()
    everyone = [*parameters, *more]
    fused = any(group.get("fused") for group in optimizer.param_groups)  # it counts where it computes
    for _, number, key in (name.split(".") for name in known if name.startswith("moment.")):
        parameter = everyone[int(number)]
        step = torch.zeros((), dtype=torch.float32, device=parameter.device if fused else "cpu")
        optimizer.state[parameter][key] = step if key == "step" else torch.zeros_like(parameter.detach())
    _read(directory, _moments(everyone, optimizer.state))


def _read(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    failed = _failures(lambda what: ModelError(f"{directory}: {what}; leave --resume out to begin anew"))
    with failed, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it says of one process that it is one
        read_parts(tensors, checkpoint_id=directory, no_dist=not is_initialized())


@contextlib.contextmanager
def _failures(said: Callable[[str], Exception]) -> Iterator[None]:
    """What has failed in any process is an exception; torch raises what is none, and is caught by nobody."""
    try:
        yield
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        for cause in causes:
            if not isinstance(cause, Exception):  # someone wants it to end
                raise cause from error
        raise said(in_one_line(causes[0])) from error
