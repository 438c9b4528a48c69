"""Where an artifact is measured: this machine, or one that is reached over SSH."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.errors import UserError

if TYPE_CHECKING:
    from runtime.hosts.base import Host

LOCAL = "local"


def host_of(where: str, *, python: str | None = None, directory: str | None = None, keep: bool = True) -> Host:
    """The host that `where` names: "local", or "ssh:[user@]host[:port]". Nothing is connected yet.

    python: on another machine the interpreter that has the engine; None looks for one
    directory: there, for what is kept between runs; None is `runtime.home.home()` / artifacts
    keep: leave the artifact there, so that it is sent only once
    Raises UserError for anything else.
    """
    if where == LOCAL:
        from runtime.hosts.local import LocalHost

        if python is not None or directory is not None or not keep:
            raise UserError("--remote-python, --remote-dir and --remote-clean are for --on ssh:HOST")
        return LocalHost()
    scheme, _, rest = where.partition(":")
    if scheme != "ssh":
        raise UserError(f"'{where}' names no host: use {LOCAL}, or ssh:[user@]host[:port]")
    from runtime.hosts.ssh import Address, SshHost

    return SshHost(Address.parse(rest), python=python, directory=directory, keep=keep)
