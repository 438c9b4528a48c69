"""A client in place of ssh that runs the other end's command on this machine, in a home of its own."""

from __future__ import annotations

import stat
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

CLIENT = """#!{python}
# What packlight gives ssh: options, --, the host, the command. As ssh does it carries bytes: when it is killed, the
# other end sees the end of its input, and packlight that of the answers.
import os, subprocess, sys, threading

home, before = {home!r}, {before!r}
with open(home + "/called", "a") as called:
    called.write(" ".join(sys.argv[1:]) + "\\n")
with open(home + "/pid", "w") as pid:
    pid.write(str(os.getpid()))
command = " ".join(sys.argv[sys.argv.index("--") + 2 :])
environment = {{k: v for k, v in os.environ.items() if k not in ("XDG_CACHE_HOME", "PACKLIGHT_HOME")}}
environment.update(HOME=home, TMPDIR=home + "/tmp")
there = subprocess.Popen(
    ["sh", "-c", before + "\\nexec sh -c \\"$0\\"", command],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=home,
)

def forth():
    try:
        while data := os.read(0, 65536):
            there.stdin.write(data)
            there.stdin.flush()
        there.stdin.close()
    except OSError:
        pass

threading.Thread(target=forth, daemon=True).start()
try:
    while data := there.stdout.read1(65536):
        os.write(1, data)
except OSError:
    there.kill()
os._exit(there.wait())
"""


def fake_client(directory: Path, before: str = "true") -> tuple[Path, Path]:
    """The client and the home, where it notes its command and its process id.

    before: shell that runs first, such as what a login shell prints.
    """
    home = directory / "home"
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    client = directory / "client"
    client.write_text(CLIENT.format(python=sys.executable, home=str(home), before=before))
    client.chmod(client.stat().st_mode | stat.S_IXUSR)
    return client, home
