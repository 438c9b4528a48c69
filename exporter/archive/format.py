"""The archive's layout, and what is read of it before it is trusted.

MAGIC; zstd frames one behind the other; the index, JSON in a zstd frame; FOOTER: offset and length of the index, the
SHA-256 of its frame, MAGIC again. The index lists files with name, bytes, SHA-256 and segments, each its bytes, the
stride of its planes, and offset and length of its frame. Equal segments share a frame.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from runtime.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path

MAGIC = b"packlight archive 1\n"
FOOTER = struct.Struct(f"<QQ32s{len(MAGIC)}s")
SEGMENT = 1 << 24
"""Bytes of a segment, at most: what is in memory at once for each thread."""
LARGEST_INDEX = 1 << 26
_AGAIN = "copy the archive again"


@dataclass(frozen=True)
class Segment:
    """A piece of a file: its bytes, the stride of its planes (1: as it is), and its frame."""

    n_bytes: int
    stride: int
    offset: int
    length: int


@dataclass(frozen=True)
class Entry:
    """A file: where it lies below the archive's root, and what it is made of."""

    name: str
    n_bytes: int
    sha256: str
    segments: tuple[Segment, ...]


def read_index(path: Path, file: BinaryIO) -> list[Entry]:
    """The files of an archive. Raises ArtifactError for one that is damaged, or that claims what cannot be."""
    size = file.seek(0, 2)
    if size < len(MAGIC) + FOOTER.size:
        raise ArtifactError(f"{path}: is no packlight archive; name what 'packlight pack' has written")
    file.seek(0)
    head = file.read(len(MAGIC))
    file.seek(size - FOOTER.size)
    start, length, digest, tail = FOOTER.unpack(file.read(FOOTER.size))
    if head != MAGIC:
        raise ArtifactError(f"{path}: is no packlight archive; name what 'packlight pack' has written")
    if tail != MAGIC or start + length + FOOTER.size != size or start < len(MAGIC):
        raise ArtifactError(f"{path}: is cut off or damaged at its end; {_AGAIN}")
    file.seek(start)
    frame = file.read(length)
    if hashlib.sha256(frame).digest() != digest:
        raise ArtifactError(f"{path}: its index is damaged; {_AGAIN}")
    return _entries(path, decompress(path, frame, None), start)


def decompress(path: Path, frame: bytes, n_bytes: int | None) -> bytes:
    """The content of a frame, which has to be `n_bytes` long; None: an index of any sensible length."""
    import zstandard

    try:
        claimed = zstandard.get_frame_parameters(frame).content_size
        if claimed > LARGEST_INDEX if n_bytes is None else claimed != n_bytes:
            raise ArtifactError(f"{path}: a frame claims {claimed} bytes; {_AGAIN}")
        content: bytes = zstandard.ZstdDecompressor().decompress(frame, max_output_size=max(claimed, 1))
    except zstandard.ZstdError as error:
        raise ArtifactError(f"{path}: a frame is damaged ({error}); {_AGAIN}") from error
    if n_bytes is not None and len(content) != n_bytes:
        raise ArtifactError(f"{path}: a frame holds {len(content)} bytes in place of {n_bytes}; {_AGAIN}")
    return content


def _entries(path: Path, content: bytes, end: int) -> list[Entry]:
    try:
        listed = json.loads(content)["files"]
        found = [
            Entry(str(one["name"]), int(one["bytes"]), str(one["sha256"]), tuple(Segment(*s) for s in one["segments"]))
            for one in listed
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: its index makes no sense ({error}); {_AGAIN}") from error
    names = [entry.name for entry in found]
    if len(set(names)) != len(names):
        raise ArtifactError(f"{path}: names a file twice; {_AGAIN}")
    for entry in found:
        if reason := _senseless(entry, end):
            raise ArtifactError(f"{path}: '{ascii(entry.name)[1:61]}' {reason}; {_AGAIN}")
    return found


def _senseless(entry: Entry, end: int) -> str:
    """Why an entry cannot be what packlight has written; empty where it can."""
    name = PurePosixPath(entry.name)
    odd = set(name.parts) & {"..", "."} or set(entry.name) & {"\\", "\0"}
    if name.is_absolute() or not name.parts or odd:
        return "would lie outside of the directory"
    if sum(_number(segment.n_bytes) for segment in entry.segments) != entry.n_bytes:
        return "is not as long as its segments"
    for segment in entry.segments:
        if not (0 < _number(segment.n_bytes) <= SEGMENT and 0 < _number(segment.stride) <= SEGMENT):
            return "has a segment of a senseless size"
        if segment.n_bytes % segment.stride:
            return "has a segment that is no whole number of blocks"
        first, last = _number(segment.offset), _number(segment.offset) + _number(segment.length)
        if not len(MAGIC) <= first < last <= end:
            return "has a segment outside of the archive"
    return ""


def _number(value: Any) -> int:  # noqa: ANN401 - what JSON had there
    """A count that JSON may have as anything; -1 where it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else -1
