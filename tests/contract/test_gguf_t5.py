"""T5 and mT5 as GGUF: what the decoder says of a text, in llama.cpp beside torch's."""

from __future__ import annotations

import contextlib
import json
import subprocess
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from support.command_line import packlight
from support.nonsense import refused
from support.parity import emit, no_progress
from support.tiny_t5 import CASES, make_tiny_t5
from tokenizers import Tokenizer

from benchmarks.tools import tool
from exporter.checkpoint import resolve
from exporter.verify import VerifyOptions, verify
from exporter.verify.pair_reference import TransformersPair
from exporter.verify.parity import HARD_STRINGS
from runtime.artifact import open_artifact
from runtime.errors import EngineError, ModelError, UnsupportedError
from runtime.gguf_kind import PAIRS
from runtime.measurement import RunOptions
from runtime.sessions import open_session
from runtime.sessions.llamacpp_pair import LlamaCppPairSession
from targets.base import EmitOptions
from targets.drift import Drift
from targets.gguf.architectures import ARCHITECTURES
from targets.gguf.outline import outlines
from targets.gguf.target import GgufTarget

if TYPE_CHECKING:
    from pathlib import Path

EXACTLY = RunOptions(threads=1, context=64, kv_type="f32")
"""Without flash attention, which computes in f16."""
GENERATOR = np.random.default_rng(0)
IDS = [[int(token) for token in GENERATOR.integers(3, 190, length)] for length in (6, 24, 60)]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def types_of(path: Path) -> dict[str, str]:
    """The type of every tensor."""
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_source(name: str, tmp_path: Path) -> None:
    directory = make_tiny_t5(name, tmp_path / "model")
    (out := tmp_path / "out").mkdir()
    artifact = emit(directory, out)
    assert artifact.contract["task"] == "text2text-generation"
    reference = TransformersPair(directory, threads=1)
    session: Any
    with contextlib.closing(open_session(artifact, EXACTLY)) as session, contextlib.closing(reference):
        for ids in IDS:
            half = len(ids) // 2
            wanted, found = reference.logits(ids, half), session.all_logits(ids)[half:]
            assert found.shape == wanted.shape
            assert np.abs(found - wanted).max() <= CASES[name].limit * np.abs(wanted).max()
        # The same, a token at a time.
        session.prefill(ids[:half])
        greedy = session.greedy()
        assert greedy == int(session.last_logits().argmax())
        session.decode(ids[half])
        np.testing.assert_allclose(session.last_logits(), found[0], rtol=1e-4, atol=1e-5 * np.abs(found).max())
        for text in HARD_STRINGS:
            assert session.tokenize(text, add_special=True) == reference.tokenize(text, add_special=True), text


@pytest.mark.parametrize("name", ["t5", "mt5-hub"])
def test_every_tensor_matters(name: str, tmp_path: Path) -> None:
    """A tensor that changes nothing could be forgotten, and the parity test would not see it."""
    import torch

    reference = TransformersPair(make_tiny_t5(name, tmp_path), threads=1)
    before, generator = reference.logits(IDS[1], 12), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter_name, parameter in reference.model.named_parameters():
            kept = parameter.clone()
            parameter.add_(torch.randn(parameter.shape, generator=generator) * kept.abs().mean())
            moved = np.abs(reference.logits(IDS[1], 12) - before).max() / np.abs(before).max()
            assert moved > 1e-2, parameter_name
            parameter.copy_(kept)


def test_a_table_that_is_the_output_is_not_written_twice(tmp_path: Path) -> None:
    sizes = {}
    for name in ("t5", "t5-gated-hub"):
        (out := tmp_path / f"{name}-out").mkdir()
        artifact = emit(make_tiny_t5(name, tmp_path / name), out)
        sizes[name] = {tensor for tensor in types_of(artifact.entry_path) if "blk" not in tensor}
    assert sizes["t5"] == {"token_embd.weight", "enc.output_norm.weight", "dec.output_norm.weight"}
    assert sizes["t5-gated-hub"] == {*sizes["t5"], "output.weight"}


def test_an_artifact_is_verified_and_measured(tmp_path: Path) -> None:
    directory = make_tiny_t5("t5", tmp_path / "model")
    job = ("export", directory, "--quant", "q8_0", "-o", tmp_path / "out", "--chunks", "1",
           "--trials", "1", "--context", "64", "--prompt-tokens", "20", "--decode-tokens", "4", "--json")  # fmt: skip
    ran = packlight(*job)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    report = json.loads(ran.stdout)
    assert report["verdict"] == "met"
    assert report["drift"]["mean_kl"] < 0.05
    assert report["measurement"]["decode_tokens_per_s"]["median"] > 0
    assert any("no Modelfile" in note for note in report["notes"])
    assert "llama-completion" in (tmp_path / "out" / "README.md").read_text()
    assert not (tmp_path / "out" / "Modelfile").exists()


