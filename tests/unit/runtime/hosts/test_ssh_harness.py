"""Both ends of a connection, through a client that runs the other end here; a real sshd is in e2e/test_ssh_host.py."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pkgutil
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.processes import gone
from support.ssh import fake_client

from runtime.artifact import open_artifact, record, write_manifest
from runtime.errors import EngineError, HostError, OutOfMemory, TimedOut, UserError
from runtime.hosts.base import Job, Watcher
from runtime.hosts.remote import digest_of
from runtime.hosts.ssh import COMMAND, Address, SshHost
from runtime.hosts.store import Store
from runtime.hosts.wire import GREETING, Wire
from runtime.measurement import RunOptions, Trials

GOLDEN = Path(__file__).resolve().parents[3] / "golden" / "golden-q4_k_m.gguf"
OPTIONS = RunOptions(threads=1, context=64)
TRIALS = Trials(prompt_tokens=8, decode_tokens=2, count=2)
FOR_EVER = dataclasses.replace(TRIALS, count=100_000)
KEPT = ".cache/packlight/artifacts"
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is capped on Linux only")


@pytest.fixture
def home(monkeypatch, tmp_path):
    """Of the machine that is measured on."""
    client, home = fake_client(tmp_path)
    monkeypatch.setenv(COMMAND, str(client))
    return home


@pytest.fixture
def there(home):
    return SshHost(Address("board", "pi", 2222), python=sys.executable)


class Seen:
    def __init__(self):
        self.notes, self.sent = [], []
        self.watcher = Watcher(self.notes.append, lambda what, done, total: self.sent.append((what, done, total)))


def before(monkeypatch, tmp_path, shell):
    """The client runs `shell` first."""
    client, home = fake_client(tmp_path, shell)
    monkeypatch.setenv(COMMAND, str(client))
    return home


def nothing_left(home):
    """Neither a process nor a file of the other end, but what it keeps."""
    return gone(f"TMPDIR={home}/tmp") and list((home / "tmp").iterdir()) == []


def test_measured_there(there, home):
    seen = Seen()
    found = there.measure(Job(open_artifact(GOLDEN), OPTIONS, TRIALS, "as typed"), seen.watcher)
    assert found.host["on"] == "ssh:pi@board:2222"
    assert found.host["engine"].startswith("llama.cpp")
    assert (found.command, found.options.context, found.trials.count) == ("as typed", 64, 2)
    assert found.peak_rss_bytes > GOLDEN.stat().st_size
    assert seen.notes[0] == "connecting to ssh:pi@board:2222"
    assert seen.notes[1].startswith("ssh:pi@board:2222: ")
    assert "llama_cpp " in seen.notes[1]
    assert seen.notes[2:4] == ["starting", "loading"]
    assert seen.notes[-2:] == ["done", "loading again"]
    assert found.timeline[0].phase == "starting"
    assert seen.sent[-1] == (f"sending {GOLDEN.name}", GOLDEN.stat().st_size, GOLDEN.stat().st_size)
    called = (home / "called").read_text()
    assert "-o BatchMode=yes -p 2222 -l pi -- board exec sh -c " in called
    # What was sent stays, the harness does not.
    assert list((home / "tmp").iterdir()) == []
    assert [path.name for path in (home / KEPT).rglob("*.gguf")] == [GOLDEN.name]


def test_sent_once(there, home):
    artifact = open_artifact(GOLDEN)
    there.measure(Job(artifact, OPTIONS, TRIALS), Watcher())
    seen = Seen()
    there.measure(Job(artifact, OPTIONS, TRIALS), seen.watcher)
    assert seen.sent == []


def test_removed_where_that_is_asked(there, home):
    dataclasses.replace(there, keep=False).measure(Job(open_artifact(GOLDEN), OPTIONS, TRIALS), Watcher())
    assert list((home / KEPT).iterdir()) == []


def test_another_directory(there, home):
    dataclasses.replace(there, directory="~/card/kept").measure(Job(open_artifact(GOLDEN), OPTIONS, TRIALS), Watcher())
    assert list((home / "card" / "kept").rglob("*.gguf"))
    assert not (home / KEPT).exists()


def test_half_of_it_goes_on(there, home):
    artifact = open_artifact(GOLDEN)
    store = Store(home / KEPT, digest_of({GOLDEN.name: record(GOLDEN)}))
    with store.receiving(GOLDEN.name, GOLDEN.stat().st_size) as file:
        file.write(GOLDEN.read_bytes()[:500_000])
    seen = Seen()
    there.measure(Job(artifact, OPTIONS, TRIALS), seen.watcher)
    assert f"{GOLDEN.name}: goes on behind 0.5 MB" in seen.notes
    assert len(seen.sent) == 1  # the rest was one piece, and right at once
    assert store.path(GOLDEN.name).read_bytes() == GOLDEN.read_bytes()


def test_half_of_something_else_is_sent_anew(there, home):
    store = Store(home / KEPT, digest_of({GOLDEN.name: record(GOLDEN)}))
    with store.receiving(GOLDEN.name, GOLDEN.stat().st_size) as file:
        file.write(b"?" * 500_000)
    there.measure(Job(open_artifact(GOLDEN), OPTIONS, TRIALS), Watcher())
    assert store.path(GOLDEN.name).read_bytes() == GOLDEN.read_bytes()


def test_a_file_that_is_not_what_its_manifest_says(there, tmp_path):
    copy = tmp_path / "out" / GOLDEN.name
    copy.parent.mkdir()
    shutil.copy(GOLDEN, copy)
    bare = open_artifact(copy)
    write_manifest(dataclasses.replace(bare, files={copy.name: record(copy)}))
    with copy.open("r+b") as file:
        file.write(b"?")
    with pytest.raises(HostError, match="came to ssh:pi@board:2222 with another SHA-256 twice"):
        there.measure(Job(open_artifact(copy.parent), OPTIONS, TRIALS), Watcher())


@linux
def test_checked_there(there):
    artifact = open_artifact(GOLDEN)
    fits = there.check(Job(artifact, OPTIONS, TRIALS), 500_000_000, Watcher())
    assert fits.fits
    assert fits.measurement.cap["bytes"] == 500_000_000
    assert fits.measurement.host["on"] == there.name
    small = there.check(Job(artifact, OPTIONS, TRIALS), 8_000_000, Watcher())
    assert not small.fits
    assert small.needed_bytes > 8_000_000


def test_errors_arrive_as_what_they_are(there, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(GOLDEN.read_bytes()[:-5000])
    with pytest.raises(EngineError, match=r"ssh:pi@board:2222: .*cut\.gguf: llama\.cpp does not load it"):
        there.measure(Job(open_artifact(cut), OPTIONS, TRIALS), Watcher())
    with pytest.raises(UserError, match="ssh:pi@board:2222: a context of 4 tokens is too small"):
        there.measure(Job(open_artifact(GOLDEN), RunOptions(context=4), TRIALS), Watcher())
    with pytest.raises(TimedOut, match=r"took longer than 0\.01 s") as caught:
        there.measure(Job(open_artifact(GOLDEN), OPTIONS, dataclasses.replace(TRIALS, timeout_s=0.01)), Watcher())
    assert caught.value.phase == "starting"
    assert not isinstance(caught.value, OutOfMemory)


def test_what_a_login_shell_prints_is_skipped(monkeypatch, tmp_path):
    before(monkeypatch, tmp_path, "echo Welcome to the board; echo '{\"facts\": 1}'")
    there = SshHost(Address("board"), python=sys.executable)
    assert there.measure(Job(open_artifact(GOLDEN), OPTIONS, TRIALS), Watcher()).host["on"] == "ssh:board"


def test_what_a_login_shell_prints_without_an_end_of_line(monkeypatch, tmp_path):
    """The title of a terminal's window, for example: the greeting stands on a line of its own behind it."""
    before(monkeypatch, tmp_path, "printf '\\033]0;board\\007'")
    SshHost(Address("board"), python=sys.executable).refuse("gguf", RunOptions(), Trials(), Watcher())
    with pytest.raises(HostError, match=r"no Python 3\.11 or newer there"):
        SshHost(Address("board"), python="/usr/bin/false").refuse("gguf", RunOptions(), Trials(), Watcher())


