"""One measured thing a process, for benchmarks.edge_torch: `python -m benchmarks.edge_torch_runs TASK OUT ARGUMENTS`.

kind is "eager" (transformers in float32), "trace" (plain torch.jit.trace of it, without a cache), "exported"
(transformers' own export with a static cache, lowered to XNNPACK: Optimum's road to ExecuTorch) or "packlight"; `path`
is a model directory for the first, else where the file lies.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.onnx_runs import DECODE, PROMPT, THREADS, main, write_prompt
from benchmarks.onnx_runs import _peak_bytes as peak_bytes
from benchmarks.onnx_runs import _prompt as prompt_ids

if TYPE_CHECKING:
    from collections.abc import Callable

TRACED, TRACED_TOKENS = "traced.pt", 4
"""A module without a cache computes the whole text for each token: so few of them are timed."""
EXPORTED = "exported.pte"
WARM_UP, LATENCY_RUNS, LATENCY_TOKENS = 5, 30, 128


def prepare(source: str) -> dict[str, Any]:
    """Write the prompt for the other tasks."""
    write_prompt(Path(source))
    return {}


def trace(source: str, path: str, auto: str) -> dict[str, Any]:
    """torch.jit.trace of the model as transformers loads it, frozen; auto: the Auto class."""
    import torch
    import transformers

    model = getattr(transformers, auto).from_pretrained(source, dtype=torch.float32, attn_implementation="eager")

    class First(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model.eval()

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            first: torch.Tensor = self.model(ids, **({"use_cache": False} if "LM" in auto else {}))[0]
            return first

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.freeze(torch.jit.trace(First().eval(), torch.ones(1, 16, dtype=torch.long)))
        Path(path).mkdir(parents=True, exist_ok=True)
        torch.jit.save(traced, str(Path(path) / TRACED))
    return {"model_bytes": (Path(path) / TRACED).stat().st_size}


def torch_alone() -> dict[str, Any]:
    """The peak of a process that has imported torch and does nothing."""
    import torch

    return {"peak_bytes": peak_bytes(), "version": str(torch.__version__)}


def exported(source: str, path: str, auto: str, capacity: int) -> dict[str, Any]:
    """transformers' export of the model and XNNPACK's default partitioner, float32; auto: the Auto class.

    A decoder has a static cache of `capacity` tokens and takes one token a call; an encoder takes 1 to `capacity`.
    """
    import torch
    import transformers
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from transformers.integrations.executorch import convert_and_export_with_cache

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, auto).from_pretrained(source, dtype=torch.float32).eval()
        if "LM" in auto:
            model.generation_config = transformers.GenerationConfig(
                use_cache=True, cache_implementation="static",
                cache_config={"batch_size": 1, "max_cache_len": capacity},
            )  # fmt: skip
            found = convert_and_export_with_cache(model)
        else:
            ids, dim = torch.ones(1, 7, dtype=torch.int64), {1: torch.export.Dim("tokens", min=1, max=capacity)}
            shapes = {"input_ids": dim, "attention_mask": dim}
            found = torch.export.export(model, (ids, torch.ones_like(ids)), dynamic_shapes=shapes, strict=False)
        program = to_edge_transform_and_lower(found, partitioner=[XnnpackPartitioner()]).to_executorch()
        Path(path).mkdir(parents=True, exist_ok=True)
        with (Path(path) / EXPORTED).open("wb") as file:
            program.write_to_file(file)
    return {"model_bytes": (Path(path) / EXPORTED).stat().st_size}


def decoder(kind: str, path: str, trials: int) -> dict[str, Any]:
    """Tokens/s of a prompt and of DECODE tokens behind it, and the peak after the first prompt."""
    start = time.perf_counter()
    run = {"eager": _eager, "trace": _traced, "exported": _exported, "packlight": _session}[kind](path)
    load_s, prompt = time.perf_counter() - start, prompt_ids()
    token = run(prompt, True)
    peak, found = peak_bytes(), {"prefill": [], "decode": []}
    n = TRACED_TOKENS if kind == "trace" else DECODE
    for _ in range(trials):
        start = time.perf_counter()
        token = run(prompt, True)
        middle = time.perf_counter()
        for _ in range(n):
            token = run([token], False)
        found["prefill"].append(PROMPT / (middle - start))
        found["decode"].append(n / (time.perf_counter() - middle))
    return {"load_s": load_s, "peak_bytes": peak, **found}


def _eager(path: str) -> Callable[[list[int], bool], int]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(THREADS)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    cache: Any = None

    def run(ids: list[int], anew: bool) -> int:
        nonlocal cache
        with torch.inference_mode():
            out = model(torch.tensor([ids]), past_key_values=None if anew else cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        return int(out.logits[0, -1].argmax())

    return run


def _traced(path: str) -> Callable[[list[int], bool], int]:
    import torch

    torch.set_num_threads(THREADS)
    module, held = torch.jit.load(str(Path(path) / TRACED)), []

    def run(ids: list[int], anew: bool) -> int:
        held[:] = [*([] if anew else held), *ids]
        with torch.inference_mode():
            return int(module(torch.tensor([held]))[0, -1].argmax())

    return run


def _program(path: str) -> Callable[..., list[Any]]:
    """The program of `exported`, called with its inputs."""
    import importlib

    native: Any = importlib.import_module("executorch.extension.pybindings._C")
    native._unsafe_reset_threadpool(THREADS)
    program = native._load_program(str(Path(path) / EXPORTED))
    forward = program.load_method("forward")

    def run(*inputs: Any) -> list[Any]:
        found: list[Any] = forward.call(inputs)
        return found if program else []  # it has to live as long as its method

    return run


def _exported(path: str) -> Callable[[list[int], bool], int]:
    import torch

    call, n_past = _program(path), 0

    def run(ids: list[int], anew: bool) -> int:
        nonlocal n_past
        n_past = 0 if anew else n_past
        for token in ids:
            (logits, *_) = call(torch.tensor([[token]]), torch.tensor([n_past]))
            n_past += 1
        return int(logits[0, -1].argmax())

    return run


def _session(path: str) -> Callable[[list[int], bool], int]:
    from runtime.artifact import open_artifact
    from runtime.measurement import RunOptions
    from runtime.sessions import open_session

    session = open_session(open_artifact(Path(path)), RunOptions(threads=THREADS, context=PROMPT + DECODE + 1))

    def run(ids: list[int], anew: bool) -> int:
        if anew:
            session.reset()
        session.prefill(ids)
        return session.greedy()

    return run


def parity(source: str, path: str, prompts: list[str]) -> dict[str, Any]:
    """Largest difference of logits to eager float32: whole prompts, and their last tokens one by one after the rest.

    Also that of both to the same model in float64.
    """
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    from runtime.artifact import open_artifact
    from runtime.measurement import RunOptions
    from runtime.sessions import open_session

    session = open_session(open_artifact(Path(path)), RunOptions(threads=THREADS, context=512))
    model, worst = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval(), []
    exact, ours, theirs = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64).eval(), [], []
    for number, prompt in enumerate(prompts):
        ids = session.tokenize(prompt * (1 + 3 * number), add_special=True)
        with torch.inference_mode():
            expected = model(torch.tensor([ids])).logits[0].numpy()
            true = exact(torch.tensor([ids])).logits[0].numpy()
        found = session.all_logits(ids)
        whole = np.abs(found - expected).max()
        ours.append(float(np.abs(found - true).max()))
        theirs.append(float(np.abs(expected - true).max()))
        session.reset()
        session.prefill(ids[:-3])
        for token in ids[-3:]:
            session.decode(token)
        worst.append(float(max(whole, np.abs(session.last_logits() - expected[-1]).max())))
    return {"worst": max(worst), "to_float64": max(ours), "eager_to_float64": max(theirs), "prompts": len(worst)}


def drift(source: str, path: str, chunks: int) -> dict[str, Any]:
    """Mean KL divergence to eager float32 over chunks of the evaluation text, by verify's protocol."""
    from exporter.verify.reference import TransformersReference
    from exporter.verify.run import cut_chunks
    from runtime.artifact import open_artifact
    from runtime.measurement import RunOptions
    from runtime.sessions import open_session
    from targets.drift import DriftAccumulator
    from targets.text import default_text

    reference = TransformersReference(Path(source), threads=THREADS)
    session = open_session(open_artifact(Path(path)), RunOptions(threads=THREADS, context=PROMPT))
    accumulator, first = DriftAccumulator(), PROMPT // 2
    for ids in cut_chunks(reference, default_text("evaluation"), chunks, PROMPT):
        expected = reference.logits(ids.tolist(), first)[:-1]
        accumulator.add(expected, session.all_logits(ids.tolist())[first:-1], ids[first + 1 :])
    result = accumulator.statistics()
    return {"mean_kl": result.mean_kl, "perplexity": result.perplexity, "same_top1": result.same_top1}


