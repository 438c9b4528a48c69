"""Resident memory of this process, as the kernel accounts for it.

The peak is VmHWM of /proc/self/status, not `ru_maxrss` of getrusage: the kernel keeps ru_maxrss across exec, so
that of a child starts at the size that its parent had when it forked, and a small child of a big Python process
would be charged with its parent. VmHWM belongs to the address space, which exec replaces. Nothing is sampled, so
no short peak is missed. Where there is no /proc (macOS) ru_maxrss is all there is, and `source` says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc/self")
MEMINFO = Path("/proc/meminfo")
MADV_DONTNEED = 4
M_MMAP_THRESHOLD, MAPPED_FROM = -3, 1 << 16
_STATUS = re.compile(r"^(VmHWM|VmRSS):\s*(\d+) kB$", re.MULTILINE)
_KINDS = re.compile(r"^Rss(Anon|File|Shmem):\s*(\d+) kB$", re.MULTILINE)
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ [0-9a-f]+ \S+ (\d+)\s*(.*)$")


@dataclass(frozen=True)
class Resident:
    """Resident bytes: the high-water mark and what is resident now; source is "VmHWM" or "ru_maxrss"."""

    peak_bytes: int
    now_bytes: int
    source: str


def available_bytes() -> int | None:
    """Memory that a new process can have, by the kernel's own estimate; None where it makes none."""
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", MEMINFO.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def parse_status(text: str) -> Resident | None:
    """The figures in the text of /proc/PID/status; None where they are missing."""
    found = {name: int(kib) * 1024 for name, kib in _STATUS.findall(text)}
    if len(found) != 2:
        return None
    return Resident(found["VmHWM"], found["VmRSS"], "VmHWM")


def resident() -> Resident:
    """Resident memory of this process. Without /proc `now_bytes` is the peak too."""
    try:
        status = parse_status((PROC / "status").read_text(encoding="ascii", errors="replace"))
    except OSError:
        status = None
    if status is not None:
        return status
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, everyone else KiB
    return Resident(peak, peak, "ru_maxrss")


def anonymous_bytes() -> int | None:
    """Resident bytes of this process that no file backs (RssAnon); None where /proc does not tell."""
    try:
        text = (PROC / "status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    match = re.search(r"^RssAnon:\s*(\d+) kB$", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def resident_kinds() -> dict[str, int] | None:
    """Resident bytes of this process by what backs them, as ResidentKinds' fields; None where /proc does not tell."""
    try:
        status = (PROC / "status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = {name: int(kib) * 1024 for name, kib in _KINDS.findall(status)}
    if len(found) != 3:
        return None
    kinds = {"anonymous_bytes": found["Anon"], "file_bytes": found["File"], "shared_bytes": found["Shmem"]}
    share = proportional_bytes()
    return kinds if share is None else kinds | {"proportional_bytes": share}


def proportional_bytes(directory: Path | None = None) -> int | None:
    """PSS of this process, or of the one whose directory in /proc it is; None where the kernel does not tell.

    The kernel walks all pages of the process for it: some milliseconds.
    """
    try:
        rollup = ((directory or PROC) / "smaps_rollup").read_text(encoding="ascii", errors="replace")
    except OSError:  # before Linux 4.14, where a container hides it, and of a process that has ended
        return None
    share = re.search(r"^Pss:\s*(\d+) kB$", rollup, re.MULTILINE)
    return int(share[1]) * 1024 if share else None


def cached_bytes(path: Path) -> int | None:
    """Bytes of a file that are in the page cache, which nothing reads for that; None where the system does not tell.

    Of a file that one could not write to, the kernel says to everybody but its owner that all of it is there.
    """
    try:
        if not os.access(path, os.W_OK) and path.stat().st_uid != os.geteuid():
            return None
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as view:
            pages = (len(view) + mmap.PAGESIZE - 1) // mmap.PAGESIZE
            found = (ctypes.c_ubyte * pages)()
            start = ctypes.c_ubyte.from_buffer(view)
            status = ctypes.CDLL(None).mincore(ctypes.byref(start), ctypes.c_size_t(len(view)), found)
            del start  # the mapping cannot be closed before
    except ValueError:  # an empty file
        return 0
    except (OSError, AttributeError, TypeError):
        return None
    return None if status else sum(page & 1 for page in found) * mmap.PAGESIZE


def parse_smaps(text: str, path: str) -> int:
    """Resident bytes over all mappings of the file `path`, from the text of /proc/PID/smaps."""
    total, ours = 0, False
    for line in text.splitlines():
        mapping = _MAPPING.match(line)
        if mapping:
            ours = mapping[2] == path
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def mapped_bytes(path: Path) -> int | None:
    """Resident bytes of this process's mappings of `path`; None where /proc does not tell."""
    try:
        text = (PROC / "smaps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    return parse_smaps(text, str(path.resolve()))


def mappings_of(text: str, directory: str) -> list[tuple[int, int]]:
    """Address and length of the read-only mappings of files below `directory`, from the text of /proc/PID/maps."""
    found = []
    for line in text.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[1].startswith("r-") and fields[5].startswith(f"{directory}/"):
            start, _, stop = fields[0].partition("-")
            found.append((int(start, 16), int(stop, 16) - int(start, 16)))
    return found


def release_mapped(directory: Path) -> None:
    """Give back the resident pages of files mapped from below `directory`; what is read again comes back by itself.

    An engine that has packed its weights has read all of the file and may need little of it again. Linux only;
    elsewhere nothing is done.
    """
    try:
        text = (PROC / "maps").read_text(encoding="utf-8", errors="surrogateescape")
        libc = ctypes.CDLL(None)
    except OSError:
        return
    for start, length in mappings_of(text, str(directory.resolve())):
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), MADV_DONTNEED)


def major_page_faults() -> int:
    """Page faults of this process that had to read from a disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def return_freed_memory() -> None:
    """Have glibc map every larger block on its own, so that what is freed goes back to the system at once.

    Elsewhere (macOS, musl) there is no such call, and nothing is done.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED_FROM)
