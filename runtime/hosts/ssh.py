"""Another machine, by the user's own ssh client, with its configuration, keys and known hosts.

One connection a job. On the other machine it needs a POSIX shell and a Python 3.11 or newer that has the artifact's
engine; of packlight nothing: its harness is sent first, and removed at the end.
"""

from __future__ import annotations

import contextlib
import os
import pkgutil
import queue
import re
import shlex
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, cast

from runtime.check import CapVerdict
from runtime.errors import HostError
from runtime.hosts.archive import zipapp
from runtime.hosts.remote import Remote, Shipped
from runtime.hosts.wire import GREETING, MAX_LINE, Wire
from runtime.measure import last_line
from runtime.measurement import Measurement
from runtime.sessions import MODULES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader

    from runtime.hosts.base import Job, Watcher
    from runtime.measurement import RunOptions, Trials

COMMAND = "PACKLIGHT_SSH"
"""The variable that names another client, or options for it: `ssh -F lab.config -J gateway`."""
PYTHONS = ("python3", "~/.venv/bin/python", "~/venv/bin/python", "python3.14", "python3.13", "python3.12", "python3.11")
"""Looked for in this order where the user names none: the first that has the engine, else the first of all."""
NO_PYTHON = "packlight: no Python"
NOISE_LINES = 200
"""Lines that a login shell may print before the harness answers."""
ANSWER_SECONDS, PROMPT_SECONDS = 90.0, 300.0
"""For the machine to answer; where ssh may ask for a passphrase, for the user too."""
SECONDS = 10
"""For the client to end by itself, once its streams are closed."""
# One line without a single quote, a backslash or an exclamation mark: it is quoted for whatever shell there is.
# A Python is started twice: to ask whether it is new enough and has the engine, and to read the harness.
_SCRIPT = (
    'm=$1; n=$2; shift 2; first=; for p in "$@"; do case $p in "~/"*) p=$HOME/${p#??};; esac; '
    'command -v "$p" >/dev/null 2>&1 || continue; "$p" -c "$0" "$m" </dev/null >/dev/null 2>&1; s=$?; '
    "if [ $s = 0 ]; then first=$p; break; fi; "
    'if [ $s = 4 ] && [ -z "$first" ]; then first=$p; fi; done; '
    'if [ -z "$first" ]; then echo; echo packlight: no Python; exit 3; fi; '
    'exec "$first" -P -c "import sys;exec(sys.stdin.buffer.read(int(sys.argv[1])))" "$n"'
)
_PROBE = (
    "import sys;sys.path[:]=[p for p in sys.path if p];sys.version_info<(3,11)and sys.exit(5);"
    "from importlib.util import find_spec;sys.exit(0 if find_spec(sys.argv[1]) else 4)"
)
_ADDRESS = re.compile(r"(?:(?P<user>[^@\s]+)@)?(?:\[(?P<v6>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^:@\s]+))(?::(?P<port>\d+))?")