def test_what_does_not_answer_is_given_up(monkeypatch, tmp_path):
    before(monkeypatch, tmp_path, "echo a menu; exec sleep 30")
    monkeypatch.setattr("runtime.hosts.ssh.ANSWER_SECONDS", 0.5)
    with pytest.raises(HostError, match=r"ssh:board: did not answer within 0\.5 s"):
        SshHost(Address("board")).refuse("gguf", RunOptions(), Trials(), Watcher())


def test_a_client_behind_another_program_that_does_not_answer(monkeypatch, tmp_path):
    """Killing the program leaves the client, and the pipe open: the wait ends all the same."""
    wrapper = tmp_path / "wrapper"
    wrapper.write_text("#!/bin/sh\nsleep 30\ntrue\n")
    wrapper.chmod(0o755)
    monkeypatch.setenv(COMMAND, str(wrapper))
    monkeypatch.setattr("runtime.hosts.ssh.ANSWER_SECONDS", 0.5)
    monkeypatch.setattr("runtime.hosts.ssh.SECONDS", 1)
    start = time.monotonic()
    with pytest.raises(HostError, match=r"ssh:board: did not answer within 0\.5 s"):
        SshHost(Address("board")).refuse("gguf", RunOptions(), Trials(), Watcher())
    assert time.monotonic() - start < 25  # the sleep is not waited for


