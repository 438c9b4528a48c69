"""The measured process: `python -m runtime.worker` reads one JSON request on stdin and answers in JSON lines.

Request: {"artifact": {"root", "format", "entry"}, "options": {…RunOptions}, "trials": {…Trials}}; the artifact's
"contract" and "context_length" may be left out where the file says all that (GGUF).
With "load_only": true nothing but the load is timed.
Answers: {"phase": "loading"} as each phase begins ("quiet": true where nothing in it is timed), then one
{"result": {…}} or {"error": {"kind", "message"}}.
Everything that is imported here counts in the measured memory: no numpy, no torch, no transformers.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from runtime.artifact import Artifact, shards
from runtime.errors import PacklightError
from runtime.measurement import PROMPT_TOKENS, TEXT_TOKENS, RunOptions, Trials
from runtime.memory import (
    anonymous_bytes,
    major_page_faults,
    mapped_bytes,
    proportional_bytes,
    resident,
    resident_kinds,
)
from runtime.sessions import open_session
from runtime.sessions.base import is_encoder
from runtime.turns import Turn, leak_note, turn_figures, turn_names

if TYPE_CHECKING:
    from runtime.sessions.base import EncoderSession, Session

TURN_TOKENS = 2048
"""Most tokens of one conversation turn: filling a long context would take minutes on a phone."""
SUSTAINED_PROMPT = 16
"""Tokens that every window of a sustained load begins with: few, because what is timed is generating."""
WARM_UP_TOKENS = 8
PASS_LENGTHS = 8
"""Texts of a pass over growing lengths."""
PR_SET_PDEATHSIG, SIGKILL = 1, 9
Load = tuple[Callable[[], None], Callable[[], tuple[int, float]]]
"""Of a sustained load what begins a window, and a step: the tokens that it evaluates and their seconds."""


@dataclass
class Answers:
    """Where the parent listens. peak_pss_bytes: the highest PSS at the end of a phase"""

    out: TextIO
    notes: list[str] = field(default_factory=list)
    peak_pss_bytes: int | None = None

    def send(self, **answer: Any) -> None:
        """Write one line."""
        self.out.write(json.dumps(answer) + "\n")
        self.out.flush()

    def phase(self, name: str, *, quiet: bool = False) -> None:
        """Say that a phase begins. quiet: nothing in it is timed"""
        self.see_pss()
        self.send(phase=name, **({"quiet": True} if quiet else {}))

    def see_pss(self) -> None:
        """Read the PSS: between phases, where it costs no measured time."""
        share = proportional_bytes()
        if share is not None:
            self.peak_pss_bytes = max(self.peak_pss_bytes or 0, share)


@dataclass(frozen=True)
class Timing:
    """One trial: seconds of the prefill, of prefill and first token, and of all decoded tokens."""

    prefill_s: float
    first_token_s: float
    decode_s: float


def token_ids(n_vocab: int, count: int, seed: int = 1) -> list[int]:
    """Pseudo-random token ids, the same on every host, from the middle of the vocabulary.

    Control and unused tokens lie at the two ends of a vocabulary. Generator: Park and Miller's minimal standard.
    """
    low, high = n_vocab // 10, max(n_vocab // 10 + 1, n_vocab * 9 // 10)
    state, ids = seed, []
    for _ in range(count):
        state = state * 48271 % 2147483647
        ids.append(low + state % (high - low))
    return ids


def fit_to_context(trials: Trials, context: int) -> tuple[int, int, str | None]:
    """Prompt and decode tokens that fit into `context` together, and a note where they had to shrink."""
    wanted, decode = trials.prompt_tokens or PROMPT_TOKENS, trials.decode_tokens
    prompt = wanted
    if prompt + decode <= context:
        return prompt, decode, None
    decode = min(decode, max(1, context // 2))
    prompt = max(1, min(prompt, context - decode))
    note = (
        f"prompt and decode were cut from {wanted} + {trials.decode_tokens} tokens to "
        f"{prompt} + {decode} to fit the context of {context}"
    )
    return prompt, decode, note


def run_trial(session: Session, prompt: list[int], decode: int) -> Timing:
    """Reset, evaluate the prompt, then generate greedily: the first token and `decode` more steps."""
    session.reset()
    start = time.perf_counter()
    session.prefill(prompt)
    prefilled = time.perf_counter()
    token = session.greedy()
    first = time.perf_counter()
    for _ in range(decode):
        session.decode(token)
        token = session.greedy()
    return Timing(prefilled - start, first - start, time.perf_counter() - first)


def run_conversation(session: Session, context: int, count: int, answers: Answers) -> list[Turn]:
    """So many turns that share the context between them."""
    turn = min(context // count, TURN_TOKENS)
    answer = max(1, min(turn // 4, 64))
    prompt = max(1, turn - answer)
    if count * turn < context - count + 1:
        answers.notes.append(f"the conversation filled {count * turn} of {context} tokens of context")
    session.reset()
    done = []
    for number, name in enumerate(turn_names(count, "turn")):
        answers.phase(name, quiet=True)
        session.prefill(token_ids(session.n_vocab, prompt, seed=2 + number))
        for _ in range(answer):
            session.decode(session.greedy())
        done.append(Turn.now())
    cache = session.memory_bytes()["kv_cache"] * turn // context  # an engine may touch it only as it fills
    note = leak_note([turn.held_bytes for turn in done], cache, "turn")
    answers.notes += [note] if note else []
    return done


def fill_context(session: Session, context: int, decode: int, answers: Answers) -> float:
    """Fill the context to its last token, the last `decode` of them generated; their tokens per second."""
    decode = min(decode, max(1, context // 2))
    answers.phase("full context")
    session.reset()
    session.prefill(token_ids(session.n_vocab, context - decode, seed=5))
    token = session.greedy()
    start = time.perf_counter()
    for _ in range(decode):
        session.decode(token)
        token = session.greedy()
    return decode / (time.perf_counter() - start)


def decoding(session: Session, context: int) -> Load:
    """Generation that goes on, starting anew where the context is full."""
    prompt = token_ids(session.n_vocab, min(SUSTAINED_PROMPT, context // 2), seed=7)
    used, token = 0, 0

    def begin() -> None:
        nonlocal used, token
        session.reset()
        session.prefill(prompt)
        used, token = len(prompt), session.greedy()

    def step() -> tuple[int, float]:
        nonlocal used, token
        if used >= context:
            begin()
        start = time.perf_counter()
        session.decode(token)
        token, used = session.greedy(), used + 1
        return 1, time.perf_counter() - start

    return begin, step


def reading(session: EncoderSession, ids: list[int]) -> Load:
    """One text again and again."""
    return (lambda: None), (lambda: (len(ids), run_text(session, ids)))


def run_sustained(seconds: float, load: Load, answers: Answers) -> dict[str, Any] | None:
    """The Sustained of a load as plain data; None where none is asked for."""
    if not seconds:
        return None
    from runtime.sustained import sustain  # here: who does not ask for it does not carry it

    answers.phase("sustained load")
    return dataclasses.asdict(sustain(seconds, *load))


def split_memory(engine: dict[str, int], mapped: int | None, grown: int | None, peak: int) -> dict[str, int]:
    """Where the peak lies, as MemorySplit's fields; parts are resident bytes and add up to the peak.

    engine: what it says it allocated; mapped: resident bytes of the model file's mappings; grown: anonymous memory
    touched since loading. An engine reserves its compute buffers and touches only a part of them, so the reserved
    size is an upper bound; weights that are mapped count as far as they are resident.
    """
    weights = engine["weights"]
    if mapped is not None:
        weights += mapped - engine.get("weights_mapped", 0)
    weights = min(weights, peak)
    kv_cache = min(engine["kv_cache"], peak - weights)
    compute = min(engine["compute"], engine["compute"] if grown is None else max(grown, 0), peak - weights - kv_cache)
    return {
        "weights_bytes": weights,
        "kv_cache_bytes": kv_cache,
        "compute_bytes": compute,
        "other_bytes": peak - weights - kv_cache - compute,
    }


def model_mapped_bytes(artifact: Artifact) -> int | None:
    """Resident bytes of this process's mappings of the model's files; None where /proc does not tell."""
    names = artifact.contract.get("model_files") or shards(artifact)
    parts = [mapped_bytes(artifact.root / name) for name in names]
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def load_only(artifact: Artifact, options: RunOptions, answers: Answers) -> dict[str, Any]:
    """Open the artifact and no more; plain data."""
    answers.phase("loading again")
    start = time.perf_counter()
    with closing(open_session(artifact, options)):
        return {"load_s": time.perf_counter() - start}


def run(artifact: Artifact, options: RunOptions, trials: Trials, answers: Answers) -> dict[str, Any]:
    """Measure `artifact` in this process and return the result as plain data."""
    answers.phase("loading")
    start = time.perf_counter()
    with closing(open_session(artifact, options)) as session:
        load_s = time.perf_counter() - start
        anonymous = anonymous_bytes()
        if is_encoder(artifact):
            timed = time_encoder(cast("EncoderSession", session), options, trials, answers)
        else:
            timed = time_decoder(session, options, trials, answers)
        memory, now = resident(), anonymous_bytes()
        answers.phase("done")  # before the rest is read, which takes memory of its own
        grown = None if anonymous is None or now is None else now - anonymous
        if memory.source != "VmHWM":
            answers.notes.append(f"peak memory is {memory.source}: this system has no VmHWM")
        mapped = model_mapped_bytes(artifact)
        kinds = resident_kinds()
        if kinds and answers.peak_pss_bytes is not None:
            kinds["peak_proportional_bytes"] = max(answers.peak_pss_bytes, kinds.get("proportional_bytes", 0))
        return {
            **timed,
            "load_s": load_s,
            "peak_rss_bytes": memory.peak_bytes,
            "memory": split_memory(session.memory_bytes(), mapped, grown, memory.peak_bytes),
            "mapped_weights_bytes": mapped,
            "resident": kinds,
            "major_page_faults": major_page_faults(),
            "engine": session.engine,
            "notes": answers.notes,
        }


def time_decoder(session: Session, options: RunOptions, trials: Trials, answers: Answers) -> dict[str, Any]:
    """Trials of a prompt and generated tokens, a full context, a conversation of turns, a sustained load."""
    n_prompt, n_decode, note = fit_to_context(trials, options.context)
    if note:
        answers.notes.append(note)
    prompt = token_ids(session.n_vocab, n_prompt)
    answers.phase("warm-up")
    cold = run_trial(session, prompt, min(WARM_UP_TOKENS, n_decode))
    timings = []
    for number in range(trials.count):
        answers.phase(f"trial {number + 1} of {trials.count}")
        timings.append(run_trial(session, prompt, n_decode))
    full = fill_context(session, options.context, n_decode, answers) if trials.fill_context else None
    turns = run_conversation(session, options.context, trials.turns, answers)
    return {
        "cold_first_token_ms": cold.first_token_s * 1e3,
        "first_token_ms": [timing.first_token_s * 1e3 for timing in timings],
        "prefill_tokens_per_s": [n_prompt / timing.prefill_s for timing in timings],
        "decode_tokens_per_s": [n_decode / timing.decode_s for timing in timings],
        **turn_figures(turns),
        "full_context_tokens_per_s": full,
        "sustained": run_sustained(trials.sustained_s, decoding(session, options.context), answers),
        "prompt_tokens": n_prompt,
        "decode_tokens": n_decode,
    }


def time_encoder(session: EncoderSession, options: RunOptions, trials: Trials, answers: Answers) -> dict[str, Any]:
    """Trials of one text, then passes over texts of growing length, and a sustained load."""
    longest = min(session.max_tokens, options.context)
    wanted = trials.prompt_tokens or TEXT_TOKENS
    n_text = min(wanted, longest)
    if n_text < wanted:
        answers.notes.append(f"the text was cut from {wanted} to {n_text} tokens, the most that the model takes")
    ids = token_ids(session.n_vocab, n_text)
    answers.phase("warm-up")
    cold_s = run_text(session, ids)
    seconds = []
    for number in range(trials.count):
        answers.phase(f"trial {number + 1} of {trials.count}")
        seconds.append(run_text(session, ids))
    return {
        "cold_first_token_ms": cold_s * 1e3,
        "latency_ms": [duration * 1e3 for duration in seconds],
        "prefill_tokens_per_s": [n_text / duration for duration in seconds],
        **turn_figures(run_passes(session, longest, trials.turns, answers)),
        "sustained": run_sustained(trials.sustained_s, reading(session, ids), answers),
        "prompt_tokens": n_text,
        "decode_tokens": 0,
    }


def run_text(session: EncoderSession, ids: list[int]) -> float:
    """Seconds that one text takes."""
    start = time.perf_counter()
    session.run(ids)
    return time.perf_counter() - start


def run_passes(session: EncoderSession, longest: int, count: int, answers: Answers) -> list[Turn]:
    """So many passes over texts of growing length up to `longest`.

    An engine that keeps a buffer for every length that it has seen grows in the first pass and must not in the second.
    """
    lengths = sorted({max(1, longest * part // PASS_LENGTHS) for part in range(1, PASS_LENGTHS + 1)})
    done = []
    for number, name in enumerate(turn_names(count, "pass")):
        answers.phase(name, quiet=True)
        for length in lengths:
            session.run(token_ids(session.n_vocab, length, seed=2 + number))
        done.append(Turn.now())
    note = leak_note([turn.held_bytes for turn in done], 0, "pass")
    answers.notes += [note] if note else []
    return done


def main() -> int:
    """Serve one request; 0 when a result was sent, 1 when an error was."""
    answers = Answers(_private_stdout())
    answers.phase("starting")
    _die_with_parent()
    request = json.load(sys.stdin)
    where = request["artifact"]
    artifact = Artifact(
        root=Path(where["root"]), format=where["format"], entry=where["entry"], name="", quant="", n_params=0,
        bits_per_weight=0.0, context_length=where.get("context_length", 0), source="",
        contract=where.get("contract", {}),
    )  # fmt: skip
    try:
        options, trials = RunOptions(**request["options"]), Trials(**request["trials"])
        if request.get("load_only"):
            result = load_only(artifact, options, answers)
        else:
            result = run(artifact, options, trials, answers)
    except PacklightError as error:
        answers.send(error={"kind": type(error).__name__, "message": str(error)})
        return 1
    except MemoryError:
        answers.send(error={"kind": "OutOfMemory", "message": "Python ran out of memory"})
        return 1
    answers.send(result=result)
    return 0


def _private_stdout() -> TextIO:
    """Our own copy of stdout; what libraries print goes to stderr, so that it cannot garble the answers."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def _die_with_parent() -> None:
    """Have the kernel kill this process when the harness is killed, so that none is left running (Linux)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)


if __name__ == "__main__":
    raise SystemExit(main())
