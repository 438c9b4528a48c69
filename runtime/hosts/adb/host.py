"""An Android phone: the artifact and the engine's own tools are sent by adb, run there, and their figures read.

A phone has no Python, so packlight's harness cannot run there as it does over SSH. What the tools do not tell is not
measured: a load from cold files, a split of the memory, a second turn. adb's user can make no cgroup on a phone, and
its `ulimit -v` counts addresses, not memory: `check` compares the peak with the cap and says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import signal
import time
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from runtime.check import CapVerdict
from runtime.errors import EngineError, HostError, TimedOut
from runtime.host import MAX_DEFAULT_THREADS
from runtime.hosts.adb.binaries import find_binaries
from runtime.hosts.adb.client import attach
from runtime.hosts.adb.engines import engine_for
from runtime.hosts.adb.phone import DIRECTORY, Phone
from runtime.hosts.adb.watched import POLL_SECONDS, Watched, stop_script, watch
from runtime.hosts.remote import Shipped
from runtime.measure import signal_name
from runtime.measurement import NOT_BY_TOOLS, TEXT_TOKENS, Measurement
from runtime.sessions.base import is_encoder
from runtime.units import format_bytes
from runtime.worker import fit_to_context

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from runtime.artifact import Artifact
    from runtime.hosts.adb.binaries import Binaries
    from runtime.hosts.adb.engines.base import Engine, Figures
    from runtime.hosts.base import Job, Watcher
    from runtime.measurement import RunOptions, Trials

NOT_EXECUTABLE, NOT_FOUND = 126, 127
COMPARED = "compared"
"""In place of a method of capping."""


@dataclass(frozen=True)
class AdbHost:
    """See `runtime.hosts.base.Host`, and `runtime.hosts.host_of` for the fields. serial: None is the only phone"""

    serial: str | None = None
    engine: Path | None = None
    directory: str | None = None
    keep: bool = True

    @property
    def name(self) -> str:
        """As the user wrote it."""
        return "adb" if self.serial is None else f"adb:{self.serial}"

    @property
    def caps(self) -> bool:
        """Adb's user can cap nothing."""
        return False

    def refuse(self, artifact_format: str, options: RunOptions, trials: Trials, watcher: Watcher) -> None:
        """Raises HostError."""
        engine = self._engine_for(artifact_format, options, trials)
        self._phone(find_binaries(self.engine, engine), watcher)

    def measure(self, job: Job, watcher: Watcher) -> Measurement:
        """There, by the engine's tools."""
        engine = self._engine_for(job.artifact.format, job.options, job.trials)
        engine.refuse(job.artifact)
        binaries = find_binaries(self.engine, engine, job.artifact)
        shipped = Shipped.of(job.artifact)
        phone, facts = self._phone(binaries, watcher)
        job, cut = _resolved(job, facts)
        bench = PhoneBench(phone, job, binaries, shipped.digest[:32], watcher)
        try:
            phone.remove_others(binaries.directory, "engine-*")
            phone.send(binaries.files, binaries.directory, watcher)
            files = {name: (job.artifact.root / name, one) for name, one in shipped.files.items()}
            phone.send(files, bench.room, watcher)
            figures = engine.measure(bench)
        except KeyboardInterrupt as error:
            kept = f"{phone.adb.name} keeps the files that came whole in {phone.directory}"
            raise KeyboardInterrupt(*[kept] * self.keep) from error
        finally:
            self._tidy(bench)
        if self.keep:
            size = format_bytes(binaries.total_bytes + sum(one.bytes for one in shipped.files.values()))
            watcher.note(f"{phone.adb.name} keeps {size} in {phone.directory}; --remote-clean removes it")
        return _measurement(figures, bench, facts, cut)

    def check(self, job: Job, cap_bytes: int, watcher: Watcher) -> CapVerdict:
        """There; the peak is compared with the cap."""
        found = self.measure(job, watcher)
        peak = found.peak_rss_bytes
        fits = peak <= cap_bytes
        text = (
            f"{'fits' if fits else 'does not fit'}: peak {format_bytes(peak)}, compared with the cap of "
            f"{format_bytes(cap_bytes)}; memory was not capped, which adb's user cannot do on a phone"
        )
        return CapVerdict(fits, peak, found, COMPARED, text)

    def _engine_for(self, artifact_format: str, options: RunOptions, trials: Trials) -> Engine:
        """Raises HostError for what its tools do not do."""
        if trials.of_harness:
            raise HostError(f"--on {self.name} runs the engine's own tools: {NOT_BY_TOOLS}")
        engine = engine_for(artifact_format)
        if not options.mmap and not engine.reads_weights:
            raise HostError(f"--no-mmap: on {self.name} only llama.cpp's tools have it; leave it out")
        return engine

    def _phone(self, binaries: Binaries, watcher: Watcher) -> tuple[Phone, dict[str, Any]]:
        phone = Phone(attach(self.serial), (self.directory or DIRECTORY).rstrip("/"))
        facts = phone.facts()
        watcher.note(f"{phone.adb.name}: {facts['model']}, {facts['cpu']}, {facts['os']}, {', '.join(binaries.tools)}")
        binaries.refuse_other_machine(facts["abis"], phone.adb.name)
        return phone, facts

    def _tidy(self, bench: PhoneBench) -> None:
        """Also after a Ctrl-C: nothing runs on. Another one does not interrupt that."""
        with _uninterrupted():
            bench.stop()
            if not self.keep:
                bench.phone.remove(bench.room, bench.binaries.directory)


