"""A hard memory cap of exactly N bytes on a child process, by the best method that this host has.

cgroup-v2, cgroup-v1   the kernel kills the child when what it touches cannot be held under the cap
rlimit-data            allocations are refused; counts private writable memory, touched or not, no mapped file
rlimit-as              allocations are refused; counts the whole address space, so it is the strictest

A cgroup is made below (v1) or beside (v2, where a group with processes may have no children) this process's own,
so that limits that already hold on v1 keep holding. It is removed when the cap closes; groups left by a packlight
that was killed are removed by the next one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pkgutil
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import EngineError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

METHODS = ("cgroup-v2", "cgroup-v1", "rlimit-data", "rlimit-as")
COUNTS = {
    "cgroup-v2": "memory that the process touches first: its own, the file pages it reads or maps, its page tables",
    "cgroup-v1": "memory that the process touches first: its own, the file pages it reads or maps, its page tables",
    "rlimit-data": "private writable memory, touched or not; not the weights mapped from the file",
    "rlimit-as": "the whole address space, touched or not",
}
_LIMITS = {"rlimit-data": "RLIMIT_DATA", "rlimit-as": "RLIMIT_AS"}
_NAME = re.compile(r"packlight-(\d+)-\d+")
_serial = itertools.count()


def _launcher() -> str:
    """The text of runtime/launcher.py, which is no file where this package lies in a zipapp."""
    text = pkgutil.get_data("runtime", "launcher.py")
    if text is None:
        raise EngineError("runtime/launcher.py is missing: install packlight again")
    return text.decode()


@dataclass(frozen=True)
class Cap:
    """A cap that is ready to start commands. directory: its cgroup, None for a resource limit."""

    method: str
    n_bytes: int
    directory: Path | None = None

    @property
    def kills(self) -> bool:
        """Whether going over the cap is a SIGKILL; otherwise allocations fail."""
        return self.directory is not None

    def command(self, argv: Sequence[str]) -> list[str]:
        """`argv` (an absolute program path first) wrapped so that it starts inside the cap."""
        if self.directory is not None:
            how = ["join", str(self.directory / "cgroup.procs")]
        else:
            how = [_LIMITS[self.method], str(self.n_bytes)]
        return [sys.executable, "-I", "-S", "-c", _launcher(), *how, *argv]

    def limit_hits(self) -> int | None:
        """How often the kernel had to reclaim memory because of the cap, at least; None where it does not say."""
        if self.method == "cgroup-v1":
            return self._limit_hits_v1()
        return _number(self.directory, "memory.events", r"^max (\d+)")

    def _limit_hits_v1(self) -> int | None:
        def read(name: str) -> int | None:
            return _number(self.directory, f"memory.{name}", r"(\d+)")

        # Memory and memory with swap have equal limits, and either may be the one that is hit. Newer kernels leave
        # both counters at 0 even after a kill: there the high-water mark at the limit says that it was reached.
        counts = [count for count in (read("failcnt"), read("memsw.failcnt")) if count is not None]
        peak, limit = read("max_usage_in_bytes"), read("limit_in_bytes")
        reached = int(peak >= limit) if peak is not None and limit is not None else 0
        return max(sum(counts), reached) if counts else None

    def oom_kills(self) -> int | None:
        """Processes killed by the cap; None where the kernel does not say."""
        name = "memory.oom_control" if self.method == "cgroup-v1" else "memory.events"
        return _number(self.directory, name, r"^oom_kill (\d+)")


@contextlib.contextmanager
def capped(n_bytes: int, methods: Sequence[str] = METHODS) -> Iterator[Cap]:
    """A cap by the first of `methods` that works here. Raises UserError where none does."""
    reasons = []
    for method in methods:
        try:
            cap = _open(method, n_bytes)
        except OSError as error:
            reasons.append(f"{method}: {error.strerror or error}")
            continue
        try:
            reason = _probe(cap)
            if reason is None:
                yield cap
                return
            reasons.append(f"{method}: {reason}")
        finally:
            _close(cap)
    raise UserError(f"memory cannot be capped on this host ({'; '.join(reasons)})")


def drop_file_cache(path: Path) -> None:
    """Ask the kernel to forget its cached pages of a file.

    A cgroup is charged for the pages that it touches first: those of a file that was just written would be
    charged to nobody, and the cap would let a process use that much more.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    with path.open("rb") as file, contextlib.suppress(OSError):
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _open(method: str, n_bytes: int) -> Cap:
    """Prepare a cap; OSError says why it cannot be had."""
    if method in _LIMITS:
        import resource

        if not hasattr(resource, _LIMITS[method]) or sys.platform == "darwin":
            raise OSError("this system does not enforce it")
        return Cap(method, n_bytes)
    parent = _parent_v1() if method == "cgroup-v1" else _parent_v2()
    remove_stale(parent)
    directory = parent / f"packlight-{os.getpid()}-{next(_serial)}"
    directory.mkdir()
    cap = Cap(method, n_bytes, directory)
    try:
        _write_limits(cap, directory)
    except OSError:
        _close(cap)
        raise
    return cap


