"""One measured thing a process, for benchmarks.onnx_peers: `python -m benchmarks.onnx_runs TASK OUT ARGUMENTS`.

ARGUMENTS is a JSON object, the keyword arguments of the task; what the task returns is written to OUT as JSON.
Every graph gets the same driver: it is told apart by its inputs and outputs only, never by who wrote it. Nothing but
the engine that a task is about is imported: what is imported counts in the measured memory.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt

    from targets.text import Half

THREADS = 2
# Not from benchmarks.paths: what that imports (libcrypto, 7 MB) would count in the measured memory.
_CACHE = Path(os.environ.get("PACKLIGHT_CACHE", Path(__file__).resolve().parent.parent / ".cache"))
PROMPT_FILE = _CACHE / "onnx-peers" / "prompt.json"
PROMPT, DECODE = 512, 64
ELEMENTS = {"tensor(float)": "float32", "tensor(float16)": "float16"}


class Decoder:
    """An ONNX decoder in plain onnxruntime, default session options but for the threads.

    The key-value cache stands in buffers of `capacity` tokens that are bound as past and as present, so that
    GroupQueryAttention appends in place; nothing is copied between steps, and no logits but those that the graph gives.
    """

    def __init__(self, path: Path, capacity: int, threads: int = THREADS) -> None:
        import numpy as np
        import onnxruntime as ort

        self._np, self._ort, self.length = np, ort, 0
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # The shapes of shared buffers are not those that the graph declares.
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        inputs = {item.name: item for item in self._session.get_inputs()}
        logits = self._session.get_outputs()[0]
        self.n_vocab, self._last_only = int(logits.shape[2]), logits.shape[1] != "sequence_length"
        self._can_keep = "num_logits_to_keep" in {i.name for i in self._session.get_overridable_initializers()}
        self._can_keep |= "num_logits_to_keep" in inputs
        self._positions = "position_ids" in inputs
        self._dtype = ELEMENTS[logits.type]
        self._cache = {
            name: ort.OrtValue.ortvalue_from_numpy(
                np.zeros((1, item.shape[1], capacity, _head_dim(path, item.shape)), ELEMENTS[item.type])
            )
            for name, item in inputs.items()
            if name.startswith("past_key_values.")
        }

    def run(self, ids: Sequence[int], keep: int = 1) -> npt.NDArray[np.float32]:
        """Append `ids`; their logits, shape (rows, n_vocab): the last row is the last token's, `keep` rows at least."""
        np, binding = self._np, self._session.io_binding()
        total = self.length + len(ids)
        feeds = {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, total), np.int64)}
        if self._positions:
            feeds["position_ids"] = np.arange(self.length, total, dtype=np.int64)[None]
        rows = 1 if self._last_only else len(ids)
        if self._last_only and keep > 1:
            if not self._can_keep:
                raise RuntimeError("this graph has logits of the last position only")
            feeds["num_logits_to_keep"] = np.array([keep], np.int64)
        for name, value in feeds.items():
            # Not bind_cpu_input: it does not know inputs that have a default.
            binding.bind_ortvalue_input(name, self._ort.OrtValue.ortvalue_from_numpy(value))
        logits = np.empty((1, rows, self.n_vocab), self._dtype)
        if keep == 1:
            binding.bind_ortvalue_output("logits", self._ort.OrtValue.ortvalue_from_numpy(logits))
        else:
            # A graph may declare one position and give more where it is asked to; only a buffer of its own may differ.
            binding.bind_output("logits", "cpu")
        for name, buffer in self._cache.items():
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), buffer)
        self._session.run_with_iobinding(binding)
        self.length = total
        return logits[0] if keep == 1 else binding.get_outputs()[0].numpy()[0]

    def greedy(self, ids: Sequence[int]) -> int:
        """Append `ids`; the token with the largest logit behind them."""
        return int(self.run(ids)[-1].argmax())

    def reset(self) -> None:
        """Forget everything appended."""
        self.length = 0


