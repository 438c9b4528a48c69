"""Compressions that a kill ends where it is told to."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

KILLED = """
import os, signal, sys
from exporter.compress import settled
from exporter.compress.training import trainer
at = int(sys.argv[1])
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
from exporter.cli import main
sys.argv = ["packlight", *sys.argv[2:]]
main()
"""


def killed(at: int, source: Path, file: Path, out: Path, *more: str) -> None:
    """A compression that SIGKILL ends after update `at` of a training; with 0, when the second step is done."""
    command = [sys.executable, "-c", KILLED, str(at), "compress", str(source), "--recipe", str(file), "-o", str(out)]
    done = subprocess.run([*command, "--threads", "1", *more], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
