"""Decoders as ONNX beside transformers in torch: every variant of the config that the graph has a branch for."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.parity import OPTIONS, TOKENS, emit, no_progress, torch_logits, worst_difference
from support.tiny_models import make_tiny

from exporter.checkpoint import resolve
from runtime.errors import ModelError, UnsupportedError, UserError
from runtime.sessions import open_session
from targets import get_target
from targets.base import EmitOptions
from targets.onnx import plan as plan_module
from targets.onnx.mobile import load_graph

if TYPE_CHECKING:
    from pathlib import Path

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"tied": False}),
    ("llama", {"num_key_value_heads": 1}),
    ("llama", {"head_dim": 32}),
    ("llama", {"public_config": True}),
    ("llama3", {"public_config": True}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}}),
    ("llama", {"rope_parameters": YARN}),
    ("llama", {"rope_parameters": {**YARN, "attention_factor": 0.7, "beta_fast": 16, "beta_slow": 2}}),
    ("mistral", {"sliding_window": 16}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    ("qwen3", {"tied": False}),
    ("gemma3", {"public_config": True}),
    ("gemma3", {"final_logit_softcapping": 5.0}),
    ("gemma3", {"query_pre_attn_scalar": 48}),
]


@pytest.mark.parametrize(("family", "options"), VARIANTS, ids=lambda value: str(value)[:60])
def test_logits_are_those_of_torch(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    source = make_tiny(family, tmp_path / "model", **options)
    (tmp_path / "out").mkdir()
    assert worst_difference(source, emit(source, tmp_path / "out", "onnx")) <= 1e-5


def session_of(directory: Path, file: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(directory / file), options, providers=["CPUExecutionProvider"])


def feeds(session: Any, ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    past = {
        value.name: np.zeros((len(ids), value.shape[1], 0, value.shape[3]), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past")
    }
    return {"input_ids": ids, "attention_mask": mask, **past}


def test_a_batch_padded_on_the_right_is_each_of_its_rows(tiny_llama: Path, tmp_path: Path) -> None:
    session = session_of(tmp_path, emit(tiny_llama, tmp_path, "onnx").entry)
    long, short = TOKENS[:12], TOKENS[20:27]
    ids = np.array([long, short + [0] * 5], np.int64)
    mask = np.array([[1] * 12, [1] * 7 + [0] * 5], np.int64)
    logits = session.run(["logits"], {**feeds(session, ids, mask), "num_logits_to_keep": np.array([0], np.int64)})[0]
    for row, tokens in enumerate((long, short)):
        expected = torch_logits(tiny_llama, tokens)
        scale = np.abs(expected).max()
        assert np.abs(logits[row, : len(tokens)] - expected).max() <= 1e-5 * scale


def test_logits_of_the_last_position_unless_more_are_asked_for(tiny_llama: Path, tmp_path: Path) -> None:
    session = session_of(tmp_path, emit(tiny_llama, tmp_path, "onnx").entry)
    ids = np.array([TOKENS[:10]], np.int64)
    given = feeds(session, ids, np.ones_like(ids))
    assert "num_logits_to_keep" not in [value.name for value in session.get_inputs()]
    whole = session.run(["logits"], {**given, "num_logits_to_keep": np.array([0], np.int64)})[0]
    three = session.run(["logits"], {**given, "num_logits_to_keep": np.array([3], np.int64)})[0]
    last = session.run(["logits"], given)[0]
    assert (whole.shape[1], three.shape[1], last.shape[1]) == (10, 3, 1)
    np.testing.assert_array_equal(three[0], whole[0, -3:])
    np.testing.assert_array_equal(last[0], whole[0, -1:])


def test_greedy_tokens_are_those_of_transformers(tiny_any: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_any, dtype=torch.float32).eval()
    ids = torch.tensor([TOKENS[:9]])
    with torch.no_grad():
        whole = model.generate(ids, max_new_tokens=24, min_new_tokens=24, do_sample=False, num_beams=1)[0].tolist()
    session = open_session(emit(tiny_any, tmp_path, "onnx"), OPTIONS)
    session.prefill(whole[:9])
    found = []
    for expected in whole[9:]:
        logits = session.last_logits()
        top = np.sort(logits)[-2:]
        # Ends are barred from torch's choice by min_new_tokens; a near tie may go either way.
        found.append(expected if top[1] - logits[expected] < 1e-4 * np.abs(logits).max() else int(logits.argmax()))
        session.decode(expected)
    session.close()
    ends = set(np.atleast_1d(model.generation_config.eos_token_id or -1).tolist())
    assert [a for a, b in zip(found, whole[9:], strict=True) if a not in ends] == [
        b for a, b in zip(found, whole[9:], strict=True) if a not in ends
    ]


def test_a_tied_table_is_on_disk_once_and_nothing_overlaps(tiny_llama: Path, tmp_path: Path) -> None:
    artifact = emit(tiny_llama, tmp_path, "onnx", "int4")
    graph = load_graph(artifact.entry_path).graph
    places = {}
    for tensor in graph.initializer:
        if tensor.external_data:
            entry = {item.key: item.value for item in tensor.external_data}
            places[tensor.name] = (int(entry["offset"]), int(entry["length"]))
    assert places.pop("embeddings.rows") == places["embed_tokens.codes"]
    ends = 0
    for offset, length in sorted(places.values()):
        assert offset >= ends
        assert offset % 64 == 0
        assert offset - ends < 64
        ends = offset + length
    assert (tmp_path / f"{artifact.entry}_data").stat().st_size == ends


def test_weights_over_the_limit_of_a_file_are_split_and_load(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "LARGEST_DATA_FILE", 200_000)
    artifact = emit(tiny_llama, tmp_path, "onnx")
    data = [name for name in artifact.files if "_data" in name]
    assert data[:2] == ["onnx/model.onnx_data", "onnx/model.onnx_data_1"]
    assert artifact.contract["model_files"] == ["onnx/model.onnx", *data]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["transformers.js_config"]["use_external_data_format"] == {"model.onnx": len(data)}
    assert worst_difference(tiny_llama, artifact) <= 1e-5
    monkeypatch.setattr(plan_module, "LARGEST_DATA_FILE", 1000)
    with pytest.raises(UnsupportedError, match=r"embed_tokens\.weight takes \d+ bytes, a file holds 1000; use"):
        get_target("onnx").check(resolve(str(tiny_llama)), EmitOptions("fp32"))


@pytest.mark.parametrize(
    ("change", "quant", "said"),
    [
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            "fp32",
            "rope_type: 'dynamic' is not supported",
        ),
        ({"hidden_act": "relu"}, "fp32", "config.json: hidden_act: 'relu' is not supported"),
        ({"head_dim": 20, "num_attention_heads": 4}, "fp32", "a head is 20 wide"),
        ({"quantization_config": {"quant_method": "gptq"}}, "int4", "quantized already"),
        ({"num_hidden_layers": 3}, "int4", "model.layers.2.self_attn.q_proj.weight: is missing"),
    ],
)
def test_what_cannot_be_exported_is_found_before_weights_load(
    change: dict[str, Any], quant: str, said: str, tiny_llama: Path, tmp_path: Path
) -> None:
    source = tmp_path / "model"
    shutil.copytree(tiny_llama, source)
    path = source / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    problems = get_target("onnx").check(resolve(str(source)), EmitOptions(quant))
    assert any(said in str(problem) for problem in problems), problems


def test_a_table_that_does_not_divide_into_blocks_is_refused_for_block_presets_only(tmp_path: Path) -> None:
    facts = resolve(str(make_tiny("llama", tmp_path / "m", hidden=72, head_dim=16)))
    (problem,) = get_target("onnx").check(facts, EmitOptions("int4"))
    assert "rows of 72 do not divide into blocks of 16" in str(problem)
    assert get_target("onnx").check(facts, EmitOptions("fp16")) == []


def test_a_gguf_as_model_is_refused(tmp_path: Path, tiny_llama: Path) -> None:
    gguf = emit(tiny_llama, tmp_path, "gguf").entry_path
    (problem,) = get_target("onnx").check(resolve(str(gguf)), EmitOptions("int4"))
    assert "cannot be exported as ONNX" in str(problem)


def test_values_that_float16_cannot_hold_are_an_error_that_names_the_tensor(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    source = make_tiny("llama", tmp_path / "m", dtype="f32")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.tensor(1e6)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight: holds values that float16 cannot"):
        get_target("onnx").emit(resolve(str(source)), EmitOptions("fp16"), tmp_path / "out", no_progress)


def test_a_session_refuses_what_does_not_fit(tiny_llama: Path, tmp_path: Path) -> None:
    import dataclasses

    artifact = emit(tiny_llama, tmp_path, "onnx", "int8")
    with pytest.raises(UserError, match="holds 2048 tokens of context, not 4096"):
        open_session(artifact, dataclasses.replace(OPTIONS, context=4096))
    with pytest.raises(UserError, match="--no-mmap"):
        open_session(artifact, dataclasses.replace(OPTIONS, mmap=False))
    session = open_session(artifact, dataclasses.replace(OPTIONS, context=16))
    try:
        session.prefill(TOKENS[:10])
        one = session.last_logits()
        with pytest.raises(Exception, match="7 tokens do not fit: the context of 16 holds 10 already"):
            session.prefill(TOKENS[:7])
        with pytest.raises(Exception, match="token 99999 is outside the vocabulary"):
            session.decode(99999)
        session.reset()
        for token in TOKENS[:10]:
            session.decode(token)
        np.testing.assert_allclose(session.last_logits(), one, atol=0.02 * np.abs(one).max())
        assert set(session.memory_bytes()) == {"weights", "weights_mapped", "kv_cache", "compute"}
    finally:
        session.close()