def _head_dim(path: Path, shape: Sequence[int | str]) -> int:
    """Of the cache: its last dimension, or what genai_config.json says where the graph has a name there."""
    if isinstance(shape[3], int):
        return shape[3]
    meta = json.loads((path.parent / "genai_config.json").read_text(encoding="utf-8"))
    return int(meta["model"]["decoder"]["head_size"])


def model_file(directory: Path) -> Path:
    """The one graph of an exported directory: ours lies in onnx/, GenAI's builder's beside its configuration."""
    found = sorted({*directory.glob("*.onnx"), *directory.glob("onnx/*.onnx")})
    if len(found) != 1:
        raise RuntimeError(f"{directory}: {len(found)} graphs instead of one: {[path.name for path in found]}")
    return found[0]


def _peak_bytes() -> int:
    from runtime.memory import resident

    return resident().peak_bytes


def _prompt() -> list[int]:
    """A prompt of real text, which the parent has tokenized: random tokens would touch every page of the table."""
    ids: list[int] = json.loads(PROMPT_FILE.read_text(encoding="ascii"))
    return ids


def write_prompt(model: Path) -> None:
    """Tokenize the beginning of the evaluation text for `_prompt`."""
    import tokenizers

    from targets.text import default_text

    ids = (
        tokenizers.Tokenizer.from_file(str(model / "tokenizer.json")).encode(default_text("evaluation").text[:8192]).ids
    )
    PROMPT_FILE.parent.mkdir(parents=True, exist_ok=True)
    PROMPT_FILE.write_text(json.dumps(ids[:PROMPT]), encoding="ascii")


def _timed(prefill: Callable[[], Any], step: Callable[[], Any], trials: int) -> dict[str, list[float]]:
    """Tokens/s of each trial; `prefill` starts anew, evaluates the prompt and finds the first token."""
    found: dict[str, list[float]] = {"prefill": [], "decode": []}
    for _ in range(trials):
        start = time.perf_counter()
        prefill()
        middle = time.perf_counter()
        for _ in range(DECODE):
            step()
        found["prefill"].append(PROMPT / (middle - start))
        found["decode"].append(DECODE / (time.perf_counter() - middle))
    return found


def plain(directory: str, trials: int) -> dict[str, Any]:
    """Speed and peak in plain onnxruntime; the peak is read after the first prompt, before anything is timed."""
    start = time.perf_counter()
    decoder = Decoder(model_file(Path(directory)), PROMPT + DECODE)
    load_s, token = time.perf_counter() - start, 0
    prompt = _prompt()
    decoder.greedy(prompt)
    peak = _peak_bytes()

    def prefill() -> None:
        nonlocal token
        decoder.reset()
        token = decoder.greedy(prompt)

    def step() -> None:
        nonlocal token
        token = decoder.greedy([token])

    return {"load_s": load_s, "peak_bytes": peak, **_timed(prefill, step, trials)}


def genai(directory: str, trials: int) -> dict[str, Any]:
    """Speed and peak in onnxruntime-genai's engine, the directory's own configuration but for the threads."""
    import onnxruntime_genai as og

    start = time.perf_counter()
    config = og.Config(directory)
    threads = {"session_options": {"intra_op_num_threads": THREADS}}
    config.overlay(json.dumps({"model": {"decoder": threads}}))
    model = og.Model(config)
    load_s = time.perf_counter() - start
    prompt = _prompt()
    length = PROMPT + DECODE + 1

    generator: Any = None

    def fresh() -> Any:  # noqa: ANN401 - og has no types
        params = og.GeneratorParams(model)
        # At least as many as at most: the end-of-text token would stop it.
        params.set_search_options(max_length=length, min_length=length, do_sample=False)
        return og.Generator(model, params)

    def prefill() -> None:
        nonlocal generator
        generator = None  # The one before gives its memory back first.
        generator = fresh()
        generator.append_tokens(prompt)
        generator.generate_next_token()  # takes it from the prompt's logits

    def step() -> None:
        generator.generate_next_token()

    prefill()
    peak = _peak_bytes()
    return {"load_s": load_s, "peak_bytes": peak, **_timed(prefill, step, trials)}


