"""Machines by name, and what is said of wrong ones."""

from __future__ import annotations

import pytest

from runtime.errors import HostError, UserError
from runtime.hosts import host_of
from runtime.hosts.base import Watcher
from runtime.hosts.local import LocalHost
from runtime.hosts.ssh import COMMAND, Address, SshHost
from runtime.measurement import RunOptions, Trials


@pytest.mark.parametrize(
    ("text", "host", "user", "port"),
    [
        ("board", "board", None, None),
        ("pi@board.local", "board.local", "pi", None),
        ("pi@192.168.1.7:2222", "192.168.1.7", "pi", 2222),
        ("[fe80::1%eth0]:22", "fe80::1%eth0", None, 22),
        ("pi@[::1]", "::1", "pi", None),
    ],
)
def test_addresses(text, host, user, port):
    found = Address.parse(text)
    assert (found.host, found.user, found.port) == (host, user, port)
    assert str(found) == text
    assert host_of(f"ssh:{text}").name == f"ssh:{text}"


@pytest.mark.parametrize(
    "text",
    ["", "-oProxyCommand=touch", "pi@-oProxyCommand=touch", "a b", "board:", "board:0", "board:70000", "::1", "a@b@c"],
)
def test_what_is_no_address(text):
    with pytest.raises(HostError, match=r"is no machine: write ssh:\[user@\]host\[:port\]"):
        host_of(f"ssh:{text}")


def test_other_words():
    assert isinstance(host_of("local"), LocalHost)
    with pytest.raises(
        UserError, match=r"'pi@board' names no host: use local, ssh:\[user@\]host\[:port\], or adb:SERIAL"
    ):
        host_of("pi@board")
    for more in ({"python": "python3"}, {"directory": "/data"}, {"keep": False}):
        with pytest.raises(UserError, match="are for --on ssh:HOST"):
            host_of("local", **more)
    there = host_of("ssh:board", python="/opt/python", directory="/data", keep=False)
    assert there == SshHost(Address("board"), "/opt/python", "/data", keep=False)


def test_a_client_that_is_not_there(monkeypatch):
    monkeypatch.setenv(COMMAND, "/no/such/client -v")
    with pytest.raises(HostError, match="/no/such/client: No such file or directory; --on ssh:HOST needs the ssh"):
        host_of("ssh:board").refuse("gguf", RunOptions(), Trials(), Watcher())
