"""A client in place of adb, which runs what a fake phone is asked to run on this machine; no server, no phone.

For quick tests of packlight's side. A real client and a fake server: support.fake_adb_server.
"""

from __future__ import annotations

import stat
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

CLIENT = """#!{python} -IS
import os, shutil, subprocess, sys, time

directory = {directory!r}
arguments = sys.argv[1:]
with open(directory + "/called", "a") as called:
    called.write(" ".join(arguments) + "\\n")
listed = open(directory + "/devices").read()
if arguments == ["devices"]:
    print("List of devices attached\\n" + listed)
    sys.exit()
serial = arguments[1]
if serial + "\\tdevice" not in listed:
    sys.exit(f"error: device '{{serial}}' not found")
root = directory + "/" + serial
there = lambda text: text.replace("/data/local/tmp", root + "/tmp")
if arguments[2] == "push":
    if os.path.exists(directory + "/hangs"):
        time.sleep(600)
    try:
        copy = shutil.copytree if os.path.isdir(arguments[3]) else shutil.copy
        copy(arguments[3], there(arguments[4]))
    except OSError as error:
        print("adb: error: failed to copy: remote " + error.strerror + "\\n0 files pushed")
        sys.exit(1)
    sys.exit()
if os.path.exists(directory + "/cut") and open(directory + "/cut").read() in arguments[3]:
    open(directory + "/devices", "w").close()
    sys.exit()
others = root + "/others"
path = root + "/bin:" + (others if os.path.exists(others) else os.environ["PATH"])
sys.exit(subprocess.run(["sh", "-c", there(arguments[3])], cwd=root, env=dict(PATH=path, FAKE_PHONE=root)).returncode)
"""


def fake_client(directory: Path, **states: str) -> Path:
    """The client; `directory / SERIAL` is the root of a phone, `directory / "called"` what was asked.

    states: of the phones by serial, as `adb devices` lists them; list others by `list_phones`
    """
    client = directory / "adb"
    client.write_text(CLIENT.format(python=sys.executable, directory=str(directory)))
    client.chmod(client.stat().st_mode | stat.S_IXUSR)
    list_phones(directory, **states)
    return client


def list_phones(directory: Path, **states: str) -> None:
    """What `adb devices` lists from now on."""
    (directory / "devices").write_text("".join(f"{serial}\t{state}\n" for serial, state in states.items()))


def hang_pushes(directory: Path) -> None:
    """Nothing that is sent comes to its end from now on."""
    (directory / "hangs").touch()


def unplug_at(directory: Path, word: str) -> None:
    """The cable is pulled while a script with that word runs; as on an old phone, the client's exit status is 0."""
    (directory / "cut").write_text(word)