@dataclass(frozen=True)
class Address:
    """Where ssh connects to. port: None leaves it to the user's configuration"""

    host: str
    user: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Of `[user@]host[:port]`, an IPv6 address in brackets. Raises HostError."""
        match = _ADDRESS.fullmatch(text)
        port = int(match["port"]) if match and match["port"] else None
        # A name that begins with a dash would be an option of ssh.
        if match is None or text.startswith("-") or (match["host"] or "").startswith("-") or not _is_port(port):
            raise HostError(f"'ssh:{text}' is no machine: write ssh:[user@]host[:port], for example ssh:pi@board.local")
        return cls(match["v6"] or match["host"], match["user"], port)

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{user}{host}{f':{self.port}' if self.port else ''}"


def _is_port(port: int | None) -> bool:
    return port is None or 0 < port < 65536


@dataclass(frozen=True)
class SshHost:
    """See `runtime.hosts.base.Host`, and `runtime.hosts.host_of` for the fields."""

    address: Address
    python: str | None = None
    directory: str | None = None
    keep: bool = True

    @property
    def name(self) -> str:
        """As it is recorded."""
        return f"ssh:{self.address}"

    @property
    def caps(self) -> bool:
        """By what that machine has."""
        return True

    def refuse(self, artifact_format: str, options: RunOptions, trials: Trials, watcher: Watcher) -> None:
        """Raises HostError."""
        del options, trials  # the harness does there what it does here
        with self._connected(artifact_format, watcher):
            pass

    def measure(self, job: Job, watcher: Watcher) -> Measurement:
        """There, in a fresh process."""
        return Measurement.from_json(self._recorded(self._run(job, None, watcher)))

    def check(self, job: Job, cap_bytes: int, watcher: Watcher) -> CapVerdict:
        """There, in a fresh process, under a cap by what that machine has."""
        found = self._run(job, cap_bytes, watcher)
        measured = found.pop("measurement")
        measurement = None if measured is None else Measurement.from_json(self._recorded(measured))
        return CapVerdict(**found, measurement=measurement)

    def _recorded(self, measured: dict[str, Any]) -> dict[str, Any]:
        return {**measured, "host": {**measured["host"], "on": self.name}}

    def _run(self, job: Job, cap_bytes: int | None, watcher: Watcher) -> dict[str, Any]:
        shipped = Shipped.of(job.artifact)  # before there is a connection that would wait for it
        with self._connected(job.artifact.format, watcher) as remote:
            try:
                remote.ship(job.artifact, shipped, keep=self.keep)
                return remote.measure(job, shipped, cap_bytes)
            except KeyboardInterrupt as error:
                kept = f"{self.name} keeps what it has of {job.artifact.entry}, the same command sends the rest"
                raise KeyboardInterrupt(*[kept] * self.keep) from error

    @contextlib.contextmanager
    def _connected(self, artifact_format: str, watcher: Watcher) -> Iterator[Remote]:
        """The harness runs there and has the engine for that format."""
        watcher.note(f"connecting to {self.name}")
        bootstrap = pkgutil.get_data("runtime.hosts", "bootstrap.py") or b""
        package = zipapp()
        module = MODULES.get(artifact_format, artifact_format)
        with tempfile.TemporaryFile() as stderr:  # a file: a pipe that nobody reads would block the client
            process = self._client(module, len(bootstrap), stderr)
            try:
                with watcher.pause():  # ssh may ask for a passphrase, or whether a host is known
                    self._start_there(process, bootstrap + len(package).to_bytes(8, "big") + package, stderr)
                remote = Remote(
                    self.name, Wire(cast("BufferedReader", process.stdout), cast("IO[bytes]", process.stdin)),
                    watcher, self.directory,
                    last_words=lambda: self._last_words(process, stderr),
                )  # fmt: skip
                remote.look(artifact_format)
                yield remote
            finally:  # also on Ctrl-C: the other end sees its input end, stops what runs there and removes itself
                _end(process)

    def _start_there(self, process: subprocess.Popen[bytes], harness: bytes, stderr: IO[bytes]) -> None:
        """Send the harness and wait for its greeting. Raises HostError where there is none.

        In a thread: a machine that prints and never reads would have both ends wait for each other.
        """

        stdin, stdout = process.stdin, process.stdout
        if stdin is None or stdout is None:
            raise HostError(f"{self.name}: ssh has no pipes")
        sender = threading.Thread(target=_send, args=(stdin, harness), daemon=True)
        sender.start()
        # In a thread too: a client that was started by another program may live on, with the pipe, when that is killed.
        answers: queue.Queue[str | HostError | None] = queue.Queue()
        threading.Thread(target=self._listen, args=(stdout, answers), daemon=True).start()
        seconds = ANSWER_SECONDS if _unattended() else PROMPT_SECONDS
        try:
            problem = answers.get(timeout=seconds)
        except queue.Empty:
            problem = HostError(f"{self.name}: did not answer within {seconds:g} s")
        if problem is None:
            sender.join()
            return
        words = "" if isinstance(problem, HostError) else self._last_words(process, stderr) or problem
        process.kill()  # so that the sender does not wait for what is never read
        sender.join(SECONDS)
        if isinstance(problem, HostError):
            raise problem
        port = f"-p {self.address.port} " if self.address.port is not None else ""
        target = f"{self.address.user}@{self.address.host}" if self.address.user else self.address.host
        tried = f"try: ssh {port}{shlex.quote(target)} true"
        raise HostError(f"{self.name}: cannot be used ({words or 'it said nothing'}); {tried}")

    def _listen(self, stdout: IO[bytes], answers: queue.Queue[str | HostError | None]) -> None:
        try:
            answers.put(self._greeted(stdout))
        except HostError as error:
            answers.put(error)
        except (OSError, ValueError):  # closed meanwhile
            answers.put("")

    def _client(self, module: str, n_bootstrap: int, stderr: IO[bytes]) -> subprocess.Popen[bytes]:
        try:
            client = shlex.split(os.environ.get(COMMAND, "ssh"))
        except ValueError as error:
            raise HostError(f"{COMMAND} is no command ({error}); mend its quotes") from error
        # A dead link is noticed within a minute. Nobody can answer a question where there is no terminal.
        settings = ("ConnectTimeout=30", "ServerAliveInterval=15", "ServerAliveCountMax=4", "RemoteCommand=none")
        options = ["-T", *(part for setting in settings for part in ("-o", setting))]
        if _unattended():
            options += ["-o", "BatchMode=yes"]
        if self.address.port is not None:
            options += ["-p", str(self.address.port)]
        if self.address.user is not None:
            options += ["-l", self.address.user]
        pythons = PYTHONS if self.python is None else (self.python,)
        there = shlex.join(["exec", "sh", "-c", _SCRIPT, _PROBE, module, str(n_bootstrap), *pythons])
        command = [*client, *options, "--", self.address.host, there]
        try:
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)
        except OSError as error:
            raise HostError(
                f"{client[0] if client else COMMAND}: {error.strerror}; --on ssh:HOST needs the ssh client"
            ) from error

    def _greeted(self, answers: IO[bytes]) -> str | None:
        """None once the harness has answered, else the last that was printed. Raises HostError for a known end."""
        said = ""
        for _ in range(NOISE_LINES):
            line = answers.readline(MAX_LINE).decode("utf-8", "replace")
            if not line:
                return said
            if line.strip() == GREETING:
                return None
            if line.strip() == NO_PYTHON:
                looked = ", ".join(PYTHONS) if self.python is None else self.python
                raise HostError(
                    f"{self.name}: no Python 3.11 or newer there ({looked}); install one, or name it by --remote-python"
                )
            said = line.strip()[:300] or said
        raise HostError(f"{self.name}: printed {NOISE_LINES} lines and is no machine that packlight's harness runs on")

    @staticmethod
    def _last_words(process: subprocess.Popen[bytes], stderr: IO[bytes]) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS)
        return last_line(stderr)


def _send(stdin: IO[bytes], harness: bytes) -> None:
    with contextlib.suppress(OSError):  # the client has ended: what it printed says why
        stdin.write(harness)
        stdin.flush()


def _unattended() -> bool:
    """Whether nobody can answer a question of ssh's."""
    return sys.stdin is None or not sys.stdin.isatty()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close the streams, so that the other end removes itself, and wait for the client, but not for ever."""
    # In a thread: closing waits for what is not sent yet, and for another thread that may be sending.
    closing = threading.Thread(target=_close, args=(process.stdin,), daemon=True)
    closing.start()
    try:
        closing.join(SECONDS)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS)
    finally:
        process.kill()
        process.wait()
        listening = threading.Thread(target=_close, args=(process.stdout,), daemon=True)
        listening.start()
        listening.join(1)  # not for ever: somebody may still be reading it


def _close(stream: IO[bytes] | None) -> None:
    with contextlib.suppress(OSError):
        if stream is not None:
            stream.close()