def harness(directory: str, trials: int) -> dict[str, Any]:
    """Speed and peak in the session that `packlight measure` runs an artifact in."""
    from runtime.artifact import open_artifact
    from runtime.measurement import RunOptions
    from runtime.sessions import open_session

    start = time.perf_counter()
    session = open_session(open_artifact(Path(directory)), RunOptions(threads=THREADS, context=PROMPT + DECODE + 1))
    load_s = time.perf_counter() - start
    prompt = _prompt()

    def prefill() -> None:
        session.reset()
        session.prefill(prompt)
        session.greedy()

    prefill()
    peak = _peak_bytes()
    timed = _timed(prefill, lambda: session.decode(session.greedy()), trials)
    session.close()
    return {"load_s": load_s, "peak_bytes": peak, **timed}


def drift(source: str, directory: str, chunks: int, kept: str, text: Half = "evaluation") -> dict[str, Any]:
    """Figures of `exporter.verify`'s protocol for a directory in plain onnxruntime, against float32 in torch.

    kept: where the token ids and torch's logits stay for the next directory; made where they are not there yet
    text: which part of the built-in text
    """
    import numpy as np

    from targets.drift import DriftAccumulator

    if not Path(kept).is_file():
        _write_reference(source, chunks, Path(kept), text)
    with Path(kept).open("rb") as file:
        cut = np.load(file)
        logits = np.load(file)
    decoder, accumulator, first = Decoder(model_file(Path(directory)), PROMPT), DriftAccumulator(), PROMPT // 2
    for ids, expected in zip(cut, logits, strict=True):
        decoder.reset()
        accumulator.add(expected, decoder.run(ids.tolist(), PROMPT)[first:-1], ids[first + 1 :])
    result = accumulator.statistics()
    figures = ("mean_kl", "p99_kl", "perplexity", "source_perplexity", "same_top1")
    return {key: getattr(result, key) for key in figures}


def _write_reference(source: str, chunks: int, kept: Path, text: Half) -> None:
    import numpy as np

    from exporter.verify.reference import TransformersReference
    from exporter.verify.run import cut_chunks
    from targets.text import default_text

    reference = TransformersReference(Path(source), threads=THREADS)
    cut = cut_chunks(reference, default_text(text), chunks, PROMPT)
    logits = np.stack([reference.logits(ids.tolist(), PROMPT // 2)[:-1] for ids in cut])
    partial = kept.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, cut)
        np.save(file, logits)
    partial.rename(kept)


def greedy(source: str, directory: str, prompts: list[str], tokens: int) -> list[dict[str, Any]]:
    """Greedy tokens of a graph and of transformers' own generate, prompt by prompt; the end of text stops neither."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(THREADS)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    decoder, found = Decoder(model_file(Path(directory)), 1024), []
    for prompt in prompts:
        turn = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        output = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=tokens)
        theirs = output[0, len(ids) :].tolist()
        decoder.reset()
        ours = [decoder.greedy(ids)]
        while len(ours) < tokens:
            ours.append(decoder.greedy(ours[-1:]))
        same = next((n for n, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]), tokens)
        found.append({"prompt": prompt, "prompt_tokens": len(ids), "equal_tokens": same})
    return found


TASKS: dict[str, Callable[..., Any]] = {
    "plain": plain, "genai": genai, "harness": harness, "drift": drift, "greedy": greedy,
}  # fmt: skip


def main(arguments: Sequence[str], tasks: dict[str, Callable[..., Any]]) -> None:
    """Run the task that the command line names and write what it returns."""
    task, out, keywords = arguments
    result = tasks[task](**json.loads(keywords))
    Path(out).write_text(json.dumps(result), encoding="utf-8")


def median_of(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Medians over the runs of a task, key by key; a list counts with its own median."""
    flat = [{k: statistics.median(v) if isinstance(v, list) else v for k, v in run.items()} for run in runs]
    return {key: statistics.median(run[key] for run in flat) for key in flat[0]}


if __name__ == "__main__":
    main(sys.argv[1:], TASKS)