def _encoder(kind: str, path: str) -> Callable[[list[int]], Any]:
    """ids -> last hidden states, shape (tokens, hidden)."""
    import torch

    torch.set_num_threads(THREADS)
    if kind == "packlight":
        from runtime.artifact import open_artifact
        from runtime.measurement import RunOptions
        from runtime.sessions import open_session

        session: Any = open_session(open_artifact(Path(path)), RunOptions(threads=THREADS))
        return lambda ids: session.encode(ids)["last_hidden_state"]
    if kind == "exported":
        call = _program(path)
        return lambda ids: call(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.int64))[0][0].numpy()
    if kind == "trace":
        module = torch.jit.load(str(Path(path) / TRACED))
    else:
        from transformers import AutoModel

        module = AutoModel.from_pretrained(path, dtype=torch.float32).eval()

    def run(ids: list[int]) -> Any:  # noqa: ANN401 - an array
        with torch.inference_mode():
            found = module(torch.tensor([ids]))
        return (found if kind == "trace" else found.last_hidden_state)[0].numpy()

    return run


def latency(kind: str, path: str) -> dict[str, Any]:
    """Milliseconds of one text of LATENCY_TOKENS tokens, and the peak after the first one."""
    from runtime.worker import token_ids

    run, ids, times = _encoder(kind, path), token_ids(30522, LATENCY_TOKENS), []
    run(ids)
    peak = peak_bytes()
    for _ in range(WARM_UP + LATENCY_RUNS):
        start = time.perf_counter()
        run(ids)
        times.append(1e3 * (time.perf_counter() - start))
    return {"peak_bytes": peak, "ms": times[WARM_UP:]}


def cosine(source: str, path: str) -> dict[str, Any]:
    """Least and mean cosine between mean-pooled embeddings and those of eager float32."""
    import numpy as np

    from benchmarks.onnx_encoders import texts

    ours, theirs, values = _encoder("packlight", path), _encoder("eager", source), []
    for ids in texts(source):
        a, b = ours(ids).mean(0), theirs(ids).mean(0)
        values.append(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    return {"texts": len(values), "min": min(values), "mean": float(np.mean(values))}


TASKS: dict[str, Callable[..., Any]] = {
    "prepare": prepare, "trace": trace, "exported": exported, "torch_alone": torch_alone,
    "decoder": decoder, "parity": parity, "drift": drift, "latency": latency,
    "cosine": cosine,
}  # fmt: skip

if __name__ == "__main__":
    main(sys.argv[1:], TASKS)
