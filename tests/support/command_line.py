"""The installed program, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def packlight(*arguments: str | Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run packlight, whatever its exit status. environment: None for this process's own"""
    program = Path(sys.executable).with_name("packlight")
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=1400, check=False, env=environment
    )


def export(format_name: str, source: Path, out: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit status of an export, which says nothing but what packlight says, and the report by the lines' names."""
    ran = packlight("export", source, "--format", format_name, "--trials", "1", "-o", out, "--json", *arguments)
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    assert "Warning" not in ran.stderr
    assert "torchao" not in ran.stderr
    return ran.returncode, {line["name"]: line for line in json.loads(ran.stdout)["lines"]}
