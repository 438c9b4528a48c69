"""llama.cpp's tools: llama-bench tells the speed, llama-completion is the process whose memory counts.

With one of them alone, that one tells both: llama-completion in a process for each trial, llama-bench in one more run
of prompt and generation behind as many tokens as fill the context (its `-d`).
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING, Any

from runtime.errors import EngineError, HostError
from runtime.hosts.adb.engines.base import WORD, Figures
from runtime.measurement import KV_TYPE, Stat
from runtime.sessions.base import is_encoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.artifact import Artifact
    from runtime.hosts.adb.engines.base import Bench
    from runtime.hosts.adb.watched import Watched
    from runtime.measurement import Trials

BENCH, COMPLETIONS = "llama-bench", ("llama-completion", "llama-cli")
_PROMPT = re.compile(r"prompt eval time\s*=\s*([\d.]+) ms /\s*(\d+) tokens")
_DECODE = re.compile(r"(?<!prompt )eval time\s*=\s*([\d.]+) ms /\s*(\d+) runs")
_LOAD = re.compile(r"load time\s*=\s*([\d.]+) ms")
_TOO_LONG = re.compile(r"prompt is too long \((\d+) tokens, max (\d+)\)")
_VERSION = re.compile(r"version: (.+)")


class LlamaCppTools:
    """See `Engine`."""

    tools = (BENCH, *COMPLETIONS)
    needs = "llama.cpp's llama-bench, llama-completion or both"
    reads_weights = True

    def run_of(self, found: Sequence[str], _artifact: Artifact | None) -> Sequence[str]:
        """See `Engine`. Beside llama-bench, llama-completion alone: today's llama-cli is a chat without `-no-cnv`."""
        if BENCH in found:
            return [tool for tool in found if tool in (BENCH, COMPLETIONS[0])]
        return [tool for tool in COMPLETIONS if tool in found][:1]

    def refuse(self, artifact: Artifact, /) -> None:
        """An encoder, which these tools do not time. The tools themselves say what else they do not open."""
        if is_encoder(artifact):
            what = f"{BENCH} and {COMPLETIONS[0]} measure models that generate, not encoders"
            raise HostError(f"{artifact.entry_path}: {what}; measure it here or over ssh")

    def measure(self, bench: Bench) -> Figures:
        """See `Engine`."""
        completion = next((tool for tool in COMPLETIONS if bench.has(tool)), None)
        if not bench.has(BENCH):
            return _by_completions(bench, str(completion))
        speeds = _speeds(bench)
        if completion is not None:
            memory, said = _completion(bench, completion)
            notes: tuple[str, ...] = (
                f"memory is that of {completion} with {said.prompt_tokens} prompt tokens",
                said.load,
            )
        else:
            memory = _deep(bench)
            notes = (f"memory is that of {BENCH} with the context filled to its end",)
        first = "first token is the time that llama-bench takes for the prompt, without sampling"
        return dataclasses.replace(speeds, memory=memory, notes=(*speeds.notes, first, *notes))


def _common(bench: Bench, tool: str) -> list[str]:
    options = bench.options
    batch = str(options.batch)
    # A build with Vulkan or OpenCL takes the GPU where nobody forbids it: its memory is not the process's.
    arguments = ["-m", bench.model, "-t", str(options.threads), "-b", batch, "-ub", batch, "-ngl", "0"]
    if (kind := options.kv_type_for(bench.artifact.contract)) != KV_TYPE:
        arguments += ["-ctk", kind, "-ctv", kind]
    if not options.mmap:
        arguments += _unmapped(bench, tool)
    return arguments


def _unmapped(bench: Bench, tool: str) -> list[str]:
    """The option was renamed in 2025: the tool's own help tells which one it has."""
    said = bench.run(tool, ["--help"], f"asking {tool} for its options", fails=True)
    if "--load-mode" in said.out + said.err:
        return ["-lm", "none"]
    return ["-mmp", "0"] if tool == BENCH else ["--no-mmap"]


def _bench(bench: Bench, arguments: list[str], what: str) -> tuple[Watched, list[dict[str, Any]]]:
    done = bench.run(BENCH, [*_common(bench, BENCH), *arguments, "-o", "json"], what)
    start, end = done.out.find("["), done.out.rfind("]")
    try:
        found = json.loads(done.out[start : end + 1])
    except ValueError as error:
        raise EngineError(f"{BENCH}: gave no JSON that can be read ({error}): {done.complaint}") from error
    return done, found