def _write_limits(cap: Cap, directory: Path) -> None:
    limit = str(cap.n_bytes)
    if cap.method == "cgroup-v2":
        (directory / "memory.max").write_text(limit, encoding="ascii")
        swap, value = directory / "memory.swap.max", "0"
    else:
        (directory / "memory.limit_in_bytes").write_text(limit, encoding="ascii")
        swap, value = directory / "memory.memsw.limit_in_bytes", limit  # memory and swap together
    if swap.exists():
        swap.write_text(value, encoding="ascii")


def _probe(cap: Cap) -> str | None:
    """Start the smallest command under a cap; None when a process can get in, or else why not."""
    if cap.directory is None:
        return None
    procs = cap.directory / "cgroup.procs"
    joined = subprocess.run(
        ["/bin/sh", "-c", 'echo $$ > "$0"', str(procs)], capture_output=True, text=True, check=False
    )
    if joined.returncode > 0:
        return (joined.stderr.strip().splitlines() or ["a process cannot join the group"])[-1]
    return None


def _close(cap: Cap) -> None:
    """Remove the cgroup. Killed processes leave it a moment after they are waited for."""
    if cap.directory is None:
        return
    for _ in range(100):
        try:
            cap.directory.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.02)
        else:
            return


def remove_stale(parent: Path) -> None:
    """Remove the groups in `parent` whose packlight is dead."""
    for directory in parent.glob("packlight-*"):
        match = _NAME.fullmatch(directory.name)
        if match and not _alive(int(match[1])):
            with contextlib.suppress(OSError):
                directory.rmdir()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _parent_v1() -> Path:
    return _own_group(r"^\d+:(?:\w+,)*memory(?:,\w+)*:(.*)$", "cgroup", "memory")


def _parent_v2() -> Path:
    """A group whose children have the memory controller: our own, or where that may have none, its parent."""
    own = _own_group(r"^0::(.*)$", "cgroup2", "")
    for group in (own, own.parent):
        controllers = group / "cgroup.subtree_control"
        if controllers.is_file() and "memory" in controllers.read_text(encoding="ascii").split():
            return group
    raise OSError("no memory controller for groups below ours")


def _own_group(pattern: str, kind: str, option: str) -> Path:
    """Directory of this process's cgroup in the mounted hierarchy of `kind` that has `option`."""
    try:
        match = re.search(pattern, Path("/proc/self/cgroup").read_text(encoding="utf-8"), re.MULTILINE)
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        match, mounts = None, []
    if match is None:
        raise OSError("not in use on this system")
    for line in mounts:
        place, _, filesystem = line.partition(" - ")
        root, where = place.split()[3:5]
        if filesystem.split()[0] == kind and (not option or option in filesystem.split()[-1].split(",")):
            # In a container the mount may show only the part of the hierarchy below `root`.
            inside = match[1].removeprefix(root) if root != "/" else match[1]
            group = Path(where) / inside.strip("/")
            return group if group.is_dir() else Path(where)
    raise OSError("not mounted")


def _number(directory: Path | None, name: str, pattern: str) -> int | None:
    if directory is None:
        return None
    try:
        match = re.search(pattern, (directory / name).read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) if match else None
