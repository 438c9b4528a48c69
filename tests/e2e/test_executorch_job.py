"""ExecuTorch from end to end on the command line: SmolLM2 and MiniLM, and ExecuTorch's own runner."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.parity import torch_logits

from benchmarks.models import minilm, offgrid
from benchmarks.smollm2 import smollm2
from runtime.artifact import open_artifact
from runtime.measurement import RunOptions
from runtime.sessions import open_session

pytestmark = pytest.mark.slow
PROMPTS = (
    "The capital of France is", "def fibonacci(n):", "Water boils at", "Once upon a time, in a village by the sea,",
    "1, 1, 2, 3, 5, 8,", "A list of fruits:\n- apples\n-", "Dear Sir or Madam,", "E = mc", "naïve café résumé 東京",
    "import numpy as np\n\n" + "x = np.zeros((3, 4))\n" * 20,
)  # fmt: skip


def packlight(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("packlight")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=900, check=False)


def export(source: Path, out: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit status and the report by the lines' names."""
    ran = packlight("export", source, "--format", "executorch", "--trials", "1", "-o", out, "--json", *arguments)
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    assert "torchao" not in ran.stderr
    assert "Warning" not in ran.stderr
    return ran.returncode, {line["name"]: line for line in json.loads(ran.stdout)["lines"]}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2, off the grid, in 8 bits."""
    out = tmp_path_factory.mktemp("executorch") / "decoder"
    status, lines = export(offgrid(smollm2()), out, "--quant", "int8", "--context", "512")
    assert status == 0, lines
    assert lines["token ids"]["value"] == 0
    return out


@pytest.mark.parametrize("verb", [("measure",), ("check", "--max-memory", "1500MB"), ("verify",)])
def test_the_other_verbs(verb: tuple[str, ...], decoder: Path) -> None:
    against = ["--against", str(offgrid(smollm2()))] if verb[0] == "verify" else ["--context", "256", "--trials", "1"]
    ran = packlight(verb[0], decoder, *verb[1:], *against)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_executorchs_own_runner_generates_the_same(decoder: Path) -> None:
    artifact = open_artifact(decoder)
    session = open_session(artifact, RunOptions(threads=2, context=512))
    ids = session.tokenize(PROMPTS[0], add_special=True)
    session.prefill(ids)
    expected = []
    for _ in range(16):
        expected.append(session.greedy())
        session.decode(expected[-1])
    session.close()
    code = (
        "import sys; from executorch.extension.llm.custom_ops import custom_ops\n"
        "from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner\n"
        "runner = TextLLMRunner(sys.argv[1], sys.argv[2])\n"
        "config = GenerationConfig(max_new_tokens=16, temperature=0.0, echo=False)\n"
        "found = []\n"
        "runner.generate(sys.argv[3], config, found.append, None)\n"
        "print('=====' + ''.join(found))\n"
    )
    run = [sys.executable, "-W", "ignore", "-c", code, artifact.entry_path, decoder / "tokenizer.json", PROMPTS[0]]
    ran = subprocess.run(run, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    from tokenizers import Tokenizer

    text = Tokenizer.from_file(str(decoder / "tokenizer.json")).decode(expected)
    assert ran.stdout.split("=====")[1].strip() == text.strip()


def test_floats_give_the_logits_of_eager_torch(tmp_path: Path) -> None:
    source = offgrid(smollm2())
    status, lines = export(source, tmp_path / "out", "--quant", "fp32", "--context", "512")
    assert status == 0, lines
    session = open_session(open_artifact(tmp_path / "out"), RunOptions(threads=2, context=512))
    for prompt in PROMPTS:
        ids = session.tokenize(prompt, add_special=True)
        expected = torch_logits(source, ids)
        session.reset()
        session.prefill(ids[:-1])
        before = session.last_logits()
        session.decode(ids[-1])
        assert np.abs(before - expected[-2]).max() <= 1e-4
        assert np.abs(session.last_logits() - expected[-1]).max() <= 1e-4
    session.close()


def test_four_bits(tmp_path: Path) -> None:
    status, lines = export(offgrid(smollm2()), tmp_path / "out", "--quant", "8da4w", "--context", "512", "--no-measure")
    assert 0.05 < lines["KL divergence"]["value"] < 0.25
    assert status == any(line["ok"] is False for line in lines.values())


@pytest.mark.parametrize(("quant", "least"), [("fp32", 0.999999), ("int8", 0.99)])
def test_an_encoder(quant: str, least: float, tmp_path: Path) -> None:
    status, lines = export(minilm(), tmp_path / "out", "--quant", quant)
    assert status == 0, lines
    assert lines["cosine"]["value"] >= least
