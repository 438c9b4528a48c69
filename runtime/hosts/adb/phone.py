"""A phone as a place: what it is, what room it has, and the files that packlight keeps there."""

from __future__ import annotations

import contextlib
import re
import shlex
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from runtime.errors import EngineError, HostError
from runtime.hosts.adb.client import OVER, last_words
from runtime.hosts.store import SPARE
from runtime.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from runtime.artifact import FileRecord
    from runtime.hosts.adb.client import Adb
    from runtime.hosts.base import Watcher

DIRECTORY = "/data/local/tmp/packlight"
"""Where adb's own user may write and start programs."""
HASH_BYTES_PER_S = 10e6
"""The slowest phone reads and hashes so many bytes a second."""
_PROPERTIES = {
    "maker": "ro.product.manufacturer",
    "model": "ro.product.model",
    "android": "ro.build.version.release",
    "soc": "ro.soc.model",
    "board": "ro.board.platform",
    "abi": "ro.product.cpu.abi",
    "abis": "ro.product.cpu.abilist",
}
_ROOM = re.compile(r"\s(\d+)\s+\d+\s+(\d+)\s+\d+%\s")


@dataclass(frozen=True)
class Phone:
    """directory: there, for what is kept between runs"""

    adb: Adb
    directory: str

    def facts(self) -> dict[str, Any]:
        """For the record, as `runtime.host.host_facts`; "abis" are the instruction sets that it runs."""
        asked = [f'echo "{name}=$(getprop {key})"' for name, key in _PROPERTIES.items()]
        asked += ['echo "cores=$(cat /sys/devices/system/cpu/possible)"', 'echo "kernel=$(uname -r)"']
        asked += ["grep MemTotal: /proc/meminfo"]
        done = self.adb.shell("; ".join(asked))
        said = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        known = {name: value.strip() for name, value in said.items()}
        memory = re.search(r"MemTotal:\s*(\d+) kB", done.stdout)
        return {
            "machine": known["abi"],
            "cpu": known["soc"] or known["board"] or "unknown",
            "cores": _cores(known["cores"]),
            "memory_bytes": int(memory[1]) * 1024 if memory else 0,
            "os": f"Android {known['android']}, Linux {known['kernel']}",
            "model": f"{known['maker']} {known['model']}".strip(),
            "abis": (known["abis"] or known["abi"]).split(","),
            "on": self.adb.name,
        }

    def make(self, name: str) -> None:
        """A directory below the phone's own. Raises HostError where nothing can be written."""
        path = f"{self.directory}/{name}"
        asked = f"mkdir -p {shlex.quote(path)} && [ -w {shlex.quote(path)} ] && echo made"
        done = self.adb.shell(asked, doing=f" while {path} was made")
        if "made" not in done.stdout.split():
            words = last_words(done.stderr) or _said(done.stdout) or "no permission to write"
            raise HostError(f"{self.adb.name}: {path}: {words}; name another directory with --remote-dir")

    def refuse_no_room(self, missing: int) -> None:
        """Raise HostError where so many bytes have no room; a `df` that says something else is not asked further."""
        room = _ROOM.search(f"{self.adb.shell(f'df -k {shlex.quote(self.directory)}').stdout}\n")
        free = int(room[2]) * 1024 if room else None
        if missing and free is not None and missing + SPARE > free:
            raise HostError(
                f"{self.adb.name}: {self.directory}: {format_bytes(free)} free, {format_bytes(missing + SPARE)} "
                "needed; free some on the phone, or name another directory with --remote-dir"
            )

    def send(self, files: Mapping[str, tuple[Path, FileRecord]], to: str, watcher: Watcher) -> None:
        """Bring files below the directory `to`, those that are not there yet; each is whole, or not there by its name.

        Raises HostError, EngineError where the connection breaks.
        """
        self.make(to)
        missing = {name: one for name, one in files.items() if not self.has(f"{to}/{name}", one[1])}
        self.refuse_no_room(sum(one.bytes for _, one in missing.values()))
        for name, (path, one) in missing.items():
            watcher.note(f"sending {name}, {format_bytes(one.bytes)}")
            self._send_one(path, f"{to}/{name}", one)
            watcher.advance(f"sending {name}", one.bytes, one.bytes)

    def has(self, name: str, one: FileRecord) -> bool:
        """Whether the file is there: by size and SHA-256, by size alone where the phone has no sha256sum."""
        return self._is(f"{self.directory}/{name}", one)

    def remove(self, *names: str) -> None:
        """Remove files or directories, as far as the phone can be reached; then what is empty of packlight's own."""
        paths = " ".join(shlex.quote(f"{self.directory}/{name}") for name in names)
        with contextlib.suppress(HostError, EngineError):
            self.adb.shell(f"rm -rf {paths}; rmdir {shlex.quote(self.directory)} 2>/dev/null")

    def remove_others(self, name: str, like: str) -> None:
        """Remove what a pattern of the shell names below the phone's directory, but not `name`."""
        others = f'for one in {like}; do case $one in {name}) ;; *) rm -rf "$one" ;; esac; done'
        self.adb.shell(f"cd {shlex.quote(self.directory)} 2>/dev/null && {others}")

    def _send_one(self, path: Path, name: str, one: FileRecord) -> None:
        if (parent := PurePosixPath(name).parent.as_posix()) != ".":
            self.make(parent)
        there, part = f"{self.directory}/{name}", f"{self.directory}/{name}.part"
        try:
            self.adb.push(path, part)
            if not self._is(part, one):
                raise HostError(
                    f"{path}: came to {self.adb.name} with another size or SHA-256; is the file being written, "
                    "or the phone's storage damaged?"
                )
            moved = self.adb.shell(
                f"chmod 755 {shlex.quote(part)}; mv -f {shlex.quote(part)} {shlex.quote(there)} && echo moved"
            )
            if "moved" not in moved.stdout.split():
                raise HostError(f"{self.adb.name}: {there}: {last_words(moved.stderr) or _said(moved.stdout)}")
        except BaseException:
            self.remove(f"{name}.part")
            raise

    def _is(self, path: str, one: FileRecord) -> bool:
        quoted = shlex.quote(path)
        asked = (
            f"[ -f {quoted} ] && wc -c <{quoted} && "
            f"if command -v sha256sum >/dev/null; then sha256sum <{quoted}; else echo none; fi"
        )
        seconds, doing = 60 + one.bytes / HASH_BYTES_PER_S, f" while {PurePosixPath(path).name} was looked at"
        said = self.adb.shell(asked, seconds=seconds, doing=doing).stdout.split()
        return len(said) > 2 and said[0] == str(one.bytes) and said[1] in (one.sha256, "none")


def _said(out: str) -> str:
    """The last line of what old phones mix into the answer."""
    return last_words(out.replace(OVER, ""))


def _cores(ranges: str) -> int:
    """Number of processors in the kernel's notation, such as "0-3,6"; 1 where it is none."""
    found = re.findall(r"(\d+)(?:-(\d+))?", ranges)
    return sum(int(last or first) - int(first) + 1 for first, last in found) or 1