def _speeds(bench: Bench) -> Figures:
    trials = bench.trials
    prompt, decode = str(trials.prompt_tokens), str(trials.decode_tokens)
    done, found = _bench(bench, ["-p", prompt, "-n", decode, "-r", str(trials.count)], f"measuring speed by {BENCH}")
    try:
        read = next(one for one in found if one["n_prompt"] and not one["n_gen"])
        made = next(one for one in found if one["n_gen"] and not one["n_prompt"])
        return Figures(
            memory=done,
            engine=f"llama.cpp {read['build_number']} ({read['build_commit']}), {read.get('backends', '?')}, {BENCH}",
            trials=trials,
            prefill_tokens_per_s=Stat.of([float(value) for value in read["samples_ts"]], higher_is_better=True),
            decode_tokens_per_s=Stat.of([float(value) for value in made["samples_ts"]], higher_is_better=True),
            first_token_ms=Stat.of([value / 1e6 for value in read["samples_ns"]]),
        )
    except (StopIteration, KeyError, TypeError, ValueError) as error:
        raise EngineError(f"{BENCH}: its JSON lacks what was measured ({type(error).__name__}: {error})") from error


def _deep(bench: Bench) -> Watched:
    """Prompt and generation in one process and in a context of exactly the size that is asked for."""
    trials = bench.trials
    depth = bench.options.context - (trials.prompt_tokens or 0) - trials.decode_tokens
    deep = ["-d", str(depth)] if depth > 0 else []
    both = f"{trials.prompt_tokens},{trials.decode_tokens}"
    return _bench(bench, ["-p", "0", "-n", "0", "-pg", both, *deep, "-r", "1"], f"measuring memory by {BENCH}")[0]


@dataclasses.dataclass(frozen=True)
class _Said:
    """Of one llama-completion. load: a note"""

    prompt_tokens: int
    prompt_ms: float
    decode_tokens: int
    decode_ms: float
    load: str


def _completion(bench: Bench, tool: str, what: str = "measuring memory") -> tuple[Watched, _Said]:
    """A prompt of as many words as tokens are asked for; of fewer, where those were more than the context holds."""
    words = bench.trials.prompt_tokens or 1
    for _ in range(3):
        options = ["-c", str(bench.options.context), "-n", str(bench.trials.decode_tokens), "--temp", "0"]
        text = ["-p", " ".join([WORD] * words), "--ignore-eos", "-no-cnv"]
        done = bench.run(tool, [*_common(bench, tool), *options, *text], f"{what} by {tool}", fails=True)
        long = _TOO_LONG.search(done.err + done.out)
        if long is None:
            break
        room = max(int(long[2]) - bench.trials.decode_tokens, 1)
        words = max(words * room // int(long[1]), 1)
    if done.status:
        raise EngineError(f"{tool}: failed (exit status {done.status}): {done.complaint}")
    return done, _said(tool, done)


def _said(tool: str, done: Watched) -> _Said:
    text = done.err + done.out
    prompt, decode, load = _PROMPT.search(text), _DECODE.search(text), _LOAD.search(text)
    if prompt is None or decode is None:
        raise EngineError(f"{tool}: prints no times of prompt and generation: {done.complaint}")
    note = f"{tool} says load time = {load[1]} ms, with its warm-up and the file in memory" if load else ""
    return _Said(int(prompt[2]), float(prompt[1]), int(decode[2]), float(decode[1]), note)


def _by_completions(bench: Bench, tool: str) -> Figures:
    version = bench.run(tool, ["--version"], f"asking {tool} for its version", fails=True)
    known = _VERSION.search(version.err + version.out)
    runs: list[tuple[Watched, _Said]] = []
    for number in range(1, bench.trials.count + 1):
        runs.append(_completion(bench, tool, f"trial {number} of {bench.trials.count}"))
    largest = max((done for done, _ in runs), key=lambda done: done.peak_bytes or 0)
    said = [one for _, one in runs]
    trials: Trials = dataclasses.replace(
        bench.trials, prompt_tokens=said[0].prompt_tokens, decode_tokens=said[0].decode_tokens
    )
    return Figures(
        memory=largest,
        engine=f"llama.cpp {known[1] if known else 'of unknown version'}, {tool}",
        trials=trials,
        prefill_tokens_per_s=_speed([(one.prompt_tokens, one.prompt_ms) for one in said]),
        decode_tokens_per_s=_speed([(one.decode_tokens, one.decode_ms) for one in said]),
        first_token_ms=Stat.of([one.prompt_ms for one in said]) if all(one.prompt_ms for one in said) else None,
        notes=(
            f"every trial is a {tool} of its own, and memory the largest of theirs",
            f"first token is the time that {tool} takes for the prompt",
            said[0].load,
        ),
    )


def _speed(timed: list[tuple[int, float]]) -> Stat | None:
    """Of tokens and milliseconds; None where a run was too short for the tool's clock."""
    if not all(tokens and ms for tokens, ms in timed):
        return None
    return Stat.of([tokens / ms * 1e3 for tokens, ms in timed], higher_is_better=True)
