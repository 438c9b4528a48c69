"""Clients in Node that the tests run exports in: transformers.js for ONNX, node-llama-cpp for GGUF.

    python -m benchmarks.node         install both (half a minute; 106 MB stay of 474, and 85) and print where they are

Every package has the version and the hash of node-lock.json or node-llama-lock.json. To take newer ones, make that file
again from a package.json: `npm install --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved`; for
node-llama-cpp with @node-llama-cpp/linux-x64 beside it, which is installed alone: its optional builds for CUDA are not.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.paths import CACHE, new_directory


@dataclass(frozen=True)
class Client:
    """What is installed. lock: its file; oldest: version of Node that it needs; command: of npm"""

    name: str
    lock: Path
    home: Path
    oldest: tuple[int, int]
    command: tuple[str, ...] = ("ci",)


# The first with import attributes, which sharp (a dependency of transformers.js) is written with.
TRANSFORMERS = Client("transformers.js", Path(__file__).with_name("node-lock.json"), CACHE / "node", (18, 20))
LLAMA = Client("node-llama-cpp", Path(__file__).with_name("node-llama-lock.json"), CACHE / "node-llama", (20, 0),
               ("install", "--omit=optional"))  # fmt: skip
"""Not by `npm ci`, which asks for the optional packages of every system, also of those that a registry lacks."""

# onnxruntime-node comes with its libraries for every system, onnxruntime-web with a build for every engine of a
# browser: 430 MB, of which these are used. transformers.js itself has its own copy of onnxruntime-web inside.
_WEB_KEPT = ("ort.node.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def node(client: Client = TRANSFORMERS) -> str:
    """The path of a Node.js that is new enough. Raises SystemExit."""
    program, fix = shutil.which("node"), _fix(client)
    if program is None:
        raise SystemExit(f"node: not found; {fix}")
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if tuple(int(part) for part in said.removeprefix("v").split(".")[:2]) < client.oldest:
        raise SystemExit(f"{program}: is {said}; {fix}")
    return program


def _fix(client: Client) -> str:
    oldest = ".".join(map(str, client.oldest))
    return f"install Node.js {oldest} or newer with npm (Debian, Ubuntu: nodejs and npm)"


def runs_llama() -> bool:
    """Whether node-llama-cpp can run here: its lock names the build for one kind of machine, and Node may be older."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return False
    try:
        node(LLAMA)
    except SystemExit:
        return False
    return True


def packages(client: Client = TRANSFORMERS) -> Path:
    """The directory that holds `node_modules`; installed first where that is missing or of another lock."""
    lock = client.lock.read_text(encoding="utf-8")
    kept = client.home / "package-lock.json"
    if not kept.is_file() or kept.read_text(encoding="utf-8") != lock:
        _install(client, lock)
    return client.home


def _install(client: Client, lock: str) -> None:
    """Install what `lock` names into the client's directory."""
    node(client)
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit(f"npm: not found; {_fix(client)}")
    client.home.parent.mkdir(parents=True, exist_ok=True)
    log = client.home.with_name(f"{client.home.name}.log")
    print(f"installing {client.name}, log in {log}", file=sys.stderr)
    with new_directory(client.home) as partial, log.open("w") as output:
        (partial / "package.json").write_text(json.dumps(json.loads(lock)["packages"][""]), encoding="utf-8")
        (partial / "package-lock.json").write_text(lock, encoding="utf-8")
        # Without scripts: those fetch CUDA, or compile; the libraries for the CPU are in the packages already.
        command = [npm, *client.command, "--ignore-scripts", "--no-audit", "--no-fund"]
        ran = subprocess.run(command, cwd=partial, stdout=output, stderr=subprocess.STDOUT, check=False)
        if ran.returncode:
            raise SystemExit(f"npm {client.command[0]}: failed; read {log}")
        (partial / "package-lock.json").write_text(lock, encoding="utf-8")
        if client is TRANSFORMERS:
            _prune(partial / "node_modules")


def _prune(modules: Path) -> None:
    """Delete what only other systems and browsers run."""
    system, machine = sys.platform, {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    for directory in modules.glob("onnxruntime-node/bin/napi-v*/*/*"):
        if (directory.parent.name, directory.name) != (system, machine):
            shutil.rmtree(directory)
    for path in (modules / "onnxruntime-web" / "dist").iterdir():
        if path.name not in _WEB_KEPT:
            path.unlink()
    shutil.rmtree(modules / "onnxruntime-web" / "lib", ignore_errors=True)


if __name__ == "__main__":
    print(node())
    print(packages())
    print(packages(LLAMA) if runs_llama() else "node-llama-cpp: not for this machine, or for a newer Node")
