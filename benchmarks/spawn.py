"""Run a command and say what it cost: wall and processor seconds, peak resident bytes, bytes written.

The command is started by a launcher of its own, a bare interpreter: the kernel's high-water mark of a child
begins at what its parent held when it forked, and a benchmark that has imported numpy holds too much.
Run as a script, this file is that launcher; it needs the standard library only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path

TIMEOUT_S = 3600


@dataclass(frozen=True)
class Cost:
    """What one process cost, its own children that it waited for included.

    cpu_s: seconds of processors, user and system: what other jobs on the machine change least
    peak_rss_bytes: the largest resident set that one process of it reached
    written_bytes: what it handed to write(), or dirtied through a mapping, whichever is more
    """

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    written_bytes: int

    def then(self, after: Cost) -> Cost:
        """The cost of this process followed by `after`: times and bytes add up, of the peaks the higher counts."""
        return Cost(
            self.wall_s + after.wall_s,
            self.cpu_s + after.cpu_s,
            max(self.peak_rss_bytes, after.peak_rss_bytes),
            self.written_bytes + after.written_bytes,
        )


def run(command: list[str], threads: int, env: dict[str, str] | None = None) -> Cost:
    """Run `command` on `threads` processors of this machine. Raises RuntimeError with its last lines if it fails."""
    from runtime.openmp import child_environment  # the launcher goes without

    processors = sorted(os.sched_getaffinity(0))[:threads]
    environment = child_environment(threads, env or os.environ)
    launcher = [sys.executable, "-I", "-S", __file__, ",".join(map(str, processors)), *command]
    os.sync()  # The pages that the run before left dirty are not this one's to write.
    done = subprocess.run(launcher, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    lines = done.stdout.strip().splitlines()
    report = json.loads(lines[-1]) if lines else {"status": done.returncode}
    if report["status"]:
        tail = "\n".join((lines[:-1] + done.stderr.strip().splitlines())[-15:])
        raise RuntimeError(f"exit status {report['status']}: {' '.join(command)}\n{tail}")
    return Cost(**{field.name: report[field.name] for field in fields(Cost)})


def _launch(processors: str, command: list[str]) -> int:
    """Start `command`, wait for it, print one JSON line last. Returns its exit status."""
    os.sched_setaffinity(0, [int(number) for number in processors.split(",")])
    start = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, os.environ)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    wall_s = time.perf_counter() - start
    counters = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines())
    _, status, usage = os.wait4(pid, 0)
    result = {
        "status": os.waitstatus_to_exitcode(status),
        "wall_s": wall_s,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_rss_bytes": usage.ru_maxrss * 1024,
        "written_bytes": max(int(counters["wchar"]), int(counters["write_bytes"])),
    }
    print("\n" + json.dumps(result), flush=True)
    return int(bool(result["status"]))


if __name__ == "__main__":
    sys.exit(_launch(sys.argv[1], sys.argv[2:]))
