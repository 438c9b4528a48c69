"""What the two ends of a connection say to each other: JSON documents, one a line, and the bytes of files between them.

The user's end asks, the other end answers; it asks nothing more before the last answer is there. Requests:

    {"do": "look"}                                      -> {"facts": {…}}
    {"do": "expect", "artifact": DIGEST, "files", "keep"}
                                                        -> {"expected": true}: there is room, and nobody else uses it
    {"do": "receive", "artifact": DIGEST, "name", "bytes", "sha256"}
                                                        -> {"have": N}, then the file's bytes from N on are sent,
                                                           -> {"received": true}, false where the hash is another's
    {"do": "measure", "artifact": DIGEST, …}            -> {"phase": …} as each begins, then {"result": {…}}
    {"do": "alive"}, now and then meanwhile             -> nothing

Every request may be answered by {"error": {"kind", "message", "phase"}} in place of that, also in the middle of a
file's bytes: the connection is then over.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from runtime.errors import ArtifactError, EngineError, HostError, OutOfMemory, PacklightError, TimedOut, UserError

if TYPE_CHECKING:
    from io import BufferedReader

GREETING = "packlight-harness 1"
"""The first line of the other end. What a login shell prints before it is skipped."""
MAX_LINE = 16 << 20
PIECE = 1 << 20
"""Bytes of a file that are read and sent at a time."""
_KINDS: dict[str, type[PacklightError]] = {
    kind.__name__: kind for kind in (ArtifactError, EngineError, HostError, UserError)
}
_WITH_PHASE = {kind.__name__: kind for kind in (OutOfMemory, TimedOut)}


class Closed(Exception):
    """The other end is gone."""


@dataclass(frozen=True)
class Wire:
    """One end of a connection: two buffered streams."""

    reading: BufferedReader
    writing: IO[bytes]

    def send(self, **document: Any) -> None:
        """One document. Raises Closed."""
        try:
            self.writing.write(json.dumps(document).encode() + b"\n")
            self.writing.flush()
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            raise Closed(str(error)) from error

    def receive(self) -> dict[str, Any]:
        """The next document. Raises Closed, also for what is no document: a line that was cut off."""
        try:
            line = self.reading.readline(MAX_LINE)
            document = json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError) as error:
            raise Closed(str(error)) from error
        if not isinstance(document, dict):
            raise Closed
        return document

    def some_bytes(self, most: int) -> bytes:
        """One to `most` bytes of a file, those that are there. Raises Closed."""
        try:
            data = self.reading.read1(most)
        except (OSError, ValueError) as error:
            raise Closed(str(error)) from error
        if not data:
            raise Closed
        return data


def error_document(error: PacklightError) -> dict[str, Any]:
    """An error as it is sent."""
    kind = next((one.__name__ for one in type(error).__mro__ if one.__name__ in _KINDS | _WITH_PHASE), "EngineError")
    return {"kind": kind, "message": str(error), "phase": getattr(error, "phase", "")}


def error_of(document: dict[str, Any], where: str) -> PacklightError:
    """The error that was sent, with the machine's name before its message."""
    message = f"{where}: {document['message']}"
    if document["kind"] in _WITH_PHASE:
        return _WITH_PHASE[document["kind"]](message, document["phase"])
    return _KINDS.get(document["kind"], EngineError)(message)
