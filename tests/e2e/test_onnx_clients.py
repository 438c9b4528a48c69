"""One exported ONNX directory in each of its clients: Python, GenAI, Node and WebAssembly, with equal answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support import clients

from benchmarks.models import minilm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.slow

N = 32
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
CHAT = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{{}}<|im_end|>\n<|im_start|>assistant\n"
PROMPTS = (
    CHAT.format("Who wrote Romeo and Juliet?"),
    CHAT.format("What is the chemical formula of water?"),
    "The days of the week are Monday, Tuesday,",
    "1, 2, 3, 4, 5, 6,",
    "A, B, C, D, E, F,",
    "January, February, March, April,",
    "def fibonacci(n):\n",
    "The capital of France is",
)
# Digits and a superscript that this tokenizer splits one by one, accents, an emoji, spaces, a special token.
TEXTS = (*PROMPTS, "x² + 3456 = 12³", "  naïve café — 東京 \t🙂\n\n", "a<|im_end|>b")
# Every client runs the same kernels on the same steps, the prompt at once and then token by token, so that their
# logits differ by the rounding of another version of ONNX Runtime at most. A token is compared where the best logit
# is further above the second than such a difference can be; after a nearer tie the texts may go apart.
TIE = {"int4": 0.1, "fp32": 0.01}

Export = tuple[str, Path]


def packlight_onnx(model: Path, quant: str, out: Path) -> Path:
    program = Path(sys.executable).with_name("packlight")
    command = [program, "export", model, "--format", "onnx", "--quant", quant, "--no-verify", "--no-measure", "-o", out]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stderr
    return out


@pytest.fixture(scope="module", params=TIE)
def exported(
    request: pytest.FixtureRequest, smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Export]:
    out = tmp_path_factory.mktemp("onnx-clients") / "out"
    yield request.param, packlight_onnx(smollm2_dir, request.param, out)
    clients.close()


@pytest.fixture(scope="module")
def encoded(smollm2_dir: Path) -> Callable[[str], list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(smollm2_dir / "tokenizer.json"))
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def until_a_tie(margins: list[float], tie: float) -> int:
    """How many tokens there are before the first that was nearly another."""
    return next((place for place, margin in enumerate(margins) if margin < tie), len(margins))


def test_greedy_tokens_are_equal_in_all_clients(exported: Export, encoded: Callable[[str], list[int]]) -> None:
    quant, directory = exported
    compared, prompts = 0, [encoded(prompt) for prompt in PROMPTS]
    in_node = clients.node_greedy(directory, prompts, N)
    for prompt, ids, answer in zip(PROMPTS, prompts, in_node, strict=True):
        expected, margins = clients.ort_steps(directory, ids, N)
        n = until_a_tie(margins, TIE[quant])
        assert clients.genai_greedy(directory, ids, N)[:n] == expected[:n], prompt
        assert answer[:n] == expected[:n], prompt
        compared += n
    # Ties do not make this test empty: counting on and the like has none.
    assert compared >= 3 * N


def test_browsers_engine_counts_on(exported: Export, encoded: Callable[[str], list[int]]) -> None:
    quant, directory = exported
    if quant == "fp32":
        pytest.skip("half a gigabyte held twice, one thread")
    # Its kernels round activations in another way: only a prompt whose every next token is certain is compared.
    ids = encoded("1, 2, 3, 4, 5, 6,")
    expected, margins = clients.ort_steps(directory, ids, 16)
    assert min(margins) > 1
    assert clients.wasm_greedy(directory, ids, 16) == expected


def test_tokenizers_and_chat_template_agree(exported: Export, encoded: Callable[[str], list[int]]) -> None:
    quant, directory = exported
    if quant == "fp32":
        pytest.skip("the same files as int4")
    for text, in_node in zip(TEXTS, clients.node_generate(directory, TEXTS, 1), strict=True):
        assert clients.genai_encode(directory, text) == encoded(text), text
        assert in_node["ids"] == encoded(text), text
    messages = [{"role": "user", "content": "Who wrote Romeo and Juliet?"}]
    assert clients.genai_template(directory, messages) == PROMPTS[0]
    assert clients.node_template(directory, messages) == PROMPTS[0]


def test_the_web_finds_its_file_without_being_told(exported: Export) -> None:
    _, directory = exported
    web = json.loads((directory / "config.json").read_text())["transformers.js_config"]
    file = directory / clients.entry(directory)
    suffix = {"fp32": "", "q4": "_q4"}[web["dtype"]]
    assert file.name == f"model{suffix}.onnx"
    assert [path.name for path in file.parent.iterdir() if path != file] == [f"{file.name}_data"]
    assert web["use_external_data_format"] == {file.name: 1}


def test_embeddings_in_node_equal_those_in_python(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    source = minilm()
    directory = packlight_onnx(source, "fp32", tmp_path / "out")
    tokenizer, model = AutoTokenizer.from_pretrained(source), AutoModel.from_pretrained(source).eval()
    for text in ("A happy person walks in the park.", "The stock market fell by 3.5 % on Monday, naïvely."):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        expected = torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy()
        np.testing.assert_allclose(clients.node_embed(directory, text), expected, atol=2e-6)
