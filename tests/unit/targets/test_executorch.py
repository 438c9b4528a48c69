"""ExecuTorch programs beside transformers, and the files that they lie in."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import shutil
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from support.parity import OPTIONS, TOKENS, emit, no_progress, torch_logits, worst_difference
from support.tiny_encoders import FAMILIES, make_tiny_bert, make_tiny_encoder, torch_outputs

from exporter.checkpoint import resolve
from runtime.errors import EngineError, UnsupportedError, UserError
from runtime.sessions import open_session
from targets import get_target
from targets.base import EmitOptions
from targets.executorch import lower
from targets.pytorch.groups import GroupGrid

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from runtime.artifact import Artifact

IDS = [2, 10, 40, 60, 61, 62, 3]
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
# Of one layer: an export takes 20 seconds for two, and the contract's test has two of every family.
VARIANTS = {
    "yarn, biases, untied": ("llama", {"rope_parameters": YARN, "attention_bias": True, "mlp_bias": True,
                                       "tied": False}),
    "odd heads": ("llama", {"head_dim": 20}),
    "softcap": ("gemma3", {"final_logit_softcapping": 10.0}),
    "window": ("mistral", {"sliding_window": 16}),
}  # fmt: skip


def emit_into(source: Path, out: Path, preset: str) -> Artifact:
    out.mkdir()
    return emit(source, out, "executorch", preset)


@pytest.fixture(scope="module")
def decoder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """One for all that only read it: an export takes 20 seconds."""
    return emit(tiny_llama, tmp_path_factory.mktemp("decoder"), "executorch")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """As `decoder`; its source, with two layers and the mean of their states, lies beside it."""
    room = tmp_path_factory.mktemp("encoder")
    return emit_into(make_tiny_bert(room / "source"), room / "out", "fp32")


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_decoders(name: str, tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    family, options = VARIANTS[name]
    directory = tiny_model_dir(family, layers=1, **options)
    assert worst_difference(directory, emit(directory, tmp_path, "executorch")) <= 1e-5


@pytest.mark.parametrize(("preset", "limit"), [("int8", 0.1), ("8da4w", 0.5)])
def test_rounded_presets_stay_close(preset: str, limit: float, tiny_llama: Path, tmp_path: Path) -> None:
    artifact = emit(tiny_llama, tmp_path, "executorch", preset)
    assert 1e-6 < worst_difference(tiny_llama, artifact) <= limit
    assert artifact.contract["tensors"].get("int4", 0) == (0 if preset == "int8" else 6)


# The heads are those of TorchScript, tested there on every family: here once each, and of one layer, for an export
# takes 20 seconds for two.
@pytest.mark.parametrize(("task", "family"), [
    *(("feature-extraction", family) for family in FAMILIES),
    ("text-classification", "Roberta"), ("text-classification", "DistilBert"), ("token-classification", "Bert"),
])  # fmt: skip
def test_encoders(task: str, family: str, tmp_path: Path) -> None:
    layers = {"n_layers" if family == "DistilBert" else "num_hidden_layers": 1}
    source = make_tiny_encoder(tmp_path / "source", family, task, **layers)
    session = open_session(emit_into(source, tmp_path / "out", "fp32"), OPTIONS)
    for ids in (IDS, IDS[:3], IDS * 4):
        found = session.encode(ids)[session.outputs[0]]  # type: ignore[attr-defined]
        expected = torch_outputs(source, np.array([ids]), np.ones((1, len(ids)), np.int64))[session.outputs[0]][0]  # type: ignore[attr-defined]
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    session.close()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_embeddings_are_pooled_and_of_length_one(pooling: str, encoder: Artifact, tmp_path: Path) -> None:
    source, artifact = encoder.root.with_name("source"), encoder
    if pooling != "mean":
        source = make_tiny_bert(tmp_path / "source", pooling=pooling)
        artifact = emit_into(source, tmp_path / "out", "fp32")
    session = open_session(artifact, OPTIONS)
    found = session.encode(IDS)  # type: ignore[attr-defined]
    session.close()
    states = torch_outputs(source, np.array([IDS]), np.ones((1, len(IDS)), np.int64))["last_hidden_state"][0]
    expected = states.mean(axis=0) if pooling == "mean" else states[0]
    np.testing.assert_allclose(found["sentence_embedding"], expected / np.linalg.norm(expected), atol=1e-5)


def test_padding_and_kinds_of_tokens_count(encoder: Artifact) -> None:
    assert encoder.contract["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]
    session = open_session(encoder, OPTIONS)
    row = torch.tensor([IDS])
    ones, zeros = torch.ones_like(row), torch.zeros_like(row)
    call = session._call  # type: ignore[attr-defined]
    plain, other = call(row, ones, zeros)[0], call(row, ones, ones)[0]
    padded = call(torch.nn.functional.pad(row, (0, 3)), torch.nn.functional.pad(ones, (0, 3)),
                  torch.nn.functional.pad(zeros, (0, 3)))[0]  # fmt: skip
    session.close()
    assert not torch.allclose(plain, other)
    torch.testing.assert_close(padded[:, : len(IDS)], plain, atol=1e-5, rtol=1e-5)


def test_int8_of_an_encoder(tmp_path: Path) -> None:
    source = make_tiny_bert(tmp_path / "source")
    session = open_session(emit_into(source, tmp_path / "out", "int8"), OPTIONS)
    found = session.encode(IDS)["last_hidden_state"].ravel()  # type: ignore[attr-defined]
    session.close()
    ids = np.array([IDS])
    expected = torch_outputs(source, ids, np.ones_like(ids))["last_hidden_state"].ravel()
    cosine = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
    assert 0.99 < cosine < 0.9999999


def test_pieces_of_a_prompt_are_the_prompt(tiny_llama: Path, decoder: Artifact) -> None:
    session = open_session(decoder, dataclasses.replace(OPTIONS, batch=5))
    session.prefill(TOKENS)
    expected = torch_logits(tiny_llama, TOKENS)[-1]
    assert np.abs(session.last_logits() - expected).max() <= 1e-5 * np.abs(expected).max()
    assert session.greedy() == expected.argmax()
    assert session.memory_bytes()["kv_cache"] == session._artifact.contract["kv_bytes"]  # type: ignore[attr-defined]
    session.close()


def test_the_cache_has_the_tokens_that_were_asked_for(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    facts, target = resolve(str(tiny_model_dir("llama", layers=1))), get_target("executorch")
    artifact = target.emit(facts, EmitOptions("fp32", context=32), tmp_path, no_progress)
    assert artifact.context_length == 32
    session = open_session(artifact, dataclasses.replace(OPTIONS, context=32))
    session.prefill(TOKENS[:32])
    with pytest.raises(EngineError, match="tokens do not fit"):
        session.decode(5)
    session.close()
    with pytest.raises(UserError, match="holds 32 tokens of context, not 64"):
        open_session(artifact, OPTIONS)
    (problem,) = target.check(facts, EmitOptions("fp32", context=1 << 20))
    assert "--context" in str(problem)
    assert "choose --context" in str(problem)


def test_without_executorch_one_line_says_how_to_install_it(
    tiny_llama: Path, decoder: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    install = r"pip install 'packlight\[executorch\]'"
    with pytest.raises(UserError, match=install):
        get_target("executorch").check(resolve(str(tiny_llama)), EmitOptions("fp32"))
    with pytest.raises(EngineError, match=install):
        open_session(decoder, OPTIONS)


def test_what_cannot_be_done_is_one_line(tiny_llama: Path, decoder: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="for executorch; known: fp32, int8, 8da4w"):
        get_target("executorch").check(resolve(str(tiny_llama)), EmitOptions("q4_k_m"))
    shutil.copytree(decoder.root, tmp_path / "copy")
    artifact = dataclasses.replace(decoder, root=tmp_path / "copy")
    with pytest.raises(UserError, match="leave out --no-mmap"):
        open_session(artifact, dataclasses.replace(OPTIONS, mmap=False))
    session = open_session(artifact, OPTIONS)
    with pytest.raises(EngineError, match="no logits before"):
        session.last_logits()
    with pytest.raises(EngineError, match="outside the vocabulary"):
        session.prefill([1 << 20])
    session.close()
    artifact.entry_path.write_bytes(b"nothing")
    with pytest.raises(EngineError, match=r"model\.pte: ExecuTorch cannot load it: .+"):
        open_session(artifact, OPTIONS)


def test_a_text_longer_than_the_encoder_is_one_line(encoder: Artifact) -> None:
    session = open_session(encoder, OPTIONS)
    with pytest.raises(EngineError, match="65 tokens are more than the 64 that the model takes"):
        session.encode([5] * 65)  # type: ignore[attr-defined]
    session.close()


def test_groups_of_four_bits_have_positive_scales_and_a_small_error() -> None:
    rows = np.random.default_rng(0).standard_normal((8, 128)).astype(np.float32)
    rows[3, 32:64] = 0
    grid = GroupGrid(32)
    parts = grid.parts(grid.rounded(rows))
    codes, scales = parts.codes.astype(np.int8) - np.int8(8), parts.scales
    assert (int(codes.min()), int(codes.max())) == (-8, 7)
    assert bool((scales > 0).all())
    assert np.array_equal(scales, torch.from_numpy(scales).to(torch.bfloat16).float().numpy())
    back = codes.reshape(8, 4, 32) * scales[..., None]
    wide = np.abs(rows.reshape(8, 4, 32)).max(-1, keepdims=True) / 7
    plain = np.clip(np.rint(rows.reshape(8, 4, 32) / np.where(wide == 0, 1, wide)), -8, 7) * wide
    error = float(((back - rows.reshape(8, 4, 32)) ** 2).mean())
    assert 0 < error < 0.95 * float(((plain - rows.reshape(8, 4, 32)) ** 2).mean())


def test_what_no_pass_has_changed_is_traced_once(
    tiny_model_dir: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same bytes as ExecuTorch, which traces every graph behind every pass."""
    with lower.quiet():
        from executorch.exir.pass_base import ExportPass

    made = {}
    for name in ("once", "always"):
        if name == "always":
            monkeypatch.setattr(lower, "traced_once", contextlib.nullcontext)
        traced, trace = [], ExportPass.call_submodule

        def counting(
            self: ExportPass, *of: object, traced: list[str] = traced, trace: Callable[..., object] = trace
        ) -> object:
            traced.append(type(self).__name__)
            return trace(self, *of)

        with monkeypatch.context() as patch:
            patch.setattr(ExportPass, "call_submodule", counting)
            found = emit_into(tiny_model_dir("llama", layers=1), tmp_path / name, "8da4w")
        made[name] = (found.entry_path.read_bytes(), Counter(traced))
    assert made["once"][0] == made["always"][0]
    for name in ("FuseBatchNormPass", "DecomposeConcatenate", "PReLUReshapePass"):
        assert made["always"][1][name] > made["once"][1][name] == 0
    assert made["once"][1]["ConstPropPass"] == made["always"][1]["ConstPropPass"] > 0  # it looks while it traces
