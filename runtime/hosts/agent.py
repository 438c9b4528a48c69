"""The other end: serves one connection on the machine that measures, and leaves nothing of itself behind.

It is started by `runtime.hosts.bootstrap`. What it is asked is in `runtime.hosts.wire`. When the user's end is gone (a
Ctrl-C there, a client that was killed), the reader sees the end of its stream, and whatever runs here is interrupted. A
link that is lost without a word ends nothing by itself: a file that does not come on is given up after a minute, and
so is a connection over which nothing is asked, or, while something runs, nothing is heard.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import queue
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from runtime.artifact import Artifact, FileRecord
from runtime.check import check
from runtime.errors import EngineError, HostError, PacklightError, said_of
from runtime.home import home
from runtime.host import host_facts
from runtime.hosts.store import Store
from runtime.hosts.wire import GREETING, PIECE, Closed, Wire, error_document
from runtime.measure import measure
from runtime.measurement import RunOptions, Trials
from runtime.sessions import DISTRIBUTIONS, MODULES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader
    from types import FrameType

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
IDLE_SECONDS = 60
"""For the next piece of a file, and for the next request."""


@dataclass
class Reader:
    """Reads requests in a thread of its own, so that the end of the stream is seen while something runs.

    Behind a request to receive come bytes, which are not this thread's: it waits until `resume` is called.
    """

    wire: Wire
    requests: queue.Queue[dict[str, Any] | None] = field(default_factory=queue.Queue)
    ended: bool = False
    heard: float = 0.0
    _may_read: threading.Event = field(default_factory=threading.Event)
    _busy: bool = False

    def start(self) -> None:
        """Begin to read."""
        threading.Thread(target=self._read, daemon=True).start()

    def resume(self) -> None:
        """The bytes behind a request are read, or none come."""
        self._may_read.set()

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """The end of the stream, and a long silence, interrupt what runs in this block."""
        self._busy, self.heard = True, time.monotonic()
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            if self.ended:
                _ignore_signals()
                raise KeyboardInterrupt
            yield
        finally:
            self._busy = False

    def _read(self) -> None:
        try:
            with contextlib.suppress(Closed):
                while True:
                    request = self.wire.receive()
                    if request.get("do") == "alive":
                        self.heard = time.monotonic()
                        continue
                    self.requests.put(request)
                    if request.get("do") == "receive":
                        self._may_read.wait()
                        self._may_read.clear()
        finally:
            self.ended = True
            self.requests.put(None)
            self._interrupt()

    def _watch(self) -> None:
        while self._busy and time.monotonic() - self.heard < IDLE_SECONDS:
            time.sleep(IDLE_SECONDS / 60)
        self._interrupt()

    def _interrupt(self) -> None:
        if self._busy:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@dataclass
class Agent:
    """One connection. held: locks and, where it shall not stay, removal of an artifact, undone at the end"""

    wire: Wire
    reader: Reader
    held: contextlib.ExitStack
    stores: dict[str, Store] = field(default_factory=dict)

    def serve(self) -> None:
        """Answer requests until the other end is gone."""
        while (request := self.reader.requests.get(timeout=IDLE_SECONDS)) is not None:
            try:
                self._answer(request)
            except (Closed, KeyboardInterrupt):
                raise
            except Exception as error:  # noqa: BLE001  whatever it is, the user has to be told
                self.wire.send(error=error_document(_told(error)))
                if request.get("do") == "receive":
                    return  # bytes of the file may be on their way, which are no requests

    def _answer(self, request: dict[str, Any]) -> None:
        root = Path(request["directory"]).expanduser() if request.get("directory") else home() / "artifacts"
        what = request["do"]
        if what == "look":
            self.wire.send(facts=facts(root))
        elif what == "expect":
            self._expect(request, root)
        elif what == "receive":
            self._receive(request, self.stores[request["artifact"]])
        elif what == "measure":
            with self.reader.interrupting():
                found = self._measured(request, self.stores[request["artifact"]])
            self.wire.send(result=found)
        else:
            raise HostError(f"'{what}' is nothing that this version of packlight is asked")

    def _expect(self, request: dict[str, Any], root: Path) -> None:
        store = Store(root, request["artifact"])
        self.held.enter_context(store.lock())
        if not request["keep"]:
            self.held.callback(store.forget)
        files = {name: FileRecord(**record) for name, record in request["files"].items()}
        store.refuse_no_room(files)
        self.stores[request["artifact"]] = store
        self.wire.send(expected=True)

    def _receive(self, request: dict[str, Any], store: Store) -> None:
        name, n_bytes, sha256 = request["name"], request["bytes"], request["sha256"]
        if store.has(name, n_bytes, sha256):
            self.reader.resume()
            self.wire.send(have=n_bytes)
            self.wire.send(received=True)
            return
        with store.receiving(name, n_bytes) as file:
            left = n_bytes - file.tell()
            self.wire.send(have=n_bytes - left)
            while left:
                with _alarm(IDLE_SECONDS):
                    piece = self.wire.some_bytes(min(left, PIECE))
                file.write(piece)
                left -= len(piece)
        whole = store.finish(name, sha256)
        self.reader.resume()
        self.wire.send(received=whole)

    def _measured(self, request: dict[str, Any], store: Store) -> dict[str, Any]:
        described = request["described"]
        files = {name: FileRecord(**record) for name, record in described.pop("files").items()}
        artifact = Artifact(root=store.directory, files=files, **described)
        how = (RunOptions(**request["options"]), Trials(**request["trials"]))

        def progress(phase: str) -> None:
            try:
                self.wire.send(phase=phase)
            except Closed:
                _ignore_signals()
                raise

        command = request["command"]
        if request["cap_bytes"] is None:
            return measure(artifact, *how, progress=progress, command=command).to_json()
        return check(artifact, *how, request["cap_bytes"], progress=progress, command=command).to_json()


def serve(reading: BufferedReader, writing: IO[bytes]) -> int:
    """Answer requests until the other end is gone; the exit status."""
    for ending in ENDINGS:
        signal.signal(ending, _interrupt)
    # A line of its own, also behind a login script that has left one unfinished.
    writing.write(f"\n{GREETING}\n".encode())
    writing.flush()
    wire = Wire(reading, writing)
    reader = Reader(wire)
    reader.start()
    with contextlib.ExitStack() as held, contextlib.suppress(Closed, KeyboardInterrupt, queue.Empty):
        Agent(wire, reader, held).serve()
    return 0


def facts(root: Path) -> dict[str, Any]:
    """What this machine has. engines: name of a module to its version. Raises OSError where nothing can be kept."""
    root.mkdir(parents=True, exist_ok=True)
    if not os.access(root, os.W_OK | os.X_OK):
        raise HostError(f"{root}: cannot be written to; name another directory with --remote-dir")
    engines = {module: _version(module) for module in sorted(set(MODULES.values())) if importlib.util.find_spec(module)}
    return {
        "host": host_facts(),
        "python": sys.executable,
        "version": platform.python_version(),
        "engines": engines,
    }


def _version(module: str) -> str:
    """Of an installed module; "" where it was not installed as a package, such as from a folder of sources."""
    try:
        return importlib.metadata.version(DISTRIBUTIONS.get(module, module))
    except importlib.metadata.PackageNotFoundError:
        return ""


def _told(error: Exception) -> PacklightError:
    """An error as the user is told it."""
    if isinstance(error, PacklightError):
        return error
    if isinstance(error, OSError):
        return HostError(said_of(error))
    if isinstance(error, RuntimeError):  # a "~name" that nobody has
        return HostError(str(error))
    return EngineError(f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Interrupt what takes longer."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    _ignore_signals()
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    """This process ends, and nothing is to interrupt what it cleans up."""
    for ending in ENDINGS:
        signal.signal(ending, signal.SIG_IGN)
