"""ONNX Runtime's onnxruntime_perf_test: the time of one run of the graph, on inputs that are sent with it.

It reads `test_data_set_0/input_N.pb` beside the model. A decoder is run twice: on a prompt with an empty cache, and on
one token behind a cache of the prompt's length, which is a step of decoding without sampling. One more run is for the
memory: a step behind a full context, of an encoder the longest text. It gives percentiles of the runs, not each of
them, and copies the cache in every run where an application extends it in place.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import EngineError, HostError
from runtime.hosts.adb.engines.base import Figures
from runtime.hosts.adb.engines.tensor_file import FLOAT, FLOAT16, INT64, tensor_file
from runtime.measurement import Stat
from runtime.sessions.base import is_encoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.artifact import Artifact
    from runtime.hosts.adb.engines.base import Bench
    from runtime.hosts.adb.watched import Watched

TOOL = "onnxruntime_perf_test"
DATA = "test_data_set_0"
PAST = "past_key_values."
_LINES = {
    "least": re.compile(r"Min Latency: ([\d.e+-]+) s"),
    "most": re.compile(r"Max Latency: ([\d.e+-]+) s"),
    "middle": re.compile(r"P50 Latency: ([\d.e+-]+) s"),
    "bad": re.compile(r"P95 Latency: ([\d.e+-]+) s"),
}
_CREATED = re.compile(r"Session creation time cost: ?([\d.e+-]+) s")


class OnnxRuntimeTools:
    """See `Engine`."""

    tools = (TOOL,)
    needs = f"ONNX Runtime's {TOOL}"
    reads_weights = False

    def run_of(self, found: Sequence[str], _artifact: Artifact | None) -> Sequence[str]:
        """See `Engine`."""
        return found

    def refuse(self, artifact: Artifact, /) -> None:
        """Raises HostError."""
        if not artifact.contract.get("inputs"):
            raise HostError(f"{artifact.entry_path}: its manifest names no inputs; export the model again")
        if not is_encoder(artifact):
            _cache_shape(artifact)

    def measure(self, bench: Bench) -> Figures:
        """See `Engine`."""
        return _encoder(bench) if is_encoder(bench.artifact) else _decoder(bench)


def _encoder(bench: Bench) -> Figures:
    tokens = bench.trials.prompt_tokens or 1
    longest = max(tokens, bench.options.context)
    done, times, notes = _run(bench, tokens, 0, f"measuring by {TOOL}")
    long = _memory(bench, longest, 0, f"measuring memory by {TOOL}")
    return Figures(
        memory=_largest(done, long), engine=_engine(), trials=dataclasses.replace(bench.trials, decode_tokens=0),
        notes=(*notes, f"memory is the larger of the trials' and of runs on a text of {longest} tokens"),
        prefill_tokens_per_s=_speed(times, tokens), latency_ms=_milliseconds(times),
    )  # fmt: skip


def _decoder(bench: Bench) -> Figures:
    tokens = bench.trials.prompt_tokens or 1
    reading, prompt, notes = _run(bench, tokens, 0, f"measuring the prompt by {TOOL}")
    stepping, step, _ = _run(bench, 1, tokens, f"measuring decoding by {TOOL}")
    past = max(bench.options.context - 1, 0)
    full = _memory(bench, 1, past, f"measuring memory by {TOOL}")
    return Figures(
        memory=_largest(reading, stepping, full),
        engine=_engine(),
        trials=dataclasses.replace(bench.trials, decode_tokens=1),
        prefill_tokens_per_s=_speed(prompt, tokens),
        decode_tokens_per_s=_speed(step, 1),
        first_token_ms=_milliseconds(prompt),
        notes=(
            *notes,
            f"memory is the largest of the trials' and of a step behind {past} tokens, which fill the context",
            f"decode speed is that of {bench.trials.count} single steps behind {tokens} tokens, without sampling",
            "the whole prompt is one run of the graph and every run copies the cache: an application that extends it "
            "in place takes less memory and time",
        ),
    )


def _engine() -> str:
    return f"ONNX Runtime, CPU, {TOOL}"


def _largest(*runs: Watched) -> Watched:
    """One whose memory could not be read may be the largest: it is not passed over."""
    return max(runs, key=lambda done: math.inf if done.peak_bytes is None else done.peak_bytes)


def _run(bench: Bench, tokens: int, past: int, what: str) -> tuple[Watched, dict[str, float], tuple[str, ...]]:
    """So many tokens behind so many. The second is seconds, by the names of _LINES."""
    done = _memory(bench, tokens, past, what)
    times = {}
    for name, line in _LINES.items():
        found = line.search(done.out)
        if found is None or not float(found[1]):
            raise EngineError(f"{TOOL}: prints no latency that can be read: {done.complaint}")
        times[name] = float(found[1])
    created = _CREATED.search(done.out)
    notes = (f"{TOOL} says session creation = {created[1]} s, with the file in memory",) if created else ()
    return done, times, notes


def _memory(bench: Bench, tokens: int, past: int, what: str) -> Watched:
    """Run the trials of so many tokens behind so many."""
    arguments = ["-e", "cpu", "-m", "times", "-r", str(bench.trials.count), "-x", str(bench.options.threads), "-y", "1",
                 "-s", bench.model]  # fmt: skip
    with tempfile.TemporaryDirectory() as room:
        directory = Path(room) / DATA
        directory.mkdir()
        for number, data in enumerate(_inputs(bench.artifact, tokens, past)):
            (directory / f"input_{number}.pb").write_bytes(data)
        bench.drop(DATA)  # what a run has left that was cut off
        try:
            bench.send(directory)
            return bench.run(TOOL, arguments, what)
        finally:
            bench.drop(DATA)


def _milliseconds(times: dict[str, float]) -> Stat:
    spread = (times["most"] - times["least"]) / times["middle"]
    return Stat(times["middle"] * 1e3, times["bad"] * 1e3, spread, ())


def _speed(times: dict[str, float], tokens: int) -> Stat:
    spread = (tokens / times["least"] - tokens / times["most"]) / (tokens / times["middle"])
    return Stat(tokens / times["middle"], tokens / times["bad"], spread, ())


def _inputs(artifact: Artifact, tokens: int, past: int) -> list[bytes]:
    """A file for each of the graph's inputs: token 1 again and again, all of it attended to, and a cache of zeros."""
    names: list[str] = artifact.contract["inputs"]
    integers = {
        "input_ids": ((1, tokens), 1),
        "attention_mask": ((1, past + tokens), 1),
        "token_type_ids": ((1, tokens), 0),
        "num_logits_to_keep": ((1,), 1),
    }
    unknown = [name for name in names if name not in integers and not name.startswith(PAST)]
    if unknown:
        raise HostError(f"{artifact.entry_path}: packlight does not know what to give its input '{unknown[0]}'")
    found = []
    for name in names:
        if name in integers:
            shape, value = integers[name]
            found.append(tensor_file(name, INT64, shape, value))
        else:
            heads, width = _cache_shape(artifact)
            kind = FLOAT16 if "fp16" in artifact.quant else FLOAT
            found.append(tensor_file(name, kind, (1, heads, past, width), 0))
    return found


def _cache_shape(artifact: Artifact) -> tuple[int, int]:
    """KV heads and their width, by the config.json beside the graph. Raises HostError."""
    path = artifact.root / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        config = config.get("text_config", config)
        heads = int(config["num_attention_heads"])
        return int(config.get("num_key_value_heads") or heads), int(
            config.get("head_dim") or int(config["hidden_size"]) // heads
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HostError(f"{path}: does not tell the heads of the KV cache ({error}); export the model again") from error
