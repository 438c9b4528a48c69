"""A fake adb server, with fake phones: no phone is used. A real adb client talks to it as to its own server.

It speaks the server's side of adb's protocol, as far as `adb devices`, `adb shell` and `adb push` use it: services of
the host, shell with and without version 2, and sync. What a phone is asked to run, this machine's /bin/sh runs in a
directory that stands for /data/local/tmp. As adbd does it, a connection that ends sends SIGHUP to the shell, and to
nothing that the shell has started.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PROPERTIES = {
    "ro.product.manufacturer": "Fake",
    "ro.product.model": "Phone",
    "ro.build.version.release": "14",
    "ro.soc.model": "F1",
    "ro.product.cpu.abi": "x86_64",
    "ro.product.cpu.abilist": "x86_64,x86",
}
TEMPORARY = "/data/local/tmp"
STDOUT, STDERR, EXIT = 1, 2, 3
FEATURES = "shell_v2,cmd,stat_v2,ls_v2"


class Gone(Exception):
    """The client closed its connection, or the phone was unplugged."""


@dataclass
class FakePhone:
    """root: stands for the phone's disk; state: as adb names it; unplug_after: bytes of a file that still come"""

    serial: str
    root: Path
    state: str = "device"
    features: str = FEATURES
    unplug_after: int | None = None
    commands: list[str] = field(default_factory=list)
    pushed: list[str] = field(default_factory=list)
    open: list[socket.socket] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.temporary.mkdir(parents=True)
        (self.root / "bin").mkdir()
        cases = "".join(f"{name}) echo '{value}';;\n" for name, value in PROPERTIES.items())
        self.command("getprop", f"case $1 in\n{cases}*) echo;;\nesac")

    @property
    def temporary(self) -> Path:
        """What stands for /data/local/tmp."""
        return self.root / "tmp"

    @property
    def mark(self) -> str:
        """In the environment of everything that runs on the phone."""
        return f"FAKE_PHONE={self.root}"

    def command(self, name: str, script: str) -> None:
        """A command of the phone's own, before this machine's."""
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def lacks(self, name: str) -> None:
        """The phone has no such command; for support.adb's client alone."""
        others = self.root / "others"
        others.mkdir()
        for place in reversed(os.environ["PATH"].split(os.pathsep)):
            for one in Path(place).glob("*"):
                (others / one.name).unlink(missing_ok=True)
                (others / one.name).symlink_to(one)
        (others / name).unlink()

    def path(self, name: str) -> str:
        """A path of the phone as this machine's; also in the middle of a command."""
        return name.replace(TEMPORARY, str(self.temporary))

    def unplug(self) -> None:
        """The cable is pulled: every connection ends."""
        self.state = ""
        for connection in self.open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@dataclass
class FakeServer:
    """phones: as `adb devices` lists them; port: that it listens on"""

    phones: list[FakePhone]
    port: int = 0

    def attached(self) -> list[FakePhone]:
        """Those that are not unplugged."""
        return [phone for phone in self.phones if phone.state]

    def serve(self, listening: socket.socket) -> None:
        """Answer connections until the socket is closed."""
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            with contextlib.suppress(OSError, Gone):
                phone = self._host(connection, _service(connection))
                if phone is not None:
                    _on_phone(connection, phone, _service(connection))
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # closing alone does not end what another thread reads

    def _host(self, connection: socket.socket, service: str) -> FakePhone | None:
        """A service of the server itself, which ends the connection, but for the choice of a phone: it is returned."""
        name = re.sub(r"^host(?:-serial:[^:]+)?:", "", service)
        if name == "version":
            _okay(connection, f"{_client_version():04x}")
        elif name in ("devices", "devices-l"):
            _okay(connection, "".join(f"{one.serial}\t{one.state}\n" for one in self.attached()))
        elif name == "features":
            found = self._find(service.split(":")[1])
            _okay(connection, found.features if found else FEATURES)
        elif match := re.fullmatch(r"(transport|tport):(?:(any)|(?:serial:)?(.+))", name):
            phone = self._find(None if match[2] else match[3])
            if phone is None or phone.state != "device":
                state = f"device {phone.state}" if phone else f"device '{match[3]}' not found"
                _fail(connection, state)
                return None
            connection.sendall(b"OKAY" + (struct.pack("<Q", 1) if match[1] == "tport" else b""))
            return phone
        else:
            _fail(connection, f"unknown host service {name}")
        return None

    def _find(self, serial: str | None) -> FakePhone | None:
        found = [one for one in self.attached() if serial in (None, one.serial)]
        return found[0] if found else None


def _client_version() -> int:
    """A client ends a server of another version and starts its own."""
    said = subprocess.run(["adb", "version"], capture_output=True, text=True, check=True).stdout
    return int(said.split("version 1.0.")[1].split()[0])


def _on_phone(connection: socket.socket, phone: FakePhone, service: str) -> None:
    phone.open.append(connection)
    kind, _, rest = service.partition(":")
    if kind == "sync":
        connection.sendall(b"OKAY")
        _sync(connection, phone)
    elif kind.split(",")[0] in ("shell", "exec"):
        connection.sendall(b"OKAY")
        _shell(connection, phone, rest, framed="v2" in kind.split(","))
    else:
        _fail(connection, f"unknown service {service}")


