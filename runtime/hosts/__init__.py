"""Where an artifact is measured: this machine, one that is reached over SSH, or an Android phone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.hosts.base import Host

LOCAL = "local"


def host_of(
    where: str,
    *,
    python: str | None = None,
    directory: str | None = None,
    keep: bool = True,
    engine: Path | None = None,
) -> Host:
    """The host that `where` names: "local", "ssh:[user@]host[:port]", "adb" or "adb:SERIAL". Nothing is connected yet.

    python: on another machine the interpreter that has the engine; None looks for one
    directory: there, for what is kept between runs; None is `runtime.home.home()` / artifacts, on a phone
        `runtime.hosts.adb.phone.DIRECTORY`
    keep: leave the artifact there, so that it is sent only once
    engine: here, what runs it on a phone: a directory of the engine's tools, or one of them
    Raises UserError for anything else.
    """
    scheme, colon, rest = where.partition(":")
    if scheme != "adb" and engine is not None:
        raise UserError("--engine is for --on adb: elsewhere the engine is a Python package")
    if where == LOCAL:
        from runtime.hosts.local import LocalHost

        if python is not None or directory is not None or not keep:
            raise UserError(
                "--remote-python, --remote-dir and --remote-clean are for --on ssh:HOST, the last two for adb"
            )
        return LocalHost()
    if scheme == "adb":
        from runtime.hosts.adb.client import check_serial
        from runtime.hosts.adb.host import AdbHost

        if python is not None:
            raise UserError("--remote-python is for --on ssh:HOST: a phone has no Python")
        if directory is not None and not directory.startswith("/"):
            raise UserError(
                f"--remote-dir {directory}: name a whole path on the phone, such as /data/local/tmp/packlight"
            )
        return AdbHost(check_serial(rest) if colon else None, engine, directory, keep)
    if scheme != "ssh":
        raise UserError(f"'{where}' names no host: use {LOCAL}, ssh:[user@]host[:port], or adb:SERIAL")
    from runtime.hosts.ssh import Address, SshHost

    return SshHost(Address.parse(rest), python=python, directory=directory, keep=keep)
