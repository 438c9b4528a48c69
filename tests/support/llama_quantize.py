"""llama-quantize beside us: the types that it would choose, and the files that it writes."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

from exporter.checkpoint import resolve
from targets.base import EmitOptions, TypeChoice
from targets.gguf.plan import make_plan

if TYPE_CHECKING:
    from pathlib import Path

_LINE = re.compile(r"\] (\S+) +- \[.*?\], type = +(\w+), size = .*?MiB(?: -> .*?MiB \((\w+)\))?$", re.MULTILINE)


def their_types(source: Path, preset: str, *options: str) -> dict[str, str]:
    """The type of every tensor, by name, as `llama-quantize --dry-run` says. Raises ValueError where it refuses."""
    said = _run("--dry-run", "--allow-requantize", *options, str(source), preset.upper(), "1")
    return {name: (new or old).upper() for name, old, new in _LINE.findall(said)}


def our_types(source: Path, preset: str, types: TypeChoice | None = None) -> dict[str, str]:
    """The same of our plan. Raises ValueError where we refuse."""
    plan, problems = make_plan(resolve(str(source)), EmitOptions(preset, types=types or TypeChoice()))
    if plan is None:
        raise ValueError("\n".join(map(str, problems)))
    return {placed.name: placed.kind.name for _, placed in plan.tensors}


def quantized(source: Path, preset: str, out: Path) -> Path:
    """llama-quantize's own file. Raises ValueError where it refuses."""
    _run("--allow-requantize", str(source), str(out), preset.upper(), "1")
    return out


def _run(*arguments: str) -> str:
    from benchmarks.tools import tool

    done = subprocess.run([tool("llama-quantize"), *arguments], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode:
        raise ValueError(said[-2000:])
    return said