def test_an_account_that_may_not_log_in(monkeypatch, tmp_path):
    before(monkeypatch, tmp_path, "echo This account is currently not available.; exit 1")
    with pytest.raises(HostError, match=r"cannot be used \(This account is currently not available\.\)"):
        SshHost(Address("board")).refuse("gguf", RunOptions(), Trials(), Watcher())


def test_a_client_whose_quotes_are_open(monkeypatch):
    monkeypatch.setenv(COMMAND, "ssh -o 'x")
    with pytest.raises(HostError, match=r"PACKLIGHT_SSH is no command \(No closing quotation\); mend its quotes"):
        SshHost(Address("board")).refuse("gguf", RunOptions(), Trials(), Watcher())


def test_a_full_disk_in_the_middle_of_a_file_is_said(monkeypatch, tmp_path):
    """Not that the connection broke: the other end answers while the file is still being sent."""
    big = tmp_path / "big.gguf"
    big.write_bytes(GOLDEN.read_bytes() + bytes(60_000_000))
    before(monkeypatch, tmp_path, "ulimit -f 20000")  # blocks of 512 bytes: a file of 10 MB, then EFBIG
    with pytest.raises(HostError, match="ssh:board: writing: File too large"):
        SshHost(Address("board"), python=sys.executable).measure(Job(open_artifact(big), OPTIONS, TRIALS), Watcher())


@pytest.mark.parametrize(
    ("directory", "said"),
    [("~nobody-has-this-name/x", "home directory"), ("/proc/packlight", "/proc/packlight: No such file or directory")],
)
def test_directories_that_cannot_be(there, directory, said):
    with pytest.raises(HostError, match=f"ssh:pi@board:2222: .*{said}"):
        dataclasses.replace(there, directory=directory).refuse("gguf", RunOptions(), Trials(), Watcher())


def test_shards_go_together(there, home, tmp_path):
    first, second = (tmp_path / f"m-0000{n}-of-00002.gguf" for n in (1, 2))
    for path in (first, second):
        shutil.copy(GOLDEN, path)
    (tmp_path / "m-00001-of-00003.gguf").touch()
    there.measure(Job(open_artifact(first), OPTIONS, TRIALS), Watcher())
    assert sorted(path.name for path in (home / KEPT).rglob("*.gguf")) == [first.name, second.name]


