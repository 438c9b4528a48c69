"""A client in place of ssh that runs the other end's command on this machine, in a home of its own."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

CLIENT = """#!/bin/sh
# What packlight gives ssh: options, --, the host, the command.
printf '%s\\n' "$*" >> {home}/called
while [ "$1" != -- ]; do shift; done
shift 2
export HOME={home} TMPDIR={home}/tmp
unset XDG_CACHE_HOME PACKLIGHT_HOME
cd {home}
{before}
exec sh -c "$*"
"""


def fake_client(directory: Path, before: str = "") -> tuple[Path, Path]:
    """The client and the home. before: shell that it runs first, such as what a login shell prints."""
    home = directory / "home"
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    client = directory / "client"
    client.write_text(CLIENT.format(home=home, before=before))
    client.chmod(client.stat().st_mode | stat.S_IXUSR)
    return client, home
