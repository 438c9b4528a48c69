"""transformers.js for Node, the client that the tests of the ONNX export run beside the two in Python.

    python -m benchmarks.node         install it (about ten seconds; 106 MB stay of 474) and print where it is

Every package has the version and the hash of node-lock.json. To take newer ones, make that file again from a
package.json: `npm install --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved`.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.paths import CACHE, new_directory

LOCK = Path(__file__).with_name("node-lock.json")
HOME = CACHE / "node"
# The first with import attributes, which sharp (a dependency of transformers.js) is written with.
OLDEST = (18, 20)
_FIX = f"install Node.js {OLDEST[0]}.{OLDEST[1]} or newer with npm (Debian, Ubuntu: nodejs and npm)"

# onnxruntime-node comes with its libraries for every system, onnxruntime-web with a build for every engine of a
# browser: 430 MB, of which these are used. transformers.js itself has its own copy of onnxruntime-web inside.
_WEB_KEPT = ("ort.node.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def node() -> str:
    """The path of a Node.js that is new enough. Raises SystemExit."""
    program = shutil.which("node")
    if program is None:
        raise SystemExit(f"node: not found; {_FIX}")
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if tuple(int(part) for part in said.removeprefix("v").split(".")[:2]) < OLDEST:
        raise SystemExit(f"{program}: is {said}; {_FIX}")
    return program


def packages() -> Path:
    """The directory that holds `node_modules`; installed first where that is missing or of another lock."""
    lock = LOCK.read_text(encoding="utf-8")
    kept = HOME / "package-lock.json"
    if not kept.is_file() or kept.read_text(encoding="utf-8") != lock:
        _install(lock)
    return HOME


def _install(lock: str) -> None:
    """Install what `lock` names into HOME."""
    node()
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit(f"npm: not found; {_FIX}")
    HOME.parent.mkdir(parents=True, exist_ok=True)
    log = HOME.with_name("node.log")
    print(f"installing transformers.js, log in {log}", file=sys.stderr)
    with new_directory(HOME) as partial, log.open("w") as output:
        (partial / "package.json").write_text(json.dumps(json.loads(lock)["packages"][""]), encoding="utf-8")
        (partial / "package-lock.json").write_text(lock, encoding="utf-8")
        # Without scripts: that of onnxruntime-node fetches CUDA; the library for the CPU is in the package already.
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        ran = subprocess.run(command, cwd=partial, stdout=output, stderr=subprocess.STDOUT, check=False)
        if ran.returncode:
            raise SystemExit(f"npm ci: failed; read {log}")
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
