"""One run of an engine on the phone, with its memory read beside it by a loop of the phone's own shell.

Nothing of packlight runs there but this script, in POSIX sh with the commands that every Android has. Every
POLL_SECONDS it reads /proc/PID/status. VmHWM is the kernel's own high-water mark and never falls, so no peak between
two polls is missed; what is missed is growth between the last poll and the end of the process, and a run shorter than
one poll. What backs the resident memory is that of the poll with the most of it, since an engine that ends gives it
back first.
"""

from __future__ import annotations

import re
import shlex
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.hosts.adb.client import last_words
from runtime.measurement import ResidentKinds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.hosts.adb.phone import Phone

POLL_SECONDS = 0.05
MAX_OUTPUT, MAX_COMPLAINT = 1 << 20, 1 << 16
"""Bytes of the engine's standard output and standard error that are brought back, the last ones."""
# The engine's own library path is set for the engine alone: its libraries are not those of the phone's tools. A status
# read before the engine is started is the shell's: its name tells. Killing it is what a broken connection leads to: adb
# then sends SIGHUP to the shell, not to what that has started. A signal that comes before the engine's number is known
# is noted until it is; after `wait` the number may be another process's.
SCRIPT = r"""
cd "${0%/*}" || exit 9
id=@ID@
p= hung=
stop() { hung=1; [ -n "$p" ] || return; kill -9 $p 2>/dev/null; rm -f $id.*; exit 1; }
trap stop HUP INT TERM PIPE
true >$id.out && true >$id.err || { echo "packlight: cannot write"; exit 9; }
LD_LIBRARY_PATH=@ENGINE@ @COMMAND@ >$id.out 2>$id.err </dev/null &
p=$!
[ -z "$hung" ] || stop
echo "$$ $p" >$id.pid
polls=0 most=0 peak= anon= file= shmem= faults= own=
look() {
    name= h= a= f= s=
    while read -r key value _; do
        case $key in
            Name:) name=$value ;;
            VmHWM:) h=$value ;;
            VmRSS:) r=$value ;;
            RssAnon:) a=$value ;;
            RssFile:) f=$value ;;
            RssShmem:) s=$value; break ;;
        esac
    done
}
{ look <"/proc/$$/status"; } 2>/dev/null
own=$name
while :; do
    h=
    { look <"/proc/$p/status"; } 2>/dev/null
    [ -n "$h" ] || break
    if [ "$name" != "$own" ]; then
        polls=$((polls + 1)) peak=$h
        if [ "$r" -ge "$most" ]; then most=$r anon=$a file=$f shmem=$s; fi
        line=
        { read -r line <"/proc/$p/stat"; } 2>/dev/null
        line=${line##*) }
        set -- $line
        [ $# -lt 10 ] || faults=${10}
    fi
    sleep @POLL@ 2>/dev/null || sleep 1
done
wait $p
status=$?
p=
echo "packlight: ended"
echo "status=$status polls=$polls peak=$peak anon=$anon file=$file shmem=$shmem faults=$faults"
echo "packlight: stdout"
tail -c @OUTPUT@ $id.out
echo
echo "packlight: stderr"
tail -c @COMPLAINT@ $id.err
echo
echo "packlight: over"
rm -f $id.*
"""
STOP = (
    "cd {directory} && read -r shell engine <{id}.pid 2>/dev/null && "
    'case $(cat "/proc/$shell/cmdline" "/proc/$engine/cmdline" 2>/dev/null | tr "\\000" " ") in '
    "*{id}.sh*|*{mark}/*) kill -9 $engine $shell 2>/dev/null;; esac; rm -f {id}.*"
)


@dataclass(frozen=True)
class Watched:
    """What a run left.

    status: exit status, 128 + the signal where one ended it; polls: readings of its memory
    peak_bytes: the last VmHWM that was read, None where none was; kinds: at the poll with the most resident memory
    major_page_faults: None where they could not be read
    out, err: the end of the engine's standard output and standard error
    """

    status: int
    polls: int
    peak_bytes: int | None
    kinds: ResidentKinds | None
    major_page_faults: int | None
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The last that it said."""
        return last_words(self.err) or last_words(self.out)

    @classmethod
    def parse(cls, text: str) -> Watched | None:
        """Of what the script printed; None where its end is missing."""
        parts = re.split(r"^packlight: (ended|stdout|stderr|over)\r?$\n?", text, flags=re.MULTILINE)
        named = dict(zip(parts[1::2], parts[2::2], strict=True))
        if "over" not in named:
            return None
        said = dict(one.split("=", 1) for one in named["ended"].split())
        kib = {name: int(said[name]) * 1024 for name in ("peak", "anon", "file", "shmem") if said[name]}
        kinds = ResidentKinds(kib["anon"], kib["file"], kib["shmem"]) if len(kib) == 4 else None
        return cls(
            int(said["status"]), int(said["polls"]), kib.get("peak"), kinds,
            int(said["faults"]) if said["faults"] else None,
            named["stdout"], named["stderr"],
        )  # fmt: skip


def watch(phone: Phone, run: str, engine: str, command: Sequence[str], seconds: float, doing: str) -> Watched:
    """Run a program on the phone.

    run: a name for this run's own files; engine: directory of the program and its libraries, below the phone's own
    command: the program's name and its arguments, paths relative to the phone's directory
    doing: what it does, for the errors of a connection that breaks
    Raises TimeoutError after so many seconds, EngineError where the answer is cut off: the caller runs `stop_script`.
    """
    end = time.monotonic() + seconds
    filled = {
        "ID": run,
        "ENGINE": shlex.quote(f"{phone.directory}/{engine}"),
        "COMMAND": shlex.join([f"./{engine}/{command[0]}", *command[1:]]),
        "POLL": f"{POLL_SECONDS:g}",
        "OUTPUT": str(MAX_OUTPUT),
        "COMPLAINT": str(MAX_COMPLAINT),
    }
    text = re.sub(r"@([A-Z]+)@", lambda found: filled[found[1]], SCRIPT)
    with tempfile.TemporaryDirectory() as room:
        script = Path(room) / f"{run}.sh"
        script.write_text(text, encoding="utf-8")
        phone.adb.push(script, f"{phone.directory}/{run}.sh", seconds)
    left = max(end - time.monotonic(), 0.001)
    done = phone.adb.shell_for(f"exec sh {shlex.quote(f'{phone.directory}/{run}.sh')}", left, f" while {doing}")
    watched = Watched.parse(done.stdout)
    if watched is None:
        raise phone.adb.cut_off(f" while {doing}", done)
    return watched


def stop_script(directory: str, run: str, engine: str) -> str:
    """Shell that ends a run's engine and loop, where they are still that run's, and removes its files."""
    return STOP.format(directory=shlex.quote(directory), id=run, mark=engine)
