"""The user's own adb client: which phone it is, commands that run there, files that go there."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shlex
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.errors import EngineError, HostError

if TYPE_CHECKING:
    from pathlib import Path

COMMAND = "PACKLIGHT_ADB"
"""The variable that names another client, or options for it: `adb -H lab -P 5037`."""
SECONDS = 60.0
"""For an answer of the phone to what takes no time."""
PUSH_SECONDS, PUSH_BYTES_PER_S = 60.0, 0.5e6
"""For a file that is sent: what it may take before its first byte, and the slowest cable or network."""
OVER = "packlight-over"
"""The last line of a script's answer: a connection that breaks tells no error on old phones."""
_SERIAL = re.compile(r"[^\s-]\S*")
_ADVICE = {
    "unauthorized": "unlock the phone and accept the dialog 'Allow USB debugging?'",
    "authorizing": "unlock the phone and accept the dialog 'Allow USB debugging?'",
    "offline": "plug it in again, or: adb reconnect",
}
_LOST = re.compile(r"device .*(?:not found|offline)|no devices|error: closed|protocol fault|connection reset", re.I)

_FAILED = re.compile(r"^adb: error: (.+)", re.MULTILINE)


def check_serial(serial: str) -> str:
    """The serial, where it can be one. Raises HostError."""
    if not _SERIAL.fullmatch(serial):
        raise HostError(f"'adb:{serial}' is no phone: write adb:SERIAL, as 'adb devices' lists it, or adb alone")
    return serial


def _command() -> list[str]:
    try:
        return shlex.split(os.environ.get(COMMAND, "adb")) or ["adb"]
    except ValueError as error:
        raise HostError(f"{COMMAND} is no command ({error}); mend its quotes") from error


def _run(arguments: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Run the client. Raises HostError where there is none, subprocess.TimeoutExpired.

    In a session of its own: a Ctrl-C is packlight's, which stops the client, and then what it has started.
    """
    client = _command()
    try:
        return subprocess.run(
            [*client, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=seconds, check=False, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise HostError(
            f"{client[0]}: {error.strerror}; --on adb needs Android's adb (Debian: apt install adb; else the platform "
            f"tools), or {COMMAND} names it"
        ) from error


def last_words(text: str) -> str:
    """The last line that says something; not what the client says of its server."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("* ")]
    return lines[-1][:300] if lines else ""


def devices() -> dict[str, str]:
    """What is attached: serial to the state that adb names. Raises HostError."""
    try:
        done = _run(["devices"], SECONDS)
    except subprocess.TimeoutExpired as error:
        raise HostError(f"adb devices: no answer within {SECONDS:g} s; try: adb kill-server") from error
    if done.returncode:
        raise HostError(f"adb devices: {last_words(done.stderr) or f'exit status {done.returncode}'}")
    rows = [line.split("\t", 1) for line in done.stdout.splitlines() if "\t" in line]
    return {serial.strip(): state.strip() for serial, state in rows}


def attach(serial: str | None) -> Adb:
    """The phone of that serial; None is the one that $ANDROID_SERIAL names, else the only one. Raises HostError."""
    found = devices()
    serial = serial or os.environ.get("ANDROID_SERIAL") or None
    listed = ", ".join(f"{name} ({state})" for name, state in found.items())
    if not found:
        where = f"adb:{serial}" if serial else "adb"
        raise HostError(f"{where}: no phone is attached; plug it in and allow USB debugging in its developer options")
    if serial is None:
        if len(found) > 1:
            raise HostError(
                f"adb: several phones are attached: {listed}; name one, such as --on adb:{next(iter(found))}"
            )
        (serial,) = found
    if serial not in found:
        raise HostError(f"adb:{serial}: no such phone; attached: {listed}")
    if (state := found[serial]) != "device":
        advice = _ADVICE.get(state, "see: adb devices")
        raise HostError(f"adb:{serial}: cannot be used, adb says '{state}'; {advice}")
    return Adb(serial)


@dataclass(frozen=True)
class Adb:
    """One attached phone."""

    serial: str

    @property
    def name(self) -> str:
        """As it is recorded."""
        return f"adb:{self.serial}"

    def shell(self, script: str, *, seconds: float = SECONDS, doing: str = "") -> subprocess.CompletedProcess[str]:
        """Run a script of the phone's shell; the caller judges the exit status, which old phones do not tell.

        Raises EngineError where the answer is cut off, HostError where there is none in time.
        """
        try:
            done = self.shell_for(f"({script}\n)\necho; echo {OVER}", seconds, doing)
        except TimeoutError as error:
            raise HostError(f"{self.name}: no answer within {seconds:g} s{doing}; plug it in again") from error
        if OVER not in done.stdout.split():
            raise self.cut_off(doing, done)
        return done

    def shell_for(self, script: str, seconds: float, doing: str) -> subprocess.CompletedProcess[str]:
        """`shell` for what may take long. Raises TimeoutError."""
        try:
            done = _run(["-s", self.serial, "shell", script], seconds)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError from error
        if done.returncode and _LOST.search(done.stderr):
            raise self.lost(doing, last_words(done.stderr))
        return done

    def push(self, path: Path, to: str, left: float = math.inf) -> None:
        """Copy a file or a directory of files there. left: seconds, where there are fewer than its size allows.

        Raises HostError with adb's own reason or after the time for its size, TimeoutError after `left`, EngineError
        where the connection breaks.
        """
        files = path.iterdir() if path.is_dir() else [path]
        seconds = PUSH_SECONDS + sum(one.stat().st_size for one in files) / PUSH_BYTES_PER_S
        try:
            done = _run(["-s", self.serial, "push", str(path), to], min(seconds, left))
        except subprocess.TimeoutExpired as error:
            if left < seconds:
                raise TimeoutError from error
            raise HostError(
                f"{self.name}: {path.name} was not sent within {seconds:.0f} s; plug the phone in again"
            ) from error
        if not done.returncode:
            return
        said = _FAILED.search(done.stderr + done.stdout)
        words = said[1].strip()[:300] if said else last_words(done.stderr) or last_words(done.stdout)
        if _LOST.search(words) or self.state() != "device":
            raise self.lost(f" while {path.name} was sent", words)
        raise HostError(f"{self.name}: {path.name} was not sent: {words}")

    def state(self) -> str:
        """As adb names it now; "" where the phone is not attached any more."""
        with contextlib.suppress(HostError):
            return devices().get(self.serial, "")
        return ""

    def cut_off(self, doing: str, done: subprocess.CompletedProcess[str]) -> EngineError:
        """The error of an answer without its end: the connection broke, or the phone's shell ended."""
        words = last_words(done.stderr) or last_words(done.stdout)
        if self.state() != "device":
            return self.lost(doing, words)
        status = f" (exit status {done.returncode})" if done.returncode else ""
        return EngineError(f"{self.name}: the phone's shell ended early{doing}{status}: {words or 'it said nothing'}")

    def lost(self, doing: str, words: str = "") -> EngineError:
        """The error of a connection that broke."""
        state = self.state()
        now = f"adb says '{state}' now" if state else "the phone is not attached any more"
        said = f" ({words})" if words else ""
        return EngineError(f"{self.name}: the connection broke{doing}{said}; {now}; plug it in and run this again")
