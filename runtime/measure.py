"""Measure an artifact in a fresh child process (`runtime.worker`), with or without a hard memory cap."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from runtime import openmp
from runtime.artifact import shards
from runtime.cap import COUNTS, Cap, capped, drop_file_cache
from runtime.errors import ArtifactError, EngineError, OutOfMemory, PacklightError, TimedOut, UserError
from runtime.host import default_threads, host_facts
from runtime.measurement import TURNS, Measurement, MemorySplit, ResidentKinds, RunOptions, Stat, Trials
from runtime.memory import cached_bytes
from runtime.series import Sustained
from runtime.sessions.base import is_encoder
from runtime.timeline import Timeline
from runtime.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.artifact import Artifact
    from runtime.series import MemorySample

MINIMUM_CONTEXT = 16
_NO_MEMORY = re.compile(
    r"bad_alloc|cannot allocate|failed to allocate|unable to allocate|insufficient memory|out of memory|MemoryError"
    r"|failed to map|mmap failed|Thread creation failed|can't start new thread",
    re.IGNORECASE,
)
_ERRORS = {"ArtifactError": ArtifactError, "UserError": UserError}
_HINTS = {
    "SIGKILL": "; perhaps the system ran out of memory",
    # GCC 12 makes llama.cpp such a program on processors with AMX: .ci/build-flags.
    "SIGILL": "; the engine was built for another processor, or wrongly for this one: build it again, "
    "llama-cpp-python with CMAKE_ARGS=-DGGML_NATIVE=OFF",
}
"""What a signal that ended the measured process says about why."""


def measure(
    artifact: Artifact,
    options: RunOptions,
    trials: Trials,
    *,
    cap_bytes: int | None = None,
    progress: Callable[[str], None] | None = None,
    command: str = "",
) -> Measurement:
    """Measure `artifact` on this host, under a cap of exactly `cap_bytes` where one is named.

    progress is called with each phase's name; command is recorded. Raises EngineError where the engine fails or
    dies, its OutOfMemory where it goes over the cap, TimedOut after `trials.allowed_s`, UserError for bad options.
    """
    if cap_bytes is None:
        return measure_under(None, artifact, options, trials, progress=progress, command=command)
    with capped(cap_bytes) as cap:
        return measure_under(cap, artifact, options, trials, progress=progress, command=command)


def measure_under(
    cap: Cap | None,
    artifact: Artifact,
    options: RunOptions,
    trials: Trials,
    *,
    progress: Callable[[str], None] | None = None,
    command: str = "",
) -> Measurement:
    """`measure` with a cap that is open already, or None."""
    trials = trials.resolved(encoder=is_encoder(artifact))
    check_trials(options, trials, encoder=is_encoder(artifact))
    options = dataclasses.replace(
        options, threads=options.threads or default_threads(), kv_type=options.kv_type_for(artifact.contract)
    )
    # Both for the cold figures and for a cap, which is charged only for pages that nobody has read before.
    files = [artifact.root / name for name in dict.fromkeys((*shards(artifact), *artifact.files))]
    for path in files:
        drop_file_cache(path)
    cold = _is_cold(files)
    child = _Child(cap, trials.allowed_s, progress or _silent)
    request = {
        "artifact": {
            "root": str(artifact.root.resolve()),
            "format": artifact.format,
            "entry": artifact.entry,
            "context_length": artifact.context_length,
            "contract": artifact.contract,
        },
        "options": dataclasses.asdict(options),
        "trials": dataclasses.asdict(trials),
    }
    environment = child_environment(options.threads or 1)
    result = child.run(request, environment)
    if cold is False:
        result["notes"].append("load and first token are not of a cold file: the system kept it in the page cache")
    if cap is None and trials.count > 1:
        (progress or _silent)("loading again")
        _load_again(files, _Child(None, trials.timeout_s, _silent), request, environment, result)
    done = dataclasses.replace(
        trials, prompt_tokens=result["prompt_tokens"], decode_tokens=result["decode_tokens"]
    )  # what was measured, where the context was too small for what was asked
    return Measurement(
        load_s=result["load_s"],
        cold_first_token_ms=result["cold_first_token_ms"],
        first_token_ms=_stat(result, "first_token_ms"),
        prefill_tokens_per_s=Stat.of(result["prefill_tokens_per_s"], higher_is_better=True),
        decode_tokens_per_s=_stat(result, "decode_tokens_per_s", higher_is_better=True),
        latency_ms=_stat(result, "latency_ms"),
        peak_rss_bytes=result["peak_rss_bytes"],
        memory=MemorySplit(**result["memory"]),
        second_turn_growth_bytes=result["second_turn_growth_bytes"],
        major_page_faults=result["major_page_faults"],
        options=options,
        trials=done,
        host={**host_facts(), "engine": result["engine"]},
        command=command,
        cap=None if cap is None else describe_cap(cap),
        resident=_resident(result["resident"], child.peak_pss_bytes),
        notes=tuple(result["notes"]),
        load_is_cold=cold,
        warm_load_s=result.get("warm_load_s"),
        mapped_weights_bytes=result.get("mapped_weights_bytes"),
        full_context_tokens_per_s=result.get("full_context_tokens_per_s"),
        turn_rss_bytes=tuple(result.get("turn_rss_bytes", ())),
        timeline=_timeline(child.samples, result["peak_rss_bytes"]),
        sustained=Sustained.from_json(result["sustained"]) if result.get("sustained") else None,
    )


def _timeline(samples: list[MemorySample], peak: int) -> tuple[MemorySample, ...]:
    """The samples of the run itself, none above the peak.

    Between two of them the process may have read its peak and gone on, and the kernel counts pages in batches.
    """
    return tuple(
        dataclasses.replace(sample, rss_bytes=min(sample.rss_bytes, peak))
        for sample in samples
        if sample.phase != "done"
    )


def _is_cold(files: list[Path]) -> bool | None:
    """Whether the page cache holds at most a hundredth of the files; None where the system does not tell."""
    cached = [cached_bytes(path) for path in files]
    known = [n_bytes for n_bytes in cached if n_bytes is not None]
    if len(known) < len(cached):
        return None
    return sum(known) <= sum(path.stat().st_size for path in files) / 100


def _load_again(
    files: list[Path], child: _Child, request: dict[str, Any], environment: dict[str, str], result: dict[str, Any]
) -> None:
    """Add "warm_load_s", of a second process that finds the files in the page cache, or a note why there is none."""
    try:
        for path in files:
            with path.open("rb") as file:
                while file.read(1 << 20):  # what a run does not keep, such as the weights that a runtime has packed
                    pass
        result["warm_load_s"] = child.run({**request, "load_only": True}, environment)["load_s"]
    except (PacklightError, OSError) as error:
        result["notes"].append(f"the load with the file in the page cache was not measured: {error}")


def _resident(kinds: dict[str, int] | None, seen: int | None) -> ResidentKinds | None:
    """What backs the memory. seen: the highest PSS that was seen from outside"""
    if not kinds:
        return None
    peak = max(kinds.get("peak_proportional_bytes", 0), seen or 0)
    return ResidentKinds(**{**kinds, "peak_proportional_bytes": peak}) if peak else ResidentKinds(**kinds)


def _stat(result: dict[str, Any], name: str, *, higher_is_better: bool = False) -> Stat | None:
    """The Stat of what the worker timed; None where its kind of model has no such figure."""
    return Stat.of(result[name], higher_is_better=higher_is_better) if name in result else None


def describe_cap(cap: Cap) -> dict[str, Any]:
    """The cap as it is recorded: method, bytes, what it counts, and how often the limit was hit."""
    return {
        "method": cap.method,
        "bytes": cap.n_bytes,
        "counts": COUNTS[cap.method],
        "limit_hits": cap.limit_hits(),
    }


def child_environment(threads: int) -> dict[str, str]:
    """Of the worker: OpenMP's variables replaced, and this package to be found."""
    return {**openmp.child_environment(threads), "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}


def check_trials(options: RunOptions, trials: Trials, *, encoder: bool) -> None:
    """Raise UserError for what cannot be measured."""
    if options.context < MINIMUM_CONTEXT:
        raise UserError(f"a context of {options.context} tokens is too small to measure: use {MINIMUM_CONTEXT} or more")
    for name in ("prompt_tokens", "decode_tokens", "count"):
        if getattr(trials, name) < 1:
            raise UserError(f"{name} is {getattr(trials, name)}: it has to be at least 1")
    if options.threads is not None and options.threads < 1:
        raise UserError(f"threads is {options.threads}: it has to be at least 1")
    if trials.turns < TURNS:
        raise UserError(f"{trials.turns} turns show no growth: use --turns {TURNS} or more")
    if not encoder and trials.turns > options.context // 2:
        raise UserError(
            f"{trials.turns} turns do not fit into a context of {options.context} tokens: "
            f"use --turns {options.context // 2} at most, or a larger --context"
        )
    if trials.fill_context and encoder:
        raise UserError("--fill-context is for models that generate: an encoder keeps no context; leave it out")
    if trials.sustained_s < 0:
        raise UserError(f"a sustained load of {trials.sustained_s:g} s: it has to be more than zero")


def _silent(_phase: str) -> None:
    """Progress that nobody asked for."""


@dataclass
class _Child:
    """One run of the worker: starts it, follows its phases, and names the reason where it does not finish."""

    cap: Cap | None
    timeout_s: float
    progress: Callable[[str], None]
    phase: str = "starting"
    answers: dict[str, Any] = field(default_factory=dict)
    timeline: Timeline | None = None

    @property
    def samples(self) -> list[MemorySample]:
        """Resident memory over the run."""
        return self.timeline.samples if self.timeline is not None else []

    @property
    def peak_pss_bytes(self) -> int | None:
        """The highest PSS that was seen from here."""
        return self.timeline.peak_pss_bytes if self.timeline is not None else None

    def run(self, request: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
        """The worker's result for `request`; an EngineError in every other case."""
        argv = [sys.executable, "-P", "-m", "runtime.worker"]
        with tempfile.TemporaryFile() as stderr:  # a file: a pipe that nobody reads would block the child
            process = subprocess.Popen(
                argv if self.cap is None else self.cap.command(argv),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=environment, text=True,
            )  # fmt: skip
            late = threading.Event()

            def stop() -> None:
                late.set()
                process.kill()

            timer = threading.Timer(self.timeout_s, stop)
            timer.start()
            self.timeline = Timeline(process.pid)
            try:
                self.timeline.start()
                self._follow(process, request)
                status = process.wait()
            finally:  # also on Ctrl-C: the child must not outlive us
                timer.cancel()
                process.kill()  # before the reader of its memory is waited for, which may wait for it
                process.wait()
                self.timeline.stop()
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        with contextlib.suppress(BrokenPipeError):
                            pipe.close()
            if "result" in self.answers:
                result: dict[str, Any] = self.answers["result"]
                return result
            if late.is_set():
                raise TimedOut(f"measuring took longer than {self.timeout_s:g} s, while {self.phase}", self.phase)
            raise self._failure(status, last_line(stderr))

    def _follow(self, process: subprocess.Popen[str], request: dict[str, Any]) -> None:
        if process.stdin is None or process.stdout is None:
            raise EngineError("the measuring process has no pipes")
        with contextlib.suppress(BrokenPipeError):  # it died before it read: its status says why
            json.dump(request, process.stdin)
            process.stdin.close()
        for line in process.stdout:
            try:
                answer = json.loads(line)
            except ValueError:
                continue  # the end of a line that a kill cut off
            self.answers.update(answer)
            if "phase" in answer:
                self.phase = answer["phase"]
                if self.timeline is not None:
                    self.timeline.phase(self.phase, quiet=bool(answer.get("quiet")))
                self.progress(self.phase)

    def _failure(self, status: int, complaint: str) -> EngineError | UserError:
        error = self.answers.get("error")
        if error is not None:
            if error["kind"] == "OutOfMemory" or (self.cap is not None and _NO_MEMORY.search(error["message"])):
                return self._out_of_memory(error["message"])
            known = _ERRORS.get(error["kind"], EngineError)
            return known(error["message"])
        how = signal_name(-status) if status < 0 else f"exit status {status}"
        if self._killed_by_cap(status) or _NO_MEMORY.search(complaint):
            return self._out_of_memory(complaint or how)
        hint = _HINTS.get(how, "")
        ending = f": {complaint}" if complaint else ""
        return EngineError(f"the measuring process died ({how}) while {self.phase}{hint}{ending}")

    def _killed_by_cap(self, status: int) -> bool:
        if self.cap is None:
            return False
        if self.cap.kills:
            return status == -signal.SIGKILL and self.cap.oom_kills() != 0
        # A refused allocation that C code does not check ends in a crash, or in an interpreter that cannot start.
        return True

    def _out_of_memory(self, reason: str) -> OutOfMemory:
        where = "" if self.cap is None else f" of {format_bytes(self.cap.n_bytes)} ({self.cap.method})"
        what = "went over the memory cap" if self.cap is not None else "ran out of memory"
        return OutOfMemory(f"the measuring process {what}{where} while {self.phase}: {reason}", self.phase)


def last_line(stderr: IO[bytes]) -> str:
    """The last line with text of a file, at most 300 characters of it."""
    size = stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, size - 4096))
    lines = [line.strip() for line in stderr.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def signal_name(number: int) -> str:
    """`SIGKILL` for 9; the number as text where it has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
