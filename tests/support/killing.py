"""Compressions that a kill ends where it is told to.

Each runs in a process of its own, forked from one that has imported everything and run nothing: torch and transformers
take ten seconds to import, a compression of a tiny model one.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

FORKS = """
import json, os, sys
import torch
torch.set_num_threads(1)
import exporter.compress.distill.step, exporter.compress.prune.step, exporter.compress.quantize.step
import exporter.compress.training.trainer
from exporter.cli import main
for line in sys.stdin:
    patch, arguments, said = json.loads(line)
    child = os.fork()
    if not child:
        for number in (1, 2):
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.argv = ["packlight", *arguments]
        exec(patch, {})
        main()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
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


def killed_in(patch: str, source: Path, file: Path, out: Path, *more: str) -> None:
    """A compression that SIGKILL ends where `patch`, Python that is run before it, says."""
    arguments = ["compress", str(source), "--recipe", str(file), "-o", str(out), "--threads", "1", *more]
    forks = _forks()
    assert forks.stdin is not None
    assert forks.stdout is not None
    handle, said = tempfile.mkstemp()
    os.close(handle)
    try:
        forks.stdin.write(json.dumps([patch, arguments, said]) + "\n")
        forks.stdin.flush()
        status = forks.stdout.readline().strip()
        assert status == str(-signal.SIGKILL), Path(said).read_text(encoding="utf-8")
    finally:
        Path(said).unlink()


def killed(at: int, source: Path, file: Path, out: Path, *more: str) -> None:
    """A compression that SIGKILL ends after update `at` of a training; with 0, when the second step is done."""
    killed_in(IN_TRAINING.format(at=at), source, file, out, *more)
