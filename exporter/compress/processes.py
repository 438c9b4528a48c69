"""Several processes that one launcher (torchrun, `accelerate launch`) has started on one compression.

All of them train; everything else the first one does, and the others read from the disk what it has made.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from exporter.steps import training_of
from runtime.errors import EngineError, PacklightError, UserError, in_one_line, said_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from exporter.steps import Step, Training

    Meet = Callable[[], None]

FOUND_WITHIN = timedelta(minutes=30)
"""So long one waits for another that is on its way to the same place, torch's own limit: all are started at once."""
STEP_WITHIN = timedelta(days=30)
"""So long may a step take that the first process does alone. A process that ends ends the waiting of all others."""
SAYS_IT_FIRST = 10
"""Seconds. Where the first process fails in the same way, the launcher ends all others within that."""
FSDP, DEEPSPEED = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"
"""By these `accelerate launch` says that the weights are to be split over the processes."""
YES = ("1", "true", "t", "yes", "y", "on")
SIZES = ("WORLD_SIZE", "LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""By any of these accelerate takes a process for one of several."""


@dataclass(frozen=True)
class Launched:
    """This process among those that were started together.

    rank: from 0; count: of all; split: whether trainings split the weights over them
    """

    rank: int
    count: int
    split: bool = False

    @property
    def first(self) -> bool:
        """Whether it is the one that does what is done once."""
        return self.rank == 0


ALONE = Launched(0, 1)


def launched(environment: Mapping[str, str] = os.environ) -> Launched:
    """What a launcher has said, in the variables that torch.distributed reads. Raises UserError for nonsense."""
    split = environment.get(FSDP, "").lower() in YES
    try:
        found = Launched(int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1")), split)
    except ValueError as error:
        raise UserError(f"RANK and WORLD_SIZE are not numbers ({error}); unset them, or use torchrun") from error
    if found.count == 1 or "MASTER_ADDR" not in environment:
        return ALONE
    if "LOCAL_RANK" not in environment:
        what = f"WORLD_SIZE says {found.count} processes, and LOCAL_RANK says nothing"
        raise UserError(f"{what}; start them with torchrun, or unset RANK and WORLD_SIZE")
    return found


def count_now() -> int:
    """Of the processes that know each other."""
    from torch import distributed

    return distributed.get_world_size() if distributed.is_initialized() else 1


@contextlib.contextmanager
def joined(here: Launched) -> Iterator[Meet]:
    """Meanwhile the processes know each other. Yields what waits until all have called it.

    Raises UserError where they do not find each other, or where DeepSpeed was to split weights over them.
    """
    if here.count == 1:
        with _hidden(*SIZES, FSDP):  # libraries would wait for others
            yield lambda: None
        return
    if os.environ.get(DEEPSPEED, "").lower() in YES:
        what = "splits the weights in a way that compress does not know"
        raise UserError(f"{DEEPSPEED}: {what}; say FSDP in 'accelerate config', or use torchrun")
    import torch
    from torch import distributed

    n_gpus, n_local = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if 0 < n_gpus < n_local:
        raise UserError(f"{n_local} processes on a machine of {n_gpus} GPUs; start one for each, no more")
    try:
        distributed.init_process_group("cuda:nccl,cpu:gloo" if n_gpus else "gloo", timeout=FOUND_WITHIN)
        group = distributed.new_group(backend="gloo", timeout=STEP_WITHIN)
    except (RuntimeError, ValueError) as error:
        what = f"{here.count} processes were announced by WORLD_SIZE and have not met"
        raise UserError(
            f"{what} ({in_one_line(error)}); start all with torchrun, or unset RANK and WORLD_SIZE"
        ) from error
    try:
        with _hidden(FSDP):  # it is done here: accelerate would do it once more
            yield partial(distributed.barrier, group)
    finally:
        distributed.destroy_process_group()


@contextlib.contextmanager
def _hidden(*names: str) -> Iterator[None]:
    """What a launcher or a queue has said by these names is not there meanwhile."""
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextlib.contextmanager
def lost_is_said() -> Iterator[None]:
    """Meanwhile it is an EngineError that another process is gone."""
    try:
        yield
    except RuntimeError as error:
        from torch import distributed

        kinds: Any = getattr(distributed, "DistError", ())
        if not isinstance(error, kinds) and "gloo" not in str(error).lower():
            raise
        what = "another process of this run has ended, or cannot be reached"
        raise EngineError(f"{what} ({in_one_line(error)}); see what it said, and go on with --resume") from error


def refuse_uneven(trainings: Iterable[Training], here: Launched) -> None:
    """Raise UserError where a batch is not divided evenly among the processes: before any step is done."""
    for one in trainings:
        at_once = one.batch // one.accumulate
        if at_once % here.count:
            parts = f" in {one.accumulate} parts" if one.accumulate > 1 else ""
            what = f"batch: {one.batch}{parts} is not divided evenly among {here.count} processes"
            fix = f"say batch: {-(-at_once // here.count) * here.count * one.accumulate}, or start another number"
            raise UserError(f"--recipe: {what}; {fix}")


def refuse_unsplit(steps: Iterable[Step], here: Launched) -> None:
    """Raise UserError for a training that needs whole weights, where they are to be split."""
    for one in steps:
        if here.split and one.step != "distill" and training_of(one) is not None:
            what = f"training of a {one.step} step needs whole weights in every process"
            raise UserError(f"--recipe: {what}; say no to FSDP in 'accelerate config' (unset {FSDP})")


@contextlib.contextmanager
def said_after_first(here: Launched) -> Iterator[None]:
    """An error of a process that is not the first is said with its rank, and only where the first has not failed."""
    who = f"process {here.rank} of {here.count}"
    try:
        yield
    except PacklightError as error:
        time.sleep(SAYS_IT_FIRST)
        error.args = (f"{who}: {error}",)
        raise
    except OSError as error:
        time.sleep(SAYS_IT_FIRST)
        raise EngineError(f"{who}: {said_of(error)}") from error
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(who) from error
