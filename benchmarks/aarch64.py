"""A Python for 64-bit Arm with ONNX Runtime, run by QEMU's user mode: a board to try the harness on, without a board.

    python -m benchmarks.aarch64      make it (half a minute; 250 MB) and print the Python's path

Debian's own packages of the other architecture, unpacked into .cache, and wheels from the Python package index. Nothing
is installed into this system, and nobody has to be root. What it computes is what a board computes; how fast, and in
how much memory, is not.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import IO

from benchmarks.paths import CACHE, new_directory

# The newest whose import does not crash in QEMU 7.2, which is what Debian 12 has.
WHEELS = ("onnxruntime==1.27.0", "numpy==2.4.6")
HOME = CACHE / "-".join(("aarch64", *WHEELS)).replace("==", "-")
_PYTHONS = ("3.11", "3.12", "3.13")
_LIBRARIES = ("libstdc++6", "libgomp1")
_WRAPPER = """#!/bin/sh
here=${{0%/*}}
# -0: Python takes its own name for its path, and starts that again for the process that it measures.
exec "{qemu}" -L "$here/root" -0 "$0" "$here/root/usr/bin/python{version}" "$@"
"""


class Unavailable(SystemExit):
    """This system's packages are not Debian's; Ubuntu's mirrors have no arm64, for example."""


def python() -> Path:
    """The path of the Python; made first where it is missing. Raises SystemExit, Unavailable where it cannot be."""
    path = HOME / "python"
    if not path.is_file():
        _make()
    return path


def _make() -> None:
    release = Path("/etc/os-release")
    if not release.is_file() or platform.freedesktop_os_release().get("ID") != "debian":
        raise Unavailable("a Python for 64-bit Arm is made of Debian's packages, on Debian")
    HOME.parent.mkdir(parents=True, exist_ok=True)
    log = HOME.with_name("aarch64.log")
    print(f"making a Python for 64-bit Arm, log in {log}", file=sys.stderr)
    with new_directory(HOME) as partial, log.open("w") as output:
        try:
            version = _debian(partial, output)
            _wheels(partial, version, output)
            _wrapper(partial, _qemu(partial, output), version, output)
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"{error.cmd[0]}: failed; read {log}") from error


def _wrapper(partial: Path, qemu: Path, version: str, output: IO[str]) -> None:
    """Write what is called as Python, and try it."""
    where = f"$here/{qemu.name}" if qemu.parent == partial else str(qemu)
    wrapper = partial / "python"
    wrapper.write_text(_WRAPPER.format(qemu=where, version=version))
    wrapper.chmod(0o755)
    _run([str(wrapper), "-c", "import onnxruntime"], output)


def _debian(partial: Path, output: IO[str]) -> str:
    """Unpack a Python and what it needs into partial/root; its version."""
    state = partial / "apt"
    (state / "lists" / "partial").mkdir(parents=True)
    (state / "archives" / "partial").mkdir(parents=True)
    (state / "status").touch()
    settings = {
        "Dir::State": state, "Dir::State::status": state / "status", "Dir::State::lists": state / "lists",
        "Dir::Cache": state, "Dir::Cache::archives": state / "archives", "APT::Architecture": "arm64",
        "APT::Architectures": "arm64", "Acquire::Languages": "none", "APT::Sandbox::User": "root",
    }  # fmt: skip
    apt = ["apt-get", "-q", "-y", *(part for key, value in settings.items() for part in ("-o", f"{key}={value}"))]
    _run([*apt, "update"], output)
    for version in _PYTHONS:
        wanted = [f"python{version}", *_LIBRARIES]
        command = [*apt, "install", "--download-only", "--no-install-recommends", *wanted]
        if subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode == 0:
            break
    else:
        raise SystemExit(f"apt-get: none of Python {', '.join(_PYTHONS)} came; read {output.name}")
    for package in sorted((state / "archives").glob("*.deb")):
        _run(["dpkg", "-x", str(package), str(partial / "root")], output)
    shutil.rmtree(state)
    return version


def _wheels(partial: Path, version: str, output: IO[str]) -> None:
    """Unpack the wheels to where that Python looks for packages."""
    wheels, site = partial / "wheels", partial / "root" / "usr" / "lib" / "python3" / "dist-packages"
    platforms = [f"--platform=manylinux{name}_aarch64" for name in ("_2_28", "_2_27", "_2_17", "2014")]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    more = ["--only-binary=:all:", *platforms, f"--python-version={version}", "-d", str(wheels), *WHEELS]
    _run([*command, *more], output)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    shutil.rmtree(wheels)


def _qemu(partial: Path, output: IO[str]) -> Path:
    """The program: this system's, or Debian's own, which is one static file."""
    for name in ("qemu-aarch64-static", "qemu-aarch64"):
        if (found := shutil.which(name)) is not None:
            return Path(found)
    # Debian 13 has the static programs in qemu-user.
    for name in ("qemu-user-static", "qemu-user"):
        _run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name], output, partial)
        (package,) = partial.glob(f"{name}_*.deb")
        _run(["dpkg", "-x", str(package), str(partial / "qemu")], output)
        package.unlink()
        found = [path for path in (partial / "qemu").glob("usr/bin/qemu-aarch64*") if not path.is_symlink()]
        if program := next((path for path in found if re.search("64(-static)?$", path.name)), None):
            break
    else:
        raise SystemExit("qemu-user: has no qemu-aarch64")
    program.rename(partial / program.name)  # the others emulate what nobody asked for, 300 MB of it
    shutil.rmtree(partial / "qemu")
    return partial / program.name


def _run(command: list[str], output: IO[str], directory: Path | None = None) -> None:
    subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, cwd=directory, check=True)


if __name__ == "__main__":
    print(python())
