"""The engine's tools that the user has built for the phone, in a directory here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.artifact import record
from runtime.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from runtime.artifact import Artifact, FileRecord
    from runtime.hosts.adb.engines.base import Engine

PLACES = ("", "bin", "lib")
"""Below the directory: as builds and installs of CMake lay it out."""
MACHINES = {3: "x86", 40: "armeabi-v7a", 62: "x86_64", 183: "arm64-v8a", 243: "riscv64"}
"""e_machine of an ELF header, by Android's name."""
_LITTLE_ENDIAN = 1


@dataclass(frozen=True)
class Binaries:
    """What is sent of an engine. files: name there to path here and its hash; tools: those of them that are programs"""

    files: dict[str, tuple[Path, FileRecord]]
    tools: tuple[str, ...]

    @property
    def directory(self) -> str:
        """Its name on the phone: other files are another directory."""
        listed = sorted((name, one.sha256) for name, (_, one) in self.files.items())
        return f"engine-{hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]}"

    def is_right_machine(self, tool: str) -> bool:
        """Whether a program is known to be built for the phone's processor, after `refuse_other_machine`."""
        return elf_machine(self.files[tool][0]) is not None

    @property
    def total_bytes(self) -> int:
        """Of all files."""
        return sum(one.bytes for _, one in self.files.values())

    def refuse_other_machine(self, abis: Sequence[str], where: str) -> None:
        """Raise HostError for a program that is built for another processor; scripts are not looked into."""
        for tool in self.tools:
            path = self.files[tool][0]
            machine = elf_machine(path)
            if machine is not None and machine not in abis:
                raise HostError(
                    f"{path}: is built for {machine}, {where} runs {', '.join(abis)}; build it with the NDK for that"
                )


def find_binaries(path: Path | None, engine: Engine, artifact: Artifact | None = None) -> Binaries:
    """The engine's tools in a directory, or one tool, and the shared libraries beside them, as far as they are run.

    Raises HostError.
    """
    if path is None:
        raise HostError(f"--on adb needs --engine DIR: a directory with {engine.needs}, built for the phone")
    if path.is_file():
        root, wanted = path.parent, [path]
        if path.name not in engine.tools:
            raise HostError(f"{path}: is none of the tools that packlight runs: {', '.join(engine.tools)}; name it so")
    elif path.is_dir():
        root, wanted = path, [path / place / tool for tool in engine.tools for place in PLACES[:2]]
    else:
        raise HostError(f"{path}: no such file or directory; --engine names where {engine.needs} are")
    tools = {one.name: one for one in reversed(wanted) if one.is_file()}
    if not tools:
        raise HostError(
            f"{path}: has none of {', '.join(engine.tools)}; --engine needs {engine.needs}, built for the phone"
        )
    tools = {name: tools[name] for name in engine.run_of(tuple(tools), artifact)}
    libraries = {
        one.name: one for place in reversed(PLACES) for one in sorted((root / place).glob("*.so*")) if one.is_file()
    }
    try:
        files = {name: (one, record(one)) for name, one in {**libraries, **tools}.items()}
    except OSError as error:
        raise HostError(f"{error.filename}: cannot be read ({error.strerror})") from error
    return Binaries(files, tuple(tools))


def elf_machine(path: Path) -> str | None:
    """Android's name of the processor that a program is for, "machine N" for another; None for what is no ELF file."""
    with path.open("rb") as file:
        head = file.read(20)
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return None
    number = int.from_bytes(head[18:20], "little" if head[5] == _LITTLE_ENDIAN else "big")
    return MACHINES.get(number, f"machine {number}")
