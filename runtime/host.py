"""The machine that measures: its facts, for the record, and how many threads to use on it."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

MAX_DEFAULT_THREADS = 4
"""Phones and boards have four fast cores at most; more threads than that do not speed up decoding."""


def usable_cores() -> int:
    """Cores that this process may run on, hyper-threads too; a container or taskset often gives it fewer than all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def physical_cores(cpuinfo: str | None = None) -> int:
    """At most the usable cores, and at most the machine's cores with hyper-threads counted once.

    `cpuinfo`: text of /proc/cpuinfo.
    """
    usable = usable_cores()
    text = _read("/proc/cpuinfo") if cpuinfo is None else cpuinfo
    pairs = set()
    for block in text.split("\n\n"):
        package = re.search(r"^physical id\s*:\s*(\d+)", block, re.MULTILINE)
        core = re.search(r"^core id\s*:\s*(\d+)", block, re.MULTILINE)
        if package and core:
            pairs.add((package[1], core[1]))
    return max(1, min(usable, len(pairs) or usable))


def default_threads() -> int:
    """Compute threads where nobody named a number: the physical cores, at most MAX_DEFAULT_THREADS."""
    return min(MAX_DEFAULT_THREADS, physical_cores())


def host_facts() -> dict[str, Any]:
    """Machine, cpu, cores, memory in bytes, kernel and Python of this host."""
    cpuinfo = _read("/proc/cpuinfo")
    # x86 has "model name"; arm64 boards name the board under "Model" or the device tree.
    named = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    total = re.search(r"^MemTotal:\s*(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return {
        "machine": platform.machine(),
        "cpu": named[1].strip() if named else (platform.processor() or "unknown"),
        "cores": physical_cores(cpuinfo),
        "memory_bytes": int(total[1]) * 1024 if total else _sysconf_memory(),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def cpu_flags(cpuinfo: str | None = None) -> frozenset[str]:
    """Instructions of this machine's first core as Linux names them; empty where nothing lists them.

    `cpuinfo`: text of /proc/cpuinfo.
    """
    text = _read("/proc/cpuinfo") if cpuinfo is None else cpuinfo
    listed = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    return frozenset(listed[1].split()) if listed else frozenset()


def _sysconf_memory() -> int:
    """Physical memory where there is no /proc (macOS); 0 when unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