def test_a_gguf_is_a_source_and_another_model_is_found_out(tmp_path: Path) -> None:
    options = VerifyOptions(chunks=1, context=32, threads=1)
    directory = make_tiny_t5("t5", tmp_path / "model")
    (out := tmp_path / "out").mkdir()
    artifact = emit(directory, out)
    (bare := tmp_path / "bare").mkdir()
    artifact.entry_path.rename(bare / "m.gguf")
    assert open_artifact(bare / "m.gguf").contract == {"task": "text2text-generation"}
    (again := tmp_path / "again").mkdir()
    smaller = emit(bare / "m.gguf", again, preset="q4_0")
    found = verify(smaller, resolve(str(bare / "m.gguf")), options, no_progress)
    assert isinstance(found, Drift)
    assert 1e-6 < found.mean_kl < 0.1
    other = verify(smaller, resolve(str(make_tiny_t5("t5-hub", tmp_path / "hub"))), options, no_progress)
    assert isinstance(other, Drift)
    assert abs(other.mean_kl - found.mean_kl) < 1e-3  # the same weights
    wrong = verify(smaller, resolve(str(make_tiny_t5("t5-short-decoder", tmp_path / "short"))), options, no_progress)
    assert isinstance(wrong, Drift)
    assert wrong.mean_kl > 10 * found.mean_kl


def test_a_plan_has_bytes_and_no_guess(tmp_path: Path) -> None:
    directory = make_tiny_t5("t5-gated", tmp_path / "model")
    (out := tmp_path / "out").mkdir()
    artifact = emit(directory, out, preset="q4_k_m")
    (planned,) = outlines(resolve(str(directory)), ["q4_k_m"]).outlines
    assert planned.file_bytes == artifact.entry_path.stat().st_size
    assert planned.encoder  # of which no memory and no speed is known


@pytest.mark.parametrize("preset", ["q4_k_m", "q8_0", "iq4_xs", "q2_k"])
def test_types_are_llama_quantizes(preset: str, tmp_path: Path) -> None:
    (out := tmp_path / "out").mkdir()
    whole = emit(make_tiny_t5("t5-gated-hub", tmp_path / "model"), out).entry_path
    theirs = tmp_path / "theirs.gguf"
    ran = subprocess.run(
        [tool("llama-quantize"), whole, theirs, preset, "1"], capture_output=True, text=True, errors="replace",
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    (own := tmp_path / "own").mkdir()
    ours = emit(tmp_path / "model", own, preset=preset).entry_path
    assert types_of(ours) == types_of(theirs)


def test_llama_cpps_own_tool_says_the_same(tmp_path: Path) -> None:
    (out := tmp_path / "out").mkdir()
    artifact = emit(make_tiny_t5("t5", tmp_path / "model"), out)
    text = "a text for the encoder"
    session: Any
    with contextlib.closing(open_session(artifact, RunOptions(threads=1, context=64))) as session:
        session.prefill(session.tokenize(text, add_special=True))
        said = []
        for _ in range(6):
            said.append(session.greedy())
            session.decode(said[-1])
    ran = subprocess.run(
        [tool("llama-completion"), "-m", artifact.entry_path, "-p", text, "-n", "6", "--temp", "0", "-t", "1",
         "-c", "64", "-no-cnv", "--no-warmup", "--ignore-eos", "--no-display-prompt"],
        capture_output=True, text=True, errors="replace", timeout=60, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    decoded = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json")).decode(said)
    assert decoded.split() == ran.stdout.split()


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"num_decoder_layers": 3}, "num_decoder_layers"),
        ({"relative_attention_max_distance": 64}, "relative_attention_max_distance"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj"),
        ({"decoder_start_token_id": -1}, "decoder_start_token_id"),
        ({"decoder_start_token_id": 10**9}, "decoder_start_token_id"),
        ({"num_layers": 10**9}, "num_layers"),
        ({"num_decoder_layers": "x"}, "positive whole number"),
    ],
)
def test_what_llama_cpp_has_not_is_refused(entries: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = make_tiny_t5("t5", tmp_path) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    assert said in problems_of(tmp_path)


def problems_of(directory: Path) -> str:
    """All that a plan says of a model, one a line."""
    try:
        return "\n".join(map(str, GgufTarget().check(resolve(str(directory)), EmitOptions("f16"))))
    except (ModelError, UnsupportedError) as error:
        return str(error)


@pytest.mark.parametrize("name", ["t5", "mt5"])
def test_nonsense_in_config_json_is_one_error(name: str, tmp_path: Path) -> None:
    plain = json.loads((make_tiny_t5(name, tmp_path) / "config.json").read_text())
    architecture = ARCHITECTURES[plain["architectures"][0]]
    assert refused(architecture, plain, tmp_path) > len(plain)


def test_every_pair_has_a_tiny_model() -> None:
    families = {f"{case.family}ForConditionalGeneration" for case in CASES.values()}
    assert families == {name for name, entry in ARCHITECTURES.items() if entry.gguf in PAIRS}


def test_a_decoder_is_no_pair(tmp_path: Path) -> None:
    from support.tiny_architectures import make_tiny_architecture

    (out := tmp_path / "out").mkdir()
    artifact = emit(make_tiny_architecture("llama", tmp_path / "model"), out)
    with pytest.raises(EngineError, match="not both an encoder and a decoder"):
        LlamaCppPairSession.open(artifact, EXACTLY)