def test_what_was_cut_is_removed_too_where_that_is_asked(there, home, tmp_path):
    big = tmp_path / "big.gguf"
    big.write_bytes(GOLDEN.read_bytes() + bytes(5_000_000))

    def interrupt(_what, _done, _total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        there.measure(Job(open_artifact(big), OPTIONS, TRIALS), Watcher(advance=interrupt))
    assert str(caught.value) == f"{there.name} keeps what it has of {big.name}, the same command sends the rest"
    assert list((home / KEPT).rglob("big.gguf.part"))
    clean = dataclasses.replace(there, keep=False)
    with pytest.raises(KeyboardInterrupt) as caught:
        clean.measure(Job(open_artifact(big), OPTIONS, TRIALS), Watcher(advance=interrupt))
    assert str(caught.value) == ""
    assert list((home / KEPT).iterdir()) == []


def test_what_prints_for_ever_is_given_up(monkeypatch, tmp_path):
    before(monkeypatch, tmp_path, "exec yes")
    with pytest.raises(HostError, match="printed 200 lines and is no machine that packlight's harness runs on"):
        SshHost(Address("board")).refuse("gguf", RunOptions(), Trials(), Watcher())


def test_a_machine_that_is_not_reached(monkeypatch, tmp_path):
    before(monkeypatch, tmp_path, "echo 'ssh: connect to host board port 22: Connection refused' >&2; exit 255")
    with pytest.raises(HostError) as caught:
        SshHost(Address("board", "pi")).refuse("gguf", RunOptions(), Trials(), Watcher())
    said = str(caught.value)
    assert said == (
        "ssh:pi@board: cannot be used (ssh: connect to host board port 22: Connection refused); try: ssh pi@board true"
    )


def test_pythons_are_looked_for(monkeypatch, tmp_path):
    """The first that has the engine; a `python3` that has it not, or is too old, is passed over."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    old = bin_ / "python3"
    old.write_text("#!/bin/sh\nexit 5\n")
    old.chmod(0o755)
    home = before(monkeypatch, tmp_path, f"PATH={bin_}:/usr/bin:/bin; hash -r")
    inside = home / ".venv" / "bin"
    inside.mkdir(parents=True)
    link = inside / "python"
    link.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    link.chmod(0o755)
    seen = Seen()
    SshHost(Address("board")).refuse("gguf", RunOptions(), Trials(), seen.watcher)
    assert "llama_cpp" in seen.notes[-1]
    with pytest.raises(HostError, match=r"ssh:board: no Python 3\.11 or newer there \(/usr/bin/false\)"):
        SshHost(Address("board"), python="/usr/bin/false").refuse("gguf", RunOptions(), Trials(), Watcher())


def test_a_python_without_the_engine(monkeypatch, tmp_path):
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    home = before(monkeypatch, tmp_path, "true")
    with pytest.raises(HostError) as caught:
        SshHost(Address("board"), python=str(bare)).refuse("gguf", RunOptions(), Trials(), Watcher())
    said = str(caught.value)
    assert " has no llama_cpp; install it there (" in said
    assert "-m pip install llama-cpp-python), or name the Python that has it by --remote-python" in said
    assert list((home / "tmp").iterdir()) == []


@linux
def test_a_connection_that_breaks_while_it_measures(monkeypatch, tmp_path):
    """The client dies; the other end sees that, stops the engine and removes itself."""
    home = before(monkeypatch, tmp_path, "true")
    there = SshHost(Address("board"), python=sys.executable)

    def kill(note):
        if note.startswith("trial 1"):
            os.kill(int((home / "pid").read_text()), 9)

    with pytest.raises(EngineError, match="ssh:board: the connection broke while ") as caught:
        there.measure(Job(open_artifact(GOLDEN), OPTIONS, FOR_EVER), Watcher(kill))
    assert not isinstance(caught.value, UserError)
    assert nothing_left(home)


@linux
def test_ctrl_c_here_ends_the_other_end(monkeypatch, tmp_path):
    home = before(monkeypatch, tmp_path, "true")
    there = SshHost(Address("board"), python=sys.executable)

    def interrupt(note):
        if note.startswith("trial 1"):
            raise KeyboardInterrupt

    ended = []
    monkeypatch.setattr("runtime.hosts.ssh.subprocess.Popen.kill", lambda process: ended.append(process.poll()))
    with pytest.raises(KeyboardInterrupt, match="ssh:board keeps what it has"):
        there.measure(Job(open_artifact(GOLDEN), OPTIONS, FOR_EVER), Watcher(interrupt))
    assert ended == [0]  # by itself, before it would have been killed
    assert nothing_left(home)


class Paused:
    def __init__(self):
        self.open, self.times = 0, 0

    @contextlib.contextmanager
    def __call__(self):
        self.open += 1
        self.times += 1
        yield
        self.open -= 1


def test_what_is_drawn_pauses_while_ssh_may_ask(there):
    paused = Paused()
    notes = []
    there.refuse("gguf", RunOptions(), Trials(), Watcher(lambda text: notes.append((text, paused.open)), pause=paused))
    assert [drawn for _text, drawn in notes] == [0, 0]
    assert (paused.open, paused.times) == (0, 1)


@linux
def test_a_link_that_is_lost_while_it_measures_is_given_up(monkeypatch, tmp_path):
    """This end says now and then that it is there; where it says no more, what runs for nobody is stopped."""
    home = before(monkeypatch, tmp_path, "true")
    monkeypatch.setattr("runtime.hosts.remote.ALIVE_SECONDS", 0.2)
    there = SshHost(Address("board"), python=sys.executable)
    found = there.measure(Job(open_artifact(GOLDEN), OPTIONS, TRIALS), Watcher())
    assert found.host["on"] == "ssh:board"
    text = pkgutil.get_data("runtime.hosts", "bootstrap.py").decode()
    hasty = "import runtime.hosts.agent\n        runtime.hosts.agent.IDLE_SECONDS = 3\n        from runtime.hosts.agent"
    changed = text.replace("from runtime.hosts.agent", hasty).encode()
    monkeypatch.setattr("runtime.hosts.ssh.pkgutil.get_data", lambda *_: changed)
    monkeypatch.setattr("runtime.hosts.remote.ALIVE_SECONDS", 600)
    with pytest.raises(EngineError, match="ssh:board: the connection broke while "):
        there.measure(Job(open_artifact(GOLDEN), OPTIONS, FOR_EVER), Watcher())
    assert nothing_left(home)


def test_a_link_that_is_lost_without_a_word_is_given_up(monkeypatch, tmp_path):
    """The other end does not wait for the rest of a file for ever, nor keep others from sending it."""
    receiving, sending = os.pipe()
    answers, answering = os.pipe()
    code = (
        "import os, runtime.hosts.agent as agent; agent.IDLE_SECONDS = 5; "
        f"os._exit(agent.serve(open({receiving}, 'rb'), open({answering}, 'wb')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[4])}
    process = subprocess.Popen([sys.executable, "-c", code], pass_fds=(receiving, answering), env=environment)
    with open(answers, "rb") as reading, open(sending, "wb") as writing:  # noqa: PTH123
        os.close(receiving)
        os.close(answering)
        wire = Wire(reading, writing)
        assert (reading.readline(), reading.readline().strip().decode()) == (b"\n", GREETING)
        described = {"artifact": "ab" * 32, "directory": str(tmp_path)}
        wire.send(do="expect", files={"a": {"bytes": 1000, "sha256": "0" * 64}}, keep=True, **described)
        assert wire.receive() == {"expected": True}
        wire.send(do="receive", name="a", bytes=1000, sha256="0" * 64, **described)
        assert wire.receive() == {"have": 0}
        writing.write(b"half of it")
        writing.flush()
        assert process.wait(timeout=60) == 0
    assert [path.read_bytes() for path in tmp_path.rglob("a.part")] == [b"half of it"]
