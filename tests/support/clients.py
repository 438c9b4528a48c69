"""The clients of an exported ONNX directory, each run as its users run it: greedy tokens, embeddings, labels.

ONNX Runtime in Python, ONNX Runtime GenAI in Python, transformers.js in Node, ONNX Runtime's build for browsers. All
of them work without a network. A generated list has at most n ids, and ends before the first end id.
"""

from __future__ import annotations

import functools
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.node import node, packages
from targets.gguf.tokenizer.special import stop_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

_SCRIPT = Path(__file__).with_name("clients") / "generate.mjs"
_TIMEOUT_S = 300


def entry(directory: Path) -> str:
    """The graph's file, relative to `directory`, as manifest.json names it."""
    return str(json.loads((directory / "manifest.json").read_text(encoding="utf-8"))["entry"])


def end_ids(directory: Path) -> list[int]:
    """The ids that end a generation."""
    generation, config = directory / "generation_config.json", directory / "config.json"
    read = [json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {} for path in (generation, config)]
    return stop_ids(*read)


def ort_greedy(directory: Path, ids: list[int], n: int) -> list[int]:
    """onnxruntime: the cache is handed from one run to the next, the prompt goes through at once."""
    return ort_steps(directory, ids, n)[0]


def ort_steps(directory: Path, ids: list[int], n: int) -> tuple[list[int], list[float]]:
    """As ort_greedy: the ids, and for each how far its logit was above the next one; an end id has a margin too."""
    session = _ort_session(directory)
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    cache = {
        node.name: np.zeros((1, node.shape[1], 0, node.shape[3]), kinds[node.type])
        for node in session.get_inputs()
        if node.name.startswith("past_key_values.")
    }
    outputs = ["logits", *(name.replace("past_key_values", "present") for name in cache)]
    ends, generated, margins, following, seen = end_ids(directory), [], [], ids, 0
    while len(generated) < n:
        seen += len(following)
        feeds = {"input_ids": np.array([following]), "attention_mask": np.ones((1, seen), np.int64)}
        logits, *present = session.run(outputs, {**feeds, **cache})
        cache = dict(zip(cache, present, strict=True))
        second, first = np.argpartition(logits[0, -1], -2)[-2:].tolist()
        margins.append(float(logits[0, -1, first] - logits[0, -1, second]))
        if first in ends:
            break
        generated.append(first)
        following = [first]
    return generated, margins


@functools.lru_cache(maxsize=1)
def _ort_session(directory: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3  # an overridable initializer is a warning
    return ort.InferenceSession(directory / entry(directory), options, providers=["CPUExecutionProvider"])


@functools.lru_cache(maxsize=1)
def _genai_model(directory: Path) -> Any:
    import onnxruntime_genai as og

    return og.Model(str(directory))


def close() -> None:
    """Free what was opened for a directory: half a gigabyte each in full precision."""
    _ort_session.cache_clear()
    _genai_model.cache_clear()


def genai_greedy(directory: Path, ids: list[int], n: int) -> list[int]:
    """onnxruntime-genai, with the genai_config.json of the directory."""
    import onnxruntime_genai as og

    model = _genai_model(directory)
    options = og.GeneratorParams(model)
    options.set_search_options(
        do_sample=False, max_length=len(ids) + n, repetition_penalty=1.0, no_repeat_ngram_size=0,
    )  # fmt: skip
    generator = og.Generator(model, options)
    generator.append_tokens(np.array([ids], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return _before_end(directory, [int(each) for each in generator.get_sequence(0)][len(ids) :])


def genai_encode(directory: Path, text: str) -> list[int]:
    """The ids that onnxruntime-genai's own tokenizer makes of `text`."""
    import onnxruntime_genai as og

    return [int(each) for each in og.Tokenizer(_genai_model(directory)).encode(text)]


def genai_template(directory: Path, messages: list[dict[str, str]]) -> str:
    """The prompt that onnxruntime-genai makes of `messages` by the directory's chat template."""
    import onnxruntime_genai as og

    tokenizer = og.Tokenizer(_genai_model(directory))
    return str(tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=True))


def node_greedy(directory: Path, prompts: Sequence[str | list[int]], n: int) -> list[list[int]]:
    """transformers.js, each prompt by itself; a text goes through the directory's own tokenizer."""
    return [_before_end(directory, each["generated"]) for each in node_generate(directory, prompts, n)]


def node_generate(directory: Path, prompts: Sequence[str | list[int]], n: int) -> list[dict[str, list[int]]]:
    """As node_greedy: of each prompt its "ids" and what was "generated", an end id with it."""
    return list(_in_node("generate", directory, n=n, prompts=list(prompts)))


def node_template(directory: Path, messages: list[dict[str, str]]) -> str:
    """The prompt that transformers.js makes of `messages` by the directory's chat template."""
    return str(_in_node("template", directory, messages=messages)["text"])


def node_embed(directory: Path, text: str) -> list[float]:
    """transformers.js's feature-extraction pipeline: last_hidden_state, mean over the tokens, length 1."""
    return list(_in_node("embed", directory, text=text)["vector"])


def node_classify(directory: Path, text: str) -> dict[str, float]:
    """transformers.js's text-classification pipeline: the score of every label."""
    return {each["label"]: each["score"] for each in _in_node("classify", directory, text=text)["labels"]}


def node_tokens(directory: Path, text: str) -> list[tuple[str, str]]:
    """transformers.js's token-classification pipeline: (token, label), special tokens left out."""
    return [(each["word"], each["entity"]) for each in _in_node("tokens", directory, text=text)["tokens"]]


def wasm_greedy(directory: Path, ids: list[int], n: int) -> list[int]:
    """ONNX Runtime's WebAssembly build, what a browser runs; graph and weights are held in memory."""
    file = entry(directory)
    data = sorted(
        str(path.relative_to(directory)) for path in (directory / file).parent.glob(f"{Path(file).name}_data*")
    )
    answer = _in_node("wasm", directory, file=file, data=data, ids=ids, n=n, ends=end_ids(directory))
    return _before_end(directory, list(answer["generated"]))


def _before_end(directory: Path, generated: list[int]) -> list[int]:
    """transformers.js returns the end id too, GenAI does not."""
    ends = end_ids(directory)
    return generated[: next((place for place, each in enumerate(generated) if each in ends), None)]


def _in_node(task: str, directory: Path, **request: Any) -> Any:
    """The answer of generate.mjs."""
    body = json.dumps({"task": task, "directory": str(directory.resolve()), **request})
    ran = subprocess.run(
        [node(), _SCRIPT, packages()], input=body, capture_output=True, encoding="utf-8", timeout=_TIMEOUT_S,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout)
