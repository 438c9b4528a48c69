"""The other end: serves one connection on the machine that measures, and leaves nothing of itself behind.

It is started by `runtime.hosts.bootstrap`. What it is asked is in `runtime.hosts.wire`. When the user's end is gone (a
Ctrl-C there, a cable), the reader sees the end of its stream, and whatever runs here is interrupted.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import queue
import shutil
import signal
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from runtime.artifact import Artifact, FileRecord
from runtime.check import check
from runtime.errors import HostError, PacklightError
from runtime.home import home
from runtime.host import host_facts
from runtime.hosts.store import Store
from runtime.hosts.wire import GREETING, PIECE, Closed, Wire, error_document
from runtime.measure import measure
from runtime.measurement import RunOptions, Trials
from runtime.sessions import DISTRIBUTIONS, MODULES

if TYPE_CHECKING:
    from io import BufferedReader
    from types import FrameType


@dataclass
class Reader:
    """Reads requests in a thread of its own, so that the end of the stream is seen while something runs.

    A request that bytes follow has "bytes" in it: the thread waits until `resume` is called, when they have been read.
    """

    wire: Wire
    requests: queue.Queue[dict[str, Any] | None] = field(default_factory=queue.Queue)
    _may_read: threading.Event = field(default_factory=threading.Event)
    busy: bool = False

    def start(self) -> None:
        """Begin to read."""
        threading.Thread(target=self._read, daemon=True).start()

    def resume(self) -> None:
        """The bytes behind a request are read."""
        self._may_read.set()

    def _read(self) -> None:
        while True:
            try:
                request = self.wire.receive()
            except Closed:
                self.requests.put(None)
                if self.busy:
                    os.kill(os.getpid(), signal.SIGINT)
                return
            self.requests.put(request)
            if "bytes" in request:
                self._may_read.wait()
                self._may_read.clear()


def serve(reading: BufferedReader, writing: IO[bytes]) -> int:
    """Answer requests until the other end is gone; the exit status."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _interrupt)
    writing.write(GREETING.encode() + b"\n")
    writing.flush()
    wire = Wire(reading, writing)
    reader = Reader(wire)
    reader.start()
    try:
        while (request := reader.requests.get()) is not None:
            try:
                _answer(request, wire, reader)
            except PacklightError as error:
                wire.send(error=error_document(error))
            except OSError as error:
                said = f"{error.filename or 'writing'}: {error.strerror or error}"
                wire.send(error=error_document(HostError(said)))
    except (Closed, KeyboardInterrupt):
        pass  # nobody listens any more
    return 0


def facts(root: Path) -> dict[str, Any]:
    """What this machine has. engines: name of a module to its version; free_bytes: where artifacts are kept"""
    near = root
    while not near.exists():
        near = near.parent
    engines = {module: _version(module) for module in sorted(set(MODULES.values())) if importlib.util.find_spec(module)}
    return {
        "host": host_facts(),
        "python": sys.executable,
        "version": platform.python_version(),
        "engines": engines,
        "free_bytes": shutil.disk_usage(near).free,
    }


def _version(module: str) -> str:
    """Of an installed module; "" where it was not installed as a package, such as from a folder of sources."""
    try:
        return importlib.metadata.version(DISTRIBUTIONS.get(module, module))
    except importlib.metadata.PackageNotFoundError:
        return ""


def _answer(request: dict[str, Any], wire: Wire, reader: Reader) -> None:
    root = Path(request["directory"]).expanduser() if request.get("directory") else home() / "artifacts"
    what = request["do"]
    if what == "look":
        wire.send(facts=facts(root))
        return
    store = Store(root, request["artifact"])
    if what == "receive":
        _receive(request, store, wire, reader)
    elif what == "measure":
        reader.busy = True
        try:
            found = _measured(request, store, wire)
        finally:
            reader.busy = False
            if not request["keep"]:
                store.forget()
        wire.send(result=found)
    else:
        raise HostError(f"'{what}' is nothing that this version of packlight is asked")


def _receive(request: dict[str, Any], store: Store, wire: Wire, reader: Reader) -> None:
    name, n_bytes, sha256 = request["name"], request["bytes"], request["sha256"]
    try:
        if store.has(name, n_bytes, sha256):
            wire.send(have=n_bytes)
        else:
            with store.receiving(name, n_bytes) as file:
                left = n_bytes - file.tell()
                wire.send(have=n_bytes - left)
                while left:
                    # What came is kept, also where less comes than was asked for: read1 does not wait for all of it.
                    piece = wire.some_bytes(min(left, PIECE))
                    file.write(piece)
                    left -= len(piece)
            wire.send(received=store.finish(name, sha256))
            return
    finally:
        reader.resume()
    wire.send(received=True)


def _measured(request: dict[str, Any], store: Store, wire: Wire) -> dict[str, Any]:
    described = request["described"]
    files = {name: FileRecord(**record) for name, record in described.pop("files").items()}
    artifact = Artifact(root=store.directory, files=files, **described)
    how = (RunOptions(**request["options"]), Trials(**request["trials"]))

    def progress(phase: str) -> None:
        wire.send(phase=phase)

    if request["cap_bytes"] is None:
        return measure(artifact, *how, progress=progress, command=request["command"]).to_json()
    return check(artifact, *how, request["cap_bytes"], progress=progress, command=request["command"]).to_json()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
