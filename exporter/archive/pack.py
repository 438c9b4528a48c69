"""`packlight pack`: every tensor in the order of bytes that packs best, in zstd frames (RFC 8878)."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from exporter.archive.format import FOOTER, MAGIC, SEGMENT
from exporter.archive.planes import to_planes
from runtime.artifact import open_artifact, shards
from runtime.atomic import replacing
from runtime.errors import ModelError, UserError
from runtime.host import usable_cores

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from targets.base import Progress
    from targets.facts import TensorFact

LEVEL = 19
PROBE_LEVEL, PROBE_BYTES = 3, 1 << 21
"""How, and on how many bytes of a tensor, the orders are compared."""
FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2}


@dataclass
class PackReport:
    """Bytes before and after, of all, and by the type of the tensors ("other": what is no tensor)."""

    archive: str
    n_bytes: int = 0
    packed_bytes: int = 0
    types: dict[str, list[int]] = field(default_factory=dict)

    def add(self, kind: str, before: int, after: int) -> None:
        """Count a segment."""
        counted = self.types.setdefault(kind, [0, 0])
        counted[0] += before
        counted[1] += after
        self.n_bytes += before

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        types = {kind: {"bytes": a, "packed_bytes": b} for kind, (a, b) in sorted(self.types.items())}
        sizes = {"bytes": self.n_bytes, "packed_bytes": self.packed_bytes}
        return {"archive": self.archive, **sizes, "ratio": self.packed_bytes / max(self.n_bytes, 1), "types": types}


@dataclass(frozen=True)
class _Piece:
    """Bytes of a file that are of one kind. stride: of a block of theirs."""

    kind: str
    start: int
    n_bytes: int
    stride: int


def pack(path: Path, out: Path, threads: int | None, progress: Progress) -> PackReport:
    """Write the artifact at `path` into the archive `out`. Raises UserError; `out` is then as it was."""
    if out.exists():
        raise UserError(f"{out}: is there already; name another file for -o")
    artifact = open_artifact(path)
    whole = path.is_dir()
    root = path if whole else artifact.root
    found = path.rglob("*") if whole else (root / name for name in shards(artifact))
    files = sorted(one for one in found if one.is_file())
    total, report = sum(file.stat().st_size for file in files), PackReport(str(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(out) as temporary, temporary.open("wb") as archive:
            archive.write(MAGIC)
            writer = _Writer(archive, threads or usable_cores(), report, progress, total)
            entries = [writer.add(file, file.relative_to(root).as_posix()) for file in files]
            _finish(archive, entries)
            report.packed_bytes = archive.tell()
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); free space or choose another -o") from error
    return report


def _finish(archive: BinaryIO, entries: list[dict[str, Any]]) -> None:
    import zstandard

    frame = zstandard.ZstdCompressor(level=LEVEL).compress(json.dumps({"files": entries}).encode())
    start = archive.tell()
    archive.write(frame)
    archive.write(FOOTER.pack(start, len(frame), hashlib.sha256(frame).digest(), MAGIC))
    archive.flush()
    os.fsync(archive.fileno())


class _Writer:
    """Writes frames in order; they are packed on several threads, a few segments ahead."""

    def __init__(self, archive: BinaryIO, threads: int, report: PackReport, progress: Progress, total: int) -> None:
        self.archive, self.threads, self.report = archive, threads, report
        self.progress, self.total, self.done = progress, total, 0
        self.known: dict[bytes, tuple[int, int]] = {}

    def add(self, path: Path, name: str) -> dict[str, Any]:
        """Pack a file; its entry of the index."""
        whole, segments = hashlib.sha256(), []
        waiting: deque[tuple[_Piece, int, bytes, Future[bytes] | None]] = deque()

        def write() -> None:
            piece, n_bytes, digest, packed = waiting.popleft()
            if packed is not None:
                frame = packed.result()
                self.known[digest] = (self.archive.tell(), len(frame))
                self.archive.write(frame)
            offset, length = self.known[digest]
            segments.append([n_bytes, piece.stride, offset, length])
            self.report.add(piece.kind, n_bytes, length if packed is not None else 0)
            self.done += n_bytes
            self.progress("pack", self.done, self.total)

        with path.open("rb") as file, ThreadPoolExecutor(self.threads) as pool:
            pending: set[bytes] = set()
            for piece, content in _segments(path, file):
                whole.update(content)
                digest = hashlib.sha256(piece.stride.to_bytes(8, "little") + content).digest()
                fresh = digest not in self.known and digest not in pending
                pending.add(digest)
                packed = pool.submit(_packed, content, piece.stride) if fresh else None
                waiting.append((piece, len(content), digest, packed))
                if len(waiting) > 2 * self.threads:
                    write()
            while waiting:
                write()
        return {
            "name": name, "bytes": sum(segment[0] for segment in segments), "sha256": whole.hexdigest(),
            "segments": segments,
        }  # fmt: skip


def _packed(content: bytes, stride: int) -> bytes:
    import zstandard

    frame: bytes = zstandard.ZstdCompressor(level=LEVEL).compress(to_planes(content, stride))
    return frame


def _segments(path: Path, file: BinaryIO) -> Iterator[tuple[_Piece, bytes]]:
    """The file in order, cut where the kind of its bytes changes and where a segment is full."""
    for piece in _pieces(path, file.seek(0, 2)):
        file.seek(piece.start)
        stride = _best_stride(file.read(min(PROBE_BYTES // piece.stride * piece.stride, piece.n_bytes)), piece.stride)
        chosen = _Piece(piece.kind, piece.start, piece.n_bytes, stride)
        file.seek(piece.start)
        left = piece.n_bytes
        while left:
            content = file.read(min(SEGMENT // stride * stride, left))
            if not content:
                raise UserError(f"{path}: became shorter while it was read; pack it again")
            left -= len(content)
            yield chosen, content


def _best_stride(content: bytes, stride: int) -> int:
    """The stride that packs some bytes of a tensor best: blocks as planes, or as they are."""
    import zstandard

    if stride == 1 or len(content) < stride:
        return 1
    content = content[: len(content) // stride * stride]
    probe = zstandard.ZstdCompressor(level=PROBE_LEVEL)
    return min((1, stride), key=lambda trial: len(probe.compress(to_planes(content, trial))))


def _pieces(path: Path, size: int) -> Iterator[_Piece]:
    """Tensors, and what lies between them."""
    position = 0
    for kind, start, n_bytes, stride in sorted(_tensors(path), key=lambda one: one[1]):
        if start > position:
            yield _Piece("other", position, start - position, 1)
        if n_bytes and start >= position:
            yield _Piece(kind, start, n_bytes, stride)
            position = start + n_bytes
    if size > position:
        yield _Piece("other", position, size - position, 1)


def _tensors(path: Path) -> list[tuple[str, int, int, int]]:
    """(type, first byte, bytes, bytes of a block) of the tensors of a file whose layout is known; else none."""
    from targets.gguf.reading import READABLE_TYPES, read_gguf_tensors
    from targets.safetensors import read_header

    blocks = {kind.name: kind.block_bytes for kind in READABLE_TYPES.values()} | FLOAT_BYTES
    facts: list[TensorFact] = []
    try:
        if path.suffix == ".gguf":
            facts = read_gguf_tensors(path)
        elif path.suffix == ".safetensors":
            facts = list(read_header(path))
    except ModelError:  # whatever it is, its bytes can be packed
        return []
    return [(fact.dtype, fact.offset, fact.n_bytes, _whole(fact.n_bytes, blocks.get(fact.dtype, 1))) for fact in facts]


def _whole(n_bytes: int, stride: int) -> int:
    return stride if n_bytes % stride == 0 else 1
