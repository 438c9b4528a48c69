"""A real sshd on loopback, with keys of its own: another machine, as far as ssh knows."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVER = """
Port {port}
ListenAddress 127.0.0.1
HostKey {directory}/host
AuthorizedKeysFile {directory}/user.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
SetEnv TMPDIR={directory}/tmp
"""
CLIENT = """
Host board
    HostName 127.0.0.1
    Port {port}
    User {user}
    IdentityFile {directory}/user
Host *
    IdentitiesOnly yes
    IdentityAgent none
    StrictHostKeyChecking yes
    UserKnownHostsFile {directory}/known
    GlobalKnownHostsFile /dev/null
"""


@dataclass(frozen=True)
class Board:
    """The machine. client: the ssh command that knows it as "board"; temporary: its TMPDIR"""

    client: str
    port: int
    temporary: Path


@contextlib.contextmanager
def board(directory: Path) -> Iterator[Board]:
    """Until the block ends. Skips the test where there is no sshd, on CI it fails."""
    server = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if server is None or shutil.which("ssh") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs openssh-server and openssh-client")
    for name in ("host", "user"):
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
        subprocess.run(key, check=True)
    (directory / "tmp").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fill = {"port": port, "directory": directory, "user": getpass.getuser()}
    (directory / "sshd_config").write_text(SERVER.format(**fill))
    (directory / "ssh_config").write_text(CLIENT.format(**fill))
    host_key = " ".join((directory / "host.pub").read_text().split()[:2])
    (directory / "known").write_text(f"[127.0.0.1]:{port} {host_key}\n")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where the daemon drops its rights; a boot would make it
    with (directory / "log").open("wb") as log:
        command = [server, "-D", "-e", "-f", str(directory / "sshd_config")]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            _wait(process, port, directory / "log")
            yield Board(f"ssh -F {directory}/ssh_config", port, directory / "tmp")
        finally:
            process.terminate()
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(200):
        if process.poll() is not None:
            pytest.fail(f"sshd ended: {log.read_text()}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    pytest.fail("sshd does not listen")
