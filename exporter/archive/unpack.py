"""`packlight unpack`: an archive back into its files, each as it was to the bit, or none at all."""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING

from exporter.archive.format import Entry, decompress, read_index
from exporter.archive.planes import from_planes
from exporter.staging import publish, refuse_occupied, staging
from runtime.errors import ArtifactError, UserError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

    from targets.base import Progress


def unpack(path: Path, out: Path, progress: Progress) -> list[str]:
    """Write the archive's files into the directory `out`; their names.

    Raises ArtifactError for an archive that is damaged or claims what cannot be; `out` is then as it was.
    """
    out = out.absolute()
    refuse_occupied(out, overwrite=False)
    try:
        with path.open("rb") as archive:
            entries = read_index(path, archive)
            total = sum(entry.n_bytes for entry in entries)
            with staging(out) as room:
                if total > (free := shutil.disk_usage(room).free):
                    raise UserError(
                        f"{out}: {total} bytes do not fit, {free} are free; free space or choose another -o"
                    )
                done = 0
                for entry in entries:
                    _write(path, archive, entry, room)
                    done += entry.n_bytes
                    progress("unpack", done, total)
                publish(room, out)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be unpacked ({error.strerror}); check the path and the disk") from error
    return [entry.name for entry in entries]


def _write(path: Path, archive: BinaryIO, entry: Entry, room: Path) -> None:
    target, digest = room / entry.name, hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        for segment in entry.segments:
            archive.seek(segment.offset)
            content = from_planes(decompress(path, archive.read(segment.length), segment.n_bytes), segment.stride)
            digest.update(content)
            file.write(content)
    if digest.hexdigest() != entry.sha256:
        raise ArtifactError(f"{path}: '{entry.name}' is not what was packed (SHA-256); copy the archive again")
