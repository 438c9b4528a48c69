"""Compressions in processes of their own: some that a kill ends where it is told to, some that work together.

Each process is forked from one that has imported everything and run nothing: torch and transformers take ten seconds to
import, a compression of a tiny model one.
"""

from __future__ import annotations

import atexit
import json
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FORKS = """
import json, os, signal, sys
import torch
torch.set_num_threads(1)
import exporter.compress.distill.step, exporter.compress.prune.step, exporter.compress.quantize.step
import exporter.compress.training.trainer
from exporter.cli import main
for line in sys.stdin:
    children, statuses = {}, {}
    for rank, (environment, patch, arguments, out, error) in enumerate(json.loads(line)):
        child = os.fork()
        if not child:
            signal.alarm(300)
            os.environ.update(environment)
            for number, path in ((1, out), (2, error)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            sys.argv = ["packlight", *arguments]
            exec(patch, {})
            main()
            os._exit(0)
        children[child] = rank
    while children:
        child, status = os.waitpid(-1, 0)
        statuses[children.pop(child)] = os.waitstatus_to_exitcode(status)
        for other in children if status else ():  # as torchrun does
            os.kill(other, signal.SIGTERM)
    print(json.dumps([statuses[rank] for rank in sorted(statuses)]), flush=True)
"""
IN_TRAINING = """
import os, signal
from exporter.compress import settled
from exporter.compress.training import trainer
at = {at}
settle = settled.settle
def killing_before_it(subject, *more):
    if at == 0 and subject.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    settle(subject, *more)
settled.settle = killing_before_it
log = trainer._Shown.on_log
def killing(self, args, state, control, **more):
    log(self, args, state, control, **more)
    if state.global_step == at:
        os.kill(os.getpid(), signal.SIGKILL)
trainer._Shown.on_log = killing
"""


@cache
def _forks() -> subprocess.Popen[str]:
    """The process that is forked, one for all tests of this one; it ends with its input."""
    made = subprocess.Popen([sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def end() -> None:
        made.communicate()

    atexit.register(end)
    return made


@dataclass(frozen=True)
class Ran:
    """How a process ended, and what it said."""

    status: int
    out: str
    error: str


def _ran(processes: Sequence[tuple[Mapping[str, str], str, Sequence[object]]]) -> list[Ran]:
    """packlight, several times at once, by what is in its environment, Python that is run before it, and arguments."""
    forks = _forks()
    assert forks.stdin is not None
    assert forks.stdout is not None
    with tempfile.TemporaryDirectory() as room:
        said = [[Path(room) / f"{kind}-{number}" for kind in ("out", "error")] for number in range(len(processes))]
        started = [
            (dict(environment), patch, [str(one) for one in arguments], *map(str, files))
            for (environment, patch, arguments), files in zip(processes, said, strict=True)
        ]
        forks.stdin.write(json.dumps(started) + "\n")
        forks.stdin.flush()
        statuses = json.loads(forks.stdout.readline())
        texts = [[path.read_text(encoding="utf-8") for path in files] for files in said]
    return [Ran(status, *text) for status, text in zip(statuses, texts, strict=True)]


def together(
    *arguments: str | Path, count: int = 2, patches: Mapping[int, str] | None = None, **environment: str
) -> list[Ran]:
    """Packlight in processes that know each other, as torchrun starts them; where one fails the others are ended.

    patches: Python that a process runs before packlight, by rank
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    known = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    known |= {"OMP_NUM_THREADS": "1", **environment}
    ranks = [{**known, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    return _ran([(one, (patches or {}).get(rank, ""), arguments) for rank, one in enumerate(ranks)])


def killed_in(patch: str, source: Path, file: Path, out: Path, *more: str) -> None:
    """A compression that SIGKILL ends where `patch`, Python that is run before it, says."""
    (ran,) = _ran([({}, patch, ["compress", source, "--recipe", file, "-o", out, "--threads", "1", *more])])
    assert ran.status == -signal.SIGKILL, ran.out + ran.error


def killed(at: int, source: Path, file: Path, out: Path, *more: str) -> None:
    """A compression that SIGKILL ends after update `at` of a training; with 0, when the second step is done."""
    killed_in(IN_TRAINING.format(at=at), source, file, out, *more)
