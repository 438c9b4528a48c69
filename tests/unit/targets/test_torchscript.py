"""TorchScript modules beside transformers, and the files that they lie in."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from support.parity import OPTIONS, TOKENS, emit, no_progress, worst_difference
from support.tiny_encoders import FAMILIES, make_tiny_bert, make_tiny_encoder, padded, torch_outputs

from exporter.checkpoint import resolve
from runtime.errors import EngineError, UnsupportedError, UserError
from runtime.sessions import open_session
from targets import get_target
from targets.base import EmitOptions
from targets.torchscript.layers import Int4Linear, Int8Linear
from targets.torchscript.presets import PRESETS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from runtime.artifact import Artifact

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated:DeprecationWarning")
IDS = [2, 10, 40, 60, 61, 62, 3]
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
VARIANTS = {
    "yarn": ("llama", {"rope_parameters": YARN}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "untied": ("llama", {"tied": False}),
    "wide heads": ("llama", {"head_dim": 32}),
    "odd heads": ("llama", {"head_dim": 20}),
    "softcap": ("gemma3", {"final_logit_softcapping": 10.0}),
    "window": ("mistral", {"sliding_window": 16}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_decoders(name: str, tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    family, options = VARIANTS[name]
    directory = tiny_model_dir(family, **options)
    assert worst_difference(directory, emit(directory, tmp_path, "torchscript")) <= 1e-5


@pytest.mark.parametrize(("preset", "limit"), [("bf16", 0.05), ("int8", 0.05), ("int4", 0.4)])
def test_rounded_presets_stay_close(preset: str, limit: float, tiny_llama: Path, tmp_path: Path) -> None:
    difference = worst_difference(tiny_llama, emit(tiny_llama, tmp_path, "torchscript", preset))
    assert 1e-6 < difference <= limit


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", ["feature-extraction", "text-classification", "token-classification"])
def test_encoders_in_padded_batches(family: str, task: str, tmp_path: Path) -> None:
    source = make_tiny_encoder(tmp_path / "source", family, task)
    out = tmp_path / "out"
    out.mkdir()
    artifact = emit(source, out, "torchscript")
    ids, mask = padded([[5, 9, 11, 8, 7], [5, 20, 7]], 0 if family in ("Bert", "DistilBert") else 1)
    expected = torch_outputs(source, ids, mask)[artifact.contract["outputs"][0]]
    (found,) = torch.jit.load(str(artifact.entry_path))(torch.tensor(ids), torch.tensor(mask))
    rows = mask.astype(bool) if expected.ndim == 3 else slice(None)
    assert np.abs(found.numpy()[rows] - expected[rows]).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_embeddings_are_pooled_and_of_length_one(pooling: str, tmp_path: Path) -> None:
    source = make_tiny_bert(tmp_path / "source", pooling=pooling)
    artifact = emit_into(source, tmp_path / "out", "fp32")
    session = open_session(artifact, OPTIONS)
    found = session.encode(IDS)  # type: ignore[attr-defined]
    session.close()
    states = torch_outputs(source, np.array([IDS]), np.ones((1, len(IDS)), np.int64))["last_hidden_state"][0]
    expected = states.mean(axis=0) if pooling == "mean" else states[0]
    np.testing.assert_allclose(found["sentence_embedding"], expected / np.linalg.norm(expected), atol=1e-5)


def test_kinds_of_tokens_count_where_they_are_given(tmp_path: Path) -> None:
    artifact = emit_into(make_tiny_bert(tmp_path / "source"), tmp_path / "out", "fp32")
    module, ids = torch.jit.load(str(artifact.entry_path)), torch.tensor([IDS])
    mask = torch.ones_like(ids)
    plain, zeros, ones = (module(ids, mask, kinds)[0] for kinds in (None, torch.zeros_like(ids), mask))
    assert torch.equal(plain, zeros)
    assert not torch.allclose(plain, ones)


def test_dynamic_int8_of_an_encoder(tmp_path: Path) -> None:
    artifact = emit_into(make_tiny_bert(tmp_path / "source"), tmp_path / "out", "dynamic-int8")
    assert artifact.contract["quantized_engine"] in torch.backends.quantized.supported_engines
    session = open_session(artifact, OPTIONS)
    found = session.encode(IDS)["last_hidden_state"].ravel()  # type: ignore[attr-defined]
    session.close()
    ids = np.array([IDS])
    expected = torch_outputs(tmp_path / "source", ids, np.ones_like(ids))["last_hidden_state"].ravel()
    cosine = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
    assert 0.99 < cosine < 0.9999999


@pytest.mark.parametrize(("arch", "engines"), [("aarch64", ["qnnpack"]), ("x86_64", ["x86", "fbgemm"])])
def test_the_engine_is_that_of_the_processor_it_is_for(arch: str, engines: list[str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    facts = resolve(str(make_tiny_bert(tmp_path / "source")))
    options = EmitOptions("dynamic-int8", 2, arch=arch)
    artifact = get_target("torchscript").emit(facts, options, tmp_path / "out", no_progress)
    assert artifact.contract["quantized_engine"] in engines


@pytest.mark.parametrize(("arch", "engines"), [("aarch64", "qnnpack"), ("x86_64", "x86, fbgemm")])
def test_an_engine_that_this_build_cannot_pack_for_is_a_problem_before_the_export(
    arch: str, engines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", ["onednn"])
    facts = resolve(str(make_tiny_bert(tmp_path / "source")))
    (problem,) = get_target("torchscript").check(facts, EmitOptions("dynamic-int8", 2, arch=arch))
    assert str(problem) == (
        f"--quant dynamic-int8: this build of torch has none of the engines {engines}; use --quant fp32 or bf16"
    )
    assert get_target("torchscript").check(facts, EmitOptions("fp32", 2, arch=arch)) == []


def test_an_engine_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    artifact = emit_into(make_tiny_bert(tmp_path / "source"), tmp_path / "out", "dynamic-int8")
    foreign = dataclasses.replace(artifact, contract={**artifact.contract, "quantized_engine": "xnnpack"})
    with pytest.raises(EngineError, match=r"needs torch's engine xnnpack, this build has .*export the model again"):
        open_session(foreign, OPTIONS)


def test_more_tokens_than_it_holds_are_one_line(tiny_llama: Path, tmp_path: Path) -> None:
    artifact = emit(tiny_llama, tmp_path, "torchscript")
    module = torch.jit.load(str(artifact.entry_path))
    with pytest.raises(torch.jit.Error, match="holds fewer tokens"):
        module(torch.tensor([[1, 2, 3]]), module.new_cache(2), 0)
    session = open_session(artifact, OPTIONS)
    session.prefill(TOKENS)
    with pytest.raises(EngineError, match="tokens do not fit"):
        session.prefill(TOKENS)
    session.close()
    with pytest.raises(UserError, match="tokens of context"):
        open_session(artifact, dataclasses.replace(OPTIONS, context=1 << 20))


def test_a_text_longer_than_the_encoder_is_one_line(tmp_path: Path) -> None:
    artifact = emit_into(make_tiny_bert(tmp_path / "source"), tmp_path / "out", "fp32")
    session = open_session(artifact, OPTIONS)
    with pytest.raises(EngineError, match="65 tokens are more than the 64 that the model takes"):
        session.encode([5] * 65)  # type: ignore[attr-defined]
    session.close()


@pytest.mark.parametrize(("format_name", "file"), [("torchscript", "model.pt"), ("ptl", "model.ptl")])
def test_a_file_that_is_not_a_module_is_one_line(format_name: str, file: str, tiny_llama: Path, tmp_path: Path) -> None:
    artifact = emit(tiny_llama, tmp_path, format_name)
    artifact.entry_path.write_bytes(b"nothing")
    with pytest.raises(EngineError, match=rf"{file}: torch cannot load it: .+"):
        open_session(artifact, OPTIONS)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_lite_interpreter_computes_the_same(preset: str, tiny_llama: Path, tmp_path: Path) -> None:
    logits = []
    for format_name in ("torchscript", "ptl"):
        (tmp_path / format_name).mkdir()
        session = open_session(emit(tiny_llama, tmp_path / format_name, format_name, preset), OPTIONS)
        logits.append(session.all_logits(TOKENS))
        session.close()
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize("preset", ["fp32", "dynamic-int8"])
def test_the_lite_interpreter_reads_texts(preset: str, tmp_path: Path) -> None:
    source, states = make_tiny_bert(tmp_path / "source"), []
    for format_name in ("torchscript", "ptl"):
        session = open_session(emit_into(source, tmp_path / format_name, preset, format_name), OPTIONS)
        states.append(session.encode(IDS)["last_hidden_state"])  # type: ignore[attr-defined]
        session.close()
    np.testing.assert_array_equal(*states)


def test_a_torch_without_the_lite_interpreter_is_a_problem(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("targets.torchscript.lite_target.INTERPRETER", "torch.jit.nothing")
    (problem,) = get_target("ptl").check(resolve(str(tiny_llama)), EmitOptions("fp32"))
    assert str(problem) == "--format ptl: this torch has no lite interpreter; use --format torchscript"


def test_operators_and_bytecode_of_a_lite_module_are_named(tiny_llama: Path, tmp_path: Path) -> None:
    artifact = emit(tiny_llama, tmp_path, "ptl", "int8")
    names = (artifact.root / "operators.yaml").read_text(encoding="utf-8").splitlines()
    assert {"- aten::_weight_int8pack_mm", "- aten::scaled_dot_product_attention"} <= set(names)
    assert names == sorted(names)
    assert artifact.contract["bytecode"] >= 7


def test_it_loads_without_transformers_and_without_us(tiny_llama: Path, tmp_path: Path) -> None:
    artifact = emit(tiny_llama, tmp_path, "torchscript", "int4")
    code = (
        "import sys, torch; m = torch.jit.load(sys.argv[1]); "
        "print(m(torch.tensor([[1, 2]]), m.new_cache(4), 0)[0].shape[2]); "
        "print([n for n in sys.modules if n.split('.')[0] in ('transformers', 'targets', 'exporter', 'runtime')])"
    )
    run = [sys.executable, "-I", "-c", code, str(artifact.entry_path)]
    lines = subprocess.run(run, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.split()
    assert lines == [str(artifact.contract["n_vocab"]), "[]"]


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Within what bfloat16 inputs and results cost, a few thousandths of the largest."""
    return float((found - expected).abs().max() / expected.abs().max()) < 0.01


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_int8_product_is_that_of_its_weights(rows: int) -> None:
    torch.manual_seed(0)
    codes, scales = torch.randint(-127, 128, (48, 64), dtype=torch.int8), torch.rand(48)
    x, bias = torch.randn(2, rows, 64), torch.randn(48)
    assert close(Int8Linear(codes, scales, bias)(x), x @ (codes.float() * scales[:, None]).T + bias)


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_int4_product_is_that_of_its_weights(rows: int) -> None:
    torch.manual_seed(0)
    codes, scales, zeros = torch.randint(0, 16, (48, 64)), torch.rand(48, 2), torch.randint(0, 16, (48, 2))
    scales = scales.bfloat16().float()
    weight = ((codes.view(48, 2, 32) - zeros[..., None]) * scales[..., None]).reshape(48, 64)
    nibbles = (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8)
    both = torch.stack((scales, (8 - zeros) * scales), -1).permute(1, 0, 2).contiguous().bfloat16()
    x, bias = torch.randn(2, rows, 64), torch.randn(48)
    assert close(Int4Linear(nibbles, both, bias, 32)(x), x @ weight.T + bias)


@pytest.mark.parametrize(
    ("hidden", "counts"), [(64, {"int8": 9, "int4": 6}), (48, {"int8": 15})], ids=["divides", "does not divide"]
)
def test_a_matrix_that_four_bits_cannot_hold_takes_eight_and_is_counted_so(
    hidden: int, counts: dict[str, int], tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    directory = tiny_model_dir("llama", hidden=hidden)
    assert emit(directory, tmp_path, "torchscript", "int4").contract["tensors"] == counts


def test_unknown_presets_are_listed(tiny_llama: Path) -> None:
    with pytest.raises(
        UnsupportedError, match=f"unknown quantization 'q4_0' for torchscript; known: {', '.join(PRESETS)}"
    ):
        get_target("torchscript").check(resolve(str(tiny_llama)), EmitOptions("q4_0"))


def emit_into(source: Path, out: Path, preset: str, format_name: str = "torchscript") -> Artifact:
    """Export into a new directory."""
    out.mkdir()
    return get_target(format_name).emit(resolve(str(source)), EmitOptions(preset, 2), out, no_progress)
