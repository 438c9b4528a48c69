"""ExecuTorch's runners: llama_main for models that generate, executor_runner for all programs.

executor_runner fills every input with ones at its largest size, runs the program, and tells the time of all runs
together. Of a model that generates that is a piece of a prompt: it decodes nothing. llama_main's line of JSON has the
times of one prompt and one generation, by a clock of milliseconds.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING, Any

from runtime.errors import EngineError, HostError
from runtime.hosts.adb.engines.base import WORD, Figures
from runtime.measurement import Stat
from runtime.sessions.base import is_encoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.artifact import Artifact
    from runtime.hosts.adb.engines.base import Bench
    from runtime.hosts.adb.watched import Watched

RUNNER, LLAMA = "executor_runner", "llama_main"
_TIME = re.compile(r"Model executed successfully (\d+) time\(s\) in ([\d.]+) ms")
_OBSERVED = re.compile(r"PyTorchObserver (\{.*\})")


class ExecuTorchTools:
    """See `Engine`."""

    tools = (LLAMA, RUNNER)
    needs = "ExecuTorch's executor_runner, or for models that generate its llama_main"
    reads_weights = False

    def run_of(self, found: Sequence[str], artifact: Artifact | None) -> Sequence[str]:
        """See `Engine`."""
        if artifact is None or len(found) < len(self.tools):
            return found
        return [RUNNER if is_encoder(artifact) else LLAMA]

    def refuse(self, _artifact: Artifact, /) -> None:
        """Nothing: what the runners do not open they say themselves."""

    def measure(self, bench: Bench) -> Figures:
        """See `Engine`."""
        encoder = is_encoder(bench.artifact)
        if encoder and not bench.has(RUNNER):
            raise HostError(f"{LLAMA} runs models that generate; for an encoder --engine has to have {RUNNER}")
        return _by_llama(bench) if not encoder and bench.has(LLAMA) else _by_runner(bench, encoder=encoder)


def _by_runner(bench: Bench, *, encoder: bool) -> Figures:
    contract, trials = bench.artifact.contract, bench.trials
    tokens = bench.artifact.context_length if encoder else int(contract["piece"])
    # The first run has what only the first one pays for; it tells no time of its own.
    arguments = [f"--model_path={bench.model}", f"--num_executions={trials.count}"]
    done = bench.run(RUNNER, [*arguments, f"--cpu_threads={bench.options.threads}"], f"measuring by {RUNNER}")
    said = _TIME.search(done.err + done.out)
    if said is None or not float(said[2]):
        raise EngineError(f"{RUNNER}: prints no time, its log is off: {done.complaint}")
    each = float(said[2]) / int(said[1])
    latency = _mean(each)
    what = "text of the longest length" if encoder else "piece of a prompt"
    return Figures(
        memory=done,
        engine=f"ExecuTorch, {RUNNER}",
        trials=dataclasses.replace(trials, prompt_tokens=tokens, decode_tokens=0),
        prefill_tokens_per_s=_mean(tokens / each * 1e3),
        latency_ms=latency if encoder else None,
        notes=(
            f"{RUNNER} runs a {what}, {tokens} tokens of ones, and tells the mean of {said[1]} runs, the first too",
            *(() if encoder else (f"{RUNNER} decodes nothing: decode speed and first token were not measured",)),
        ),
    )


def _mean(value: float) -> Stat:
    """Of runs that are not told one by one."""
    return Stat(value, value, 0.0, ())


def _by_llama(bench: Bench) -> Figures:
    trials = bench.trials
    length = (trials.prompt_tokens or 1) + trials.decode_tokens
    arguments = [
        f"--model_path={bench.model}", f"--tokenizer_path={bench.beside('tokenizer.json')}",
        f"--prompt={' '.join([WORD] * (trials.prompt_tokens or 1))}", f"--seq_len={length}", "--temperature=0",
        f"--cpu_threads={bench.options.threads}",
    ]  # fmt: skip
    runs = []
    for number in range(1, trials.count + 1):
        done = bench.run(LLAMA, arguments, f"trial {number} of {trials.count} by {LLAMA}")
        runs.append((done, _observed(done)))
    said = [one for _, one in runs]
    first = [float(one["first_token_ms"] - one["inference_start_ms"]) for one in said]
    prompt, generated = int(said[0]["prompt_tokens"]), int(said[0]["generated_tokens"])
    return Figures(
        memory=max((done for done, _ in runs), key=lambda done: done.peak_bytes or 0),
        engine=f"ExecuTorch, {LLAMA}",
        trials=dataclasses.replace(trials, prompt_tokens=prompt, decode_tokens=generated),
        prefill_tokens_per_s=_speed(said, "prompt_tokens", "inference_start_ms", "prompt_eval_end_ms"),
        decode_tokens_per_s=_speed(said, "generated_tokens", "prompt_eval_end_ms", "inference_end_ms"),
        first_token_ms=Stat.of(first) if all(value > 0 for value in first) else None,
        notes=(
            f"every trial is a {LLAMA} of its own, without a warm-up: its prompt pays for what only a first one does; "
            "memory is the largest of theirs",
            f"{LLAMA} ends at an end of text: {generated} tokens were generated in the first trial",
            f"{LLAMA} tells whole milliseconds",
        ),
    )


def _observed(done: Watched) -> dict[str, Any]:
    """The last line of JSON."""
    found = _OBSERVED.findall(done.out + done.err)
    try:
        said: dict[str, Any] = json.loads(found[-1])
        keys = ("prompt_tokens", "generated_tokens", "inference_start_ms", "prompt_eval_end_ms", "inference_end_ms",
                "first_token_ms")  # fmt: skip
        return {key: int(said[key]) for key in keys}
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise EngineError(f"{LLAMA}: prints no 'PyTorchObserver' line that can be read: {done.complaint}") from error


def _speed(said: list[dict[str, Any]], tokens: str, start: str, end: str) -> Stat | None:
    """None where a run was shorter than the tool's clock tells."""
    if not all(one[tokens] and one[end] > one[start] for one in said):
        return None
    return Stat.of([one[tokens] / (one[end] - one[start]) * 1e3 for one in said], higher_is_better=True)