def _shell(connection: socket.socket, phone: FakePhone, command: str, *, framed: bool) -> None:
    """Run a command; version 2 frames both streams and the exit status, version 1 mixes the streams."""
    phone.commands.append(command)
    process = subprocess.Popen(
        ["/bin/sh", "-c", phone.path(command)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if framed else subprocess.STDOUT, cwd=phone.root, start_new_session=True,
        env={"PATH": f"{phone.root}/bin:{os.environ['PATH']}", "FAKE_PHONE": str(phone.root)},
    )  # fmt: skip
    threading.Thread(target=_hang_up, args=(connection, process), daemon=True).start()
    writing = threading.Lock()
    streams = [(process.stdout, STDOUT), (process.stderr, STDERR)]
    threads = [
        threading.Thread(target=_forward, args=(stream, number if framed else None, connection, writing), daemon=True)
        for stream, number in streams
        if stream is not None
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    status = process.wait()
    if framed:
        status = status if status >= 0 else 128 - status
        connection.sendall(struct.pack("<BIB", EXIT, 1, status))


def _forward(stream: IO[bytes], number: int | None, connection: socket.socket, writing: threading.Lock) -> None:
    """What the command prints; number: of the stream, where it is framed."""
    with stream, contextlib.suppress(OSError):
        while data := os.read(stream.fileno(), 65536):
            with writing:
                connection.sendall(data if number is None else struct.pack("<BI", number, len(data)) + data)


def _hang_up(connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        while connection.recv(4096):  # what the client's input is
            pass
    if process.poll() is None:
        process.send_signal(signal.SIGHUP)


def _sync(connection: socket.socket, phone: FakePhone) -> None:
    while True:
        request, length = struct.unpack("<4sI", _exactly(connection, 8))
        if request == b"QUIT":
            return
        name = _exactly(connection, length).decode()
        if request in (b"STAT", b"LSTA"):
            facts = _facts(phone.path(name))
            seen = (facts.st_mode, facts.st_size, 0) if facts else (0, 0, 0)
            connection.sendall(b"STAT" + struct.pack("<III", *seen))
        elif request in (b"STA2", b"LST2"):
            facts = _facts(phone.path(name))
            shown = (0, 0, 0, facts.st_mode, 1, 0, 0, facts.st_size, 0, 0, 0) if facts else (2, *[0] * 10)
            connection.sendall(request + struct.pack("<IQQIIIIQqqq", *shown))
        elif request == b"SEND":
            path, _, mode = name.rpartition(",")
            _receive(connection, phone, path, int(mode))
        elif request == b"SND2":
            _, mode, flags = struct.unpack("<4sII", _exactly(connection, 12))
            assert flags == 0, "compression was not offered"
            _receive(connection, phone, name, mode)
        elif request == b"RECV":
            _give(connection, phone.path(name))
        else:
            _sync_fail(connection, f"unknown request {request!r}")
            return


def _receive(connection: socket.socket, phone: FakePhone, name: str, mode: int) -> None:
    phone.pushed.append(name)
    try:
        os.makedirs(os.path.dirname(phone.path(name)), exist_ok=True)  # noqa: PTH103, PTH120
        file = open(phone.path(name), "wb")  # noqa: PTH123, SIM115
    except OSError as error:
        _sync_fail(connection, f"couldn't create file: {error.strerror}")
        raise Gone from error
    came = 0
    with file:
        while True:
            request, length = struct.unpack("<4sI", _exactly(connection, 8))
            if request == b"DONE":
                break
            came += len(data := _exactly(connection, length))
            file.write(data)
            if phone.unplug_after is not None and came > phone.unplug_after:
                phone.unplug()
                raise Gone
    os.chmod(phone.path(name), mode & 0o777)  # noqa: PTH101
    connection.sendall(b"OKAY" + struct.pack("<I", 0))


def _give(connection: socket.socket, path: str) -> None:
    with open(path, "rb") as file:  # noqa: PTH123
        while data := file.read(65536):
            connection.sendall(b"DATA" + struct.pack("<I", len(data)) + data)
    connection.sendall(b"DONE" + struct.pack("<I", 0))


def _facts(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116
    except OSError:
        return None


def _sync_fail(connection: socket.socket, reason: str) -> None:
    connection.sendall(b"FAIL" + struct.pack("<I", len(reason)) + reason.encode())


def _service(connection: socket.socket) -> str:
    return _exactly(connection, int(_exactly(connection, 4), 16)).decode()


def _exactly(connection: socket.socket, n_bytes: int) -> bytes:
    found = b""
    while len(found) < n_bytes:
        data = connection.recv(n_bytes - len(found))
        if not data:
            raise Gone
        found += data
    return found


def _okay(connection: socket.socket, text: str) -> None:
    connection.sendall(f"OKAY{len(text.encode()):04x}{text}".encode())


def _fail(connection: socket.socket, text: str) -> None:
    connection.sendall(f"FAIL{len(text.encode()):04x}{text}".encode())


@contextlib.contextmanager
def fake_server(*phones: FakePhone) -> Iterator[FakeServer]:
    """The server, as adb's client finds it, until the block ends. Skips where there is no adb; on CI it fails."""
    if shutil.which("adb") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs adb (Debian: apt install adb)")
    server = FakeServer(list(phones))
    with socket.create_server(("127.0.0.1", 0)) as listening, pytest.MonkeyPatch.context() as patch:
        server.port = listening.getsockname()[1]
        # To a server of a named machine the client never starts one of its own.
        patch.setenv("ADB_SERVER_SOCKET", f"tcp:127.0.0.1:{server.port}")
        patch.delenv("ANDROID_SERIAL", raising=False)
        patch.delenv("PACKLIGHT_ADB", raising=False)
        threading.Thread(target=server.serve, args=(listening,), daemon=True).start()
        yield server
