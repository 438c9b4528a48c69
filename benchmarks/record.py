"""What every result file says about where it comes from, and how it is written."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any

from benchmarks.paths import RESULTS, ROOT
from benchmarks.tools import SDIST
from runtime.host import host_facts

if TYPE_CHECKING:
    from pathlib import Path

PACKAGES = ("exporter", "targets", "runtime")
VERSIONS = (
    "llama_cpp_python", "gguf", "numpy", "torch", "transformers", "tokenizers", "onnx", "onnxruntime",
    "onnxruntime-genai",
)  # fmt: skip
"""Packages whose versions are recorded where they are installed."""


def provenance() -> dict[str, Any]:
    """Command, commit, code, host, versions, date and load of the run that begins now."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    command = f"python -m {module.name}" if module else sys.argv[0]
    return {
        "command": shlex.join([*command.split(), *sys.argv[1:]]),
        "commit": commit(),
        "dirty": dirty(),
        "code_sha256": code_sha256(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": host_facts(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "versions": {**versions(), "llama.cpp": SDIST},
    }


def versions() -> dict[str, str]:
    """Versions of those of VERSIONS that are installed."""
    found = {}
    for name in VERSIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit(root: Path = ROOT) -> str:
    """The commit that HEAD names; empty outside a git checkout. Read from the files, so that nothing is locked."""
    git = root / ".git"
    try:
        if git.is_file():  # a worktree: its HEAD lies elsewhere, and the references with the repository
            git = root / git.read_text(encoding="utf-8").removeprefix("gitdir: ").strip()
        head = (git / "HEAD").read_text(encoding="ascii").strip()
        if not head.startswith("ref: "):
            return head
        reference = head.removeprefix("ref: ")
        if (git / "commondir").is_file():
            git /= (git / "commondir").read_text(encoding="utf-8").strip()
        if (git / reference).is_file():
            return (git / reference).read_text(encoding="ascii").strip()
        packed = (git / "packed-refs").read_text(encoding="ascii").splitlines()
    except OSError:
        return ""
    return next((line.split()[0] for line in packed if line.endswith(f" {reference}")), "")


def dirty(root: Path = ROOT) -> bool | None:
    """Whether tracked files differ from the commit; None where git or its checkout is missing.

    The results and the documentation do not count: the benchmarks write them themselves.
    """
    git = shutil.which("git")
    if git is None:
        return None
    # Without optional locks: another git may run here at the same time.
    command = [git, "--no-optional-locks", "status", "--porcelain", "--untracked-files=no", "--", "."]
    done = subprocess.run(
        [*command, ":!benchmarks/results", ":!docs"], cwd=root, capture_output=True, text=True, check=False
    )
    return bool(done.stdout.strip()) if done.returncode == 0 else None


def judged(text: str, holds: bool) -> str:
    """`text` as a cell of a Markdown table, marked so that a limit that does not hold cannot be overlooked."""
    return text if holds else f"**✗ {text}**"


def code_sha256() -> str:
    """SHA-256 over the packages' source files, names and bytes: tells whether the code was the commit's."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def save(name: str, content: dict[str, Any]) -> Path:
    """Write `benchmarks/results/<name>.json`; it says so where the code was edited during the run."""
    content = {**content, "code_changed_during_run": content["code_sha256"] != code_sha256()}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def load(name: str) -> dict[str, Any] | None:
    """The content of a result file, None where there is none."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def describe(content: dict[str, Any]) -> str:
    """One Markdown paragraph about where a result comes from."""
    host, versions = content["host"], content["versions"]
    return (
        f"`{content['command']}` on {content['date'][:10]}, commit `{content['commit'][:12]}`"
        f"{' with uncommitted changes' if content.get('dirty') else ''} "
        f"(code `{content['code_sha256'][:12]}`), {host['cpu']}, {host['cores']} cores, "
        f"{host['memory_bytes'] / 1e9:.1f} GB, {host['os']}, Python {host['python']}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f"; load average at the start {content['load_average'][0]}."
        + (" The code was edited while it ran." if content.get("code_changed_during_run") else "")
    )
