"""A hub on this machine that has one repository: answers what huggingface_hub asks, and counts what it sends."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Answer = tuple[int, bytes, dict[str, str]]

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
API = "/api/models/"


class FakeHub:
    """Serves the files of `directory` as REPOSITORY; sent: bytes of each; url: what HF_ENDPOINT is."""

    REPOSITORY = "org/Tiny-1B"

    def __init__(self, directory: Path) -> None:
        self.directory, self.sent, self.url = directory, Counter[str](), ""

    def names(self) -> list[str]:
        """Of all files, as the hub lists them."""
        return sorted(str(path.relative_to(self.directory)) for path in self.directory.rglob("*") if path.is_file())

    def answer(self, path: str, asked: str, *, body: bool) -> Answer:
        """Status, content and headers. asked: the part of a file, as a Range header says it; body: if it is sent"""
        if re.fullmatch(rf"{API}{self.REPOSITORY}(/revision/[^/]+)?", path):
            siblings = [{"rfilename": name} for name in self.names()]
            return _said({"id": self.REPOSITORY, "sha": COMMIT, "siblings": siblings, "private": False})
        if path == f"{API}{self.REPOSITORY}/tree/{COMMIT}":
            sizes = {name: (self.directory / name).stat().st_size for name in self.names()}
            return _said([{"type": "file", "path": name, "oid": "0" * 40, "size": n} for name, n in sizes.items()])
        named = re.fullmatch(rf"/{self.REPOSITORY}/resolve/[^/]+/(.+)", path)
        if named is None or named[1] not in self.names():
            return 404, b"", {"X-Error-Code": "EntryNotFound" if named else "RepoNotFound"}
        status, content = 200, (self.directory / named[1]).read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", asked):
            total = len(content)
            first, last = int(part[1]), min(int(part[2] or total - 1), total - 1)
            status, content = 206, content[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{total}"
        self.sent[named[1]] += len(content) if body else 0
        return status, content, headers


def _said(what: Any) -> Answer:
    return 200, json.dumps(what).encode(), {"Content-Type": "application/json"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._send(body=False)

    def do_GET(self) -> None:
        self._send(body=True)

    def _send(self, *, body: bool) -> None:
        path, asked = self.path.partition("?")[0], self.headers.get("Range", "")
        status, content, headers = self.hub.answer(path, asked, body=body)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@contextmanager
def fake_hub(directory: Path) -> Iterator[FakeHub]:
    """One that answers within it."""
    hub = FakeHub(directory)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