@dataclass
class PhoneBench:
    """See `runtime.hosts.adb.engines.base.Bench`. room: the artifact's directory there, below the phone's own"""

    phone: Phone
    job: Job
    binaries: Binaries
    room: str
    watcher: Watcher
    run_name: str = field(default_factory=lambda: f"run-{secrets.token_hex(4)}")
    end: float = 0.0
    _running: bool = False

    @property
    def artifact(self) -> Artifact:
        """Here."""
        return self.job.artifact

    @property
    def options(self) -> RunOptions:
        """Every default is filled in."""
        return self.job.options

    @property
    def trials(self) -> Trials:
        """Every default is filled in."""
        return self.job.trials

    @property
    def model(self) -> str:
        """The artifact's entry, relative to the phone's directory."""
        return self.beside(self.artifact.entry)

    def beside(self, name: str) -> str:
        """Of a file below the artifact's root, relative to the phone's directory."""
        return f"./{self.room}/{name}"

    def has(self, tool: str) -> bool:
        """Whether it was sent."""
        return tool in self.binaries.tools

    def run(self, tool: str, arguments: Sequence[str], what: str, *, fails: bool = False) -> Watched:
        """See `Bench`. Raises TimedOut, EngineError where the connection breaks."""
        self.watcher.note(what)
        self.end = self.end or time.monotonic() + self.trials.timeout_s
        left = self.end - time.monotonic()
        self._running = True
        try:
            done = watch(self.phone, self.run_name, self.binaries.directory, [tool, *arguments], max(left, 0.001), what)
        except TimeoutError as error:
            raise TimedOut(
                f"{self.phone.adb.name}: took longer than {self.trials.timeout_s:g} s, while {what}", what
            ) from error
        self._running = False
        if done.status and (not fails or done.status > 125 or _lacks_library(done)):
            raise self._failure(tool, done, what)
        return done

    def send(self, directory: Path) -> None:
        """See `Bench`."""
        self.phone.refuse_no_room(sum(path.stat().st_size for path in directory.iterdir()))
        self.phone.adb.push(directory, f"{self.phone.directory}/{self._near(directory.name)}")

    def drop(self, name: str) -> None:
        """See `Bench`."""
        self.phone.remove(self._near(name))

    def _near(self, name: str) -> str:
        return f"{self.room}/{(PurePosixPath(self.artifact.entry).parent / name).as_posix()}"

    def stop(self) -> None:
        """End what still runs there."""
        if self._running:
            with contextlib.suppress(HostError, EngineError):
                self.phone.adb.shell(stop_script(self.phone.directory, self.run_name, self.binaries.directory))

    def _failure(self, tool: str, done: Watched, what: str) -> EngineError | HostError:
        where, said = self.phone.adb.name, done.complaint
        if done.status == NOT_EXECUTABLE and self.binaries.is_right_machine(tool):
            return HostError(
                f"{where}: {tool} cannot be run there ({said}), though it is built for {where}'s processor; name a "
                "directory with --remote-dir where programs may be started, or build it for that Android"
            )
        if done.status == NOT_EXECUTABLE:
            return HostError(
                f"{where}: {tool} cannot be run there ({said}); build it for {where}'s processor and Android"
            )
        if done.status == NOT_FOUND or _lacks_library(done):
            return HostError(
                f"{where}: {tool} does not start ({said}); put the .so files it needs beside it, built for Android"
            )
        if done.status > 128:
            name = signal_name(done.status - 128)
            killed = "; perhaps Android ran out of memory" if done.status - 128 == signal.SIGKILL else ""
            return EngineError(f"{where}: {tool} was ended by {name} while {what}{killed}: {said}")
        return EngineError(f"{where}: {tool} failed (exit status {done.status}) while {what}: {said}")


