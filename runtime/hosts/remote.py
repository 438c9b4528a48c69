"""The user's end of a connection: sends an artifact to another machine, has it measured there, brings the result back.

How bytes get there is another module's; this knows only what is said (`runtime.hosts.wire`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.artifact import record, shards
from runtime.errors import EngineError, HostError
from runtime.hosts.wire import PIECE, Closed, Wire, error_of
from runtime.sessions import DISTRIBUTIONS, MODULES
from runtime.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from runtime.artifact import Artifact, FileRecord
    from runtime.hosts.base import Job, Watcher


ALIVE_SECONDS = 10.0


def digest_of(files: dict[str, FileRecord]) -> str:
    """Hex SHA-256 of an artifact's names and hashes: what it is called on another machine."""
    listed = sorted((name, record.bytes, record.sha256) for name, record in files.items())
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


@dataclass(frozen=True)
class Shipped:
    """An artifact as it is called on another machine. files: every file with its hash"""

    digest: str
    files: dict[str, FileRecord]

    @classmethod
    def of(cls, artifact: Artifact) -> Shipped:
        """Of an artifact here. A bare file has no manifest: it is read, and so are the other shards of a model."""
        files = artifact.files or {name: record(artifact.root / name) for name in shards(artifact)}
        return cls(digest_of(files), files)


@dataclass
class Remote:
    """An open connection.

    name: of the machine, for messages; directory: for what it keeps, None for its own choice
    last_words: what was said when the connection broke, for example by ssh
    """

    name: str
    wire: Wire
    watcher: Watcher
    directory: str | None
    last_words: Callable[[], str]

    def look(self, artifact_format: str) -> None:
        """Say what the machine has. Raises HostError where it has no engine for that format."""
        found: dict[str, Any] = self._ask(do="look")["facts"]
        module = MODULES.get(artifact_format, artifact_format)
        if module not in found["engines"]:
            package = DISTRIBUTIONS.get(module, module)
            raise HostError(
                f"{self.name}: {found['python']} ({found['version']}) has no {module}; install it there "
                f"({found['python']} -m pip install {package}), or name the Python that has it by --remote-python"
            )
        host = found["host"]
        said = f"{host['cpu']}, {host['machine']}, Python {found['version']}, {module} {found['engines'][module]}"
        self.watcher.note(f"{self.name}: {said.rstrip()}")

    def ship(self, artifact: Artifact, shipped: Shipped, *, keep: bool) -> None:
        """Send the files that are not there yet. Raises HostError where there is no room for them.

        keep: leave the artifact there when the connection ends.
        """
        files = {name: dataclasses.asdict(one) for name, one in shipped.files.items()}
        self._ask(do="expect", artifact=shipped.digest, files=files, keep=keep)
        for name, one in shipped.files.items():
            self._send_file(shipped.digest, name, artifact.root / name, one)

    def measure(self, job: Job, shipped: Shipped, cap_bytes: int | None) -> dict[str, Any]:
        """The JSON of a Measurement, with a cap of a CapVerdict; raises what `runtime.measure.measure` raises."""
        described = dataclasses.asdict(dataclasses.replace(job.artifact, files=shipped.files))
        del described["root"]
        with self._alive():
            answer = self._ask(
                do="measure", artifact=shipped.digest, described=described, options=dataclasses.asdict(job.options),
                trials=dataclasses.asdict(job.trials), cap_bytes=cap_bytes, command=job.command,
            )  # fmt: skip
        found: dict[str, Any] = answer["result"]
        return found

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        """Say now and then that this end is there, so that the other one need not run on for nobody."""
        over, said = threading.Event(), threading.Lock()

        def say() -> None:
            while not over.wait(ALIVE_SECONDS):
                with said, contextlib.suppress(Closed):
                    if not over.is_set():
                        self.wire.send(do="alive")

        threading.Thread(target=say, daemon=True).start()
        try:
            yield
        finally:
            over.set()
            with said:  # what is being said is said before anything else is
                pass

    def _send_file(self, digest: str, name: str, path: Path, one: FileRecord) -> None:
        request = {"do": "receive", "artifact": digest, "name": name, "bytes": one.bytes, "sha256": one.sha256}
        for _ in range(2):  # what was there of it already may have been damaged: once more from its beginning
            have = self._ask(**request)["have"]
            if have and have < one.bytes:
                self.watcher.note(f"{name}: goes on behind {format_bytes(have)}")
            self._send_bytes(path, have, one.bytes)
            if self._answer()["received"]:
                return
        raise HostError(f"{path}: came to {self.name} with another SHA-256 twice; is the file being written?")

    def _send_bytes(self, path: Path, start: int, end: int) -> None:
        done = start
        with path.open("rb") as file:
            file.seek(start)
            while done < end:
                piece = file.read(min(PIECE, end - done))
                if not piece:
                    raise HostError(f"{path}: became shorter while it was sent")
                self._write(piece)
                done += len(piece)
                self.watcher.advance(f"sending {path.name}", done, end)
        self._write(b"")

    def _write(self, piece: bytes) -> None:
        """A piece of a file; the last one is empty. Raises what the other end says where it takes no more."""
        try:
            self.wire.writing.write(piece)
            if not piece:
                self.wire.writing.flush()
        except OSError as error:
            with contextlib.suppress(Closed):
                if "error" in (answer := self.wire.receive()):
                    raise error_of(answer["error"], self.name) from error
            raise self._lost("while a file was sent") from error

    def _ask(self, **request: Any) -> dict[str, Any]:
        """The answer that ends a request; phases on the way are passed on."""
        try:
            self.wire.send(directory=self.directory, **request)
        except Closed as error:
            raise self._lost("") from error
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        phase = ""
        while True:
            try:
                answer = self.wire.receive()
            except Closed as error:
                raise self._lost(f"while {phase}" if phase else "") from error
            if "error" in answer:
                raise error_of(answer["error"], self.name)
            if "phase" not in answer:
                return answer
            phase = answer["phase"]
            self.watcher.note(phase)

    def _lost(self, when: str) -> EngineError:
        words = self.last_words()
        what = " ".join(part for part in ("the connection broke", when) if part)
        return EngineError(f"{self.name}: {what}{f': {words}' if words else ''}")
