"""This package as one file that Python runs: what is sent to a machine that has only Python and an engine."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
PHONES = PACKAGE / "hosts" / "adb"
MAIN = "import sys\nfrom runtime.__main__ import main\nsys.exit(main())\n"
NAME = "packlight-runtime.pyz"
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip can name: the same bytes from the same files


def zipapp() -> bytes:
    """The sources below `runtime/` and a `__main__.py`, as `python -m zipapp` lays them out; the same bytes every time.

    Without those that reach a phone: a machine that measures reaches none.
    `python packlight-runtime.pyz ARTIFACT` is `python -m runtime ARTIFACT`.
    """
    sources = (path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
    found = sorted(path for path in sources if not path.is_relative_to(PHONES))
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        _add(archive, "__main__.py", MAIN.encode())
        for path in found:
            _add(archive, path.relative_to(PACKAGE.parent).as_posix(), path.read_bytes())
    return b"#!/usr/bin/env python3\n" + written.getvalue()


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.external_attr = 0o644 << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, data)