def _lacks_library(done: Watched) -> bool:
    """Whether Android's linker, or glibc's, has refused the program."""
    return "CANNOT LINK" in done.err or "error while loading shared" in done.err


def _resolved(job: Job, facts: dict[str, Any]) -> tuple[Job, str | None]:
    """Every default filled in, and a note where prompt and generation had to shrink.

    The context is that of the artifact at most; llama.cpp's tools take a longer one.
    """
    trials, context = job.trials.resolved(encoder=is_encoder(job.artifact)), job.options.context
    if job.artifact.format != "gguf":
        context = min(context, job.artifact.context_length or context)
    if is_encoder(job.artifact):
        wanted = trials.prompt_tokens or TEXT_TOKENS
        prompt, decode = min(wanted, context), 0
        cut = f"the text was cut from {wanted} to {prompt} tokens, the most that the model takes"
        note = cut if prompt < wanted else None
    else:
        prompt, decode, note = fit_to_context(trials, context)
    trials = dataclasses.replace(trials, prompt_tokens=prompt, decode_tokens=decode)
    threads = job.options.threads or min(MAX_DEFAULT_THREADS, facts["cores"])
    kv_type = job.options.kv_type_for(job.artifact.contract)
    options = dataclasses.replace(job.options, threads=threads, kv_type=kv_type, context=context)
    return dataclasses.replace(job, trials=trials, options=options), note


def _measurement(figures: Figures, bench: PhoneBench, facts: dict[str, Any], cut: str | None) -> Measurement:
    memory = figures.memory
    if memory.peak_bytes is None:
        raise EngineError(
            f"{bench.phone.adb.name}: the engine's memory could not be read: it ended within {POLL_SECONDS:g} s, or "
            "the phone shows no VmHWM in /proc; measure more tokens"
        )
    exactness = (
        f"peak memory is VmHWM, read {memory.polls} times on the phone; growth in the last {POLL_SECONDS:g} s of the "
        "engine is missed"
    )
    absent = (
        "load, first token from a cold file, a split of the memory and growth over a second turn were not measured: "
        "no tool tells them"
    )
    return Measurement(
        load_s=None,
        first_token_ms=figures.first_token_ms,
        prefill_tokens_per_s=figures.prefill_tokens_per_s,
        decode_tokens_per_s=figures.decode_tokens_per_s,
        latency_ms=figures.latency_ms,
        peak_rss_bytes=memory.peak_bytes,
        memory=None,
        second_turn_growth_bytes=None,
        major_page_faults=memory.major_page_faults,
        options=bench.options,
        trials=figures.trials,
        host={**facts, "engine": figures.engine},
        command=bench.job.command,
        resident=memory.kinds,
        notes=(*(note for note in (cut, *figures.notes) if note), exactness, absent),
    )


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C does nothing in this block."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not the main thread, which alone is interrupted
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
