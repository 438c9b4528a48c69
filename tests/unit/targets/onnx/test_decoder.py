"""Graphs of decoders beside torch: every variant of the families, batches, cached steps, greedy text."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.parity import OPTIONS, TOKENS, emit, torch_logits, worst_difference

from runtime.sessions import open_session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from runtime.artifact import Artifact

    Model = Callable[..., Path]

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
GEMMA_4B = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
OTHER_PATTERN = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("llama", {"rope_parameters": LINEAR}),
    "yarn": ("llama", {"rope_parameters": YARN}),
    "yarn with a factor": ("llama", {"rope_parameters": {**YARN, "attention_factor": 1.3}}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "untied": ("llama", {"tied": False}),
    "wide heads": ("llama", {"head_dim": 32}),
    "narrow heads": ("llama", {"head_dim": 16, "num_attention_heads": 8}),
    "one key head": ("llama", {"num_key_value_heads": 1}),
    "as many key heads": ("llama", {"num_key_value_heads": 4}),
    "stored in f16": ("llama", {"dtype": "f16"}),
    "public llama3": ("llama3", {"public_config": True}),
    "a window": ("mistral", {"sliding_window": 16}),
    "qwen2 untied": ("qwen2", {"tied": False}),
    "qwen2 yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen2 llama3": ("qwen2", {"rope_parameters": LLAMA3}),
    "qwen2 with a window from layer 1": (
        "qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1, "layers": 3},
    ),
    "qwen2 with a window that is off": ("qwen2", {"use_sliding_window": False, "sliding_window": 16}),
    "public qwen3": ("qwen3", {"public_config": True}),
    "public gemma3": ("gemma3", {"public_config": True}),
    "gemma3 linear": ("gemma3", {"rope_parameters": GEMMA_4B}),
    "gemma3 of another pattern": ("gemma3", {"layers": 4, "layer_types": OTHER_PATTERN}),
    "gemma3 of another scale": ("gemma3", {"query_pre_attn_scalar": 100}),
    "gemma3 with a softcap": ("gemma3", {"final_logit_softcapping": 10.0}),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_the_source(name: str, tiny_model_dir: Model, tmp_path: Path) -> None:
    family, options = VARIANTS[name]
    directory = tiny_model_dir(family, **options)
    assert worst_difference(directory, emit(directory, tmp_path, "onnx")) <= 1e-5


def test_a_window_is_seen(tiny_model_dir: Model) -> None:
    """What the tests of windows would miss: that 48 tokens of a model with a window of 16 need it."""
    plain, windowed = (tiny_model_dir("mistral", sliding_window=window) for window in (None, 16))
    difference = np.abs(torch_logits(plain, TOKENS) - torch_logits(windowed, TOKENS)).max(axis=1)
    assert difference[:16].max() < 1e-5
    assert difference[20:].min() > 1e-3


class Plain:
    """The graph in ONNX Runtime, as a client without packlight runs it."""

    def __init__(self, artifact: Artifact) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(artifact.entry_path), options, providers=["CPUExecutionProvider"]
        )
        self.past = {value.name: value for value in self.session.get_inputs() if value.name.startswith("past")}

    def empty(self, batch: int = 1) -> dict[str, np.ndarray]:
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        return {
            name: np.zeros((batch, value.shape[1], 0, value.shape[3]), kinds[value.type])
            for name, value in self.past.items()
        }

    def run(
        self, ids: list[list[int]], mask: list[list[int]], cache: dict[str, np.ndarray], keep: int | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        feeds = {"input_ids": np.array(ids), "attention_mask": np.array(mask), **cache}
        if keep is not None:
            feeds["num_logits_to_keep"] = np.array([keep])
        names = ["logits", *(name.replace("past_key_values", "present") for name in cache)]
        logits, *present = self.session.run(names, feeds)
        return logits, dict(zip(cache, present, strict=True))


@pytest.mark.parametrize("quant", ["fp32", "int4", "fp16"])
@pytest.mark.parametrize("tied", [True, False])
def test_how_many_positions_get_logits(quant: str, tied: bool, tiny_model_dir: Model, tmp_path: Path) -> None:
    plain = Plain(emit(tiny_model_dir("llama", tied=tied), tmp_path, "onnx", quant))
    ids, mask = [TOKENS[:9]], [[1] * 9]
    whole, _ = plain.run(ids, mask, plain.empty(), 0)
    assert whole.shape[:2] == (1, 9)
    assert whole.dtype == np.float32
    for keep, positions in ((None, 1), (1, 1), (3, 3), (9, 9), (100, 9)):
        found, _ = plain.run(ids, mask, plain.empty(), keep)
        assert found.shape[1] == positions
        np.testing.assert_allclose(found, whole[:, -positions:], atol=2e-2 if quant == "fp16" else 1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_a_padded_batch_is_its_rows(family: str, tiny_model_dir: Model, tmp_path: Path) -> None:
    directory = tiny_model_dir(family)
    plain = Plain(emit(directory, tmp_path, "onnx"))
    rows = [TOKENS[:20], TOKENS[20:33]]
    ids = [rows[0], rows[1] + [0] * 7]
    found, cache = plain.run(ids, [[1] * 20, [1] * 13 + [0] * 7], plain.empty(2), 0)
    for row, tokens in enumerate(rows):
        expected = torch_logits(directory, tokens)
        scale = np.abs(expected).max()
        assert np.abs(found[row, : len(tokens)] - expected).max() / scale <= 1e-5
    assert {value.shape[2] for value in cache.values()} == {20}


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma3"])
def test_cached_steps_are_the_whole(family: str, tiny_model_dir: Model, tmp_path: Path) -> None:
    options = {"sliding_window": 16} if family == "mistral" else {}
    directory = tiny_model_dir(family, **options)
    plain = Plain(emit(directory, tmp_path, "onnx"))
    expected = torch_logits(directory, TOKENS)
    cache, seen = plain.empty(), 0
    for step in (17, 1, 1, 5, 1, 12, 1, 10):  # prompts after a filled cache, too
        piece = TOKENS[seen : seen + step]
        logits, cache = plain.run([piece], [[1] * (seen + step)], cache, 0)
        difference = np.abs(logits[0] - expected[seen : seen + step]).max() / np.abs(expected).max()
        assert difference <= 1e-5, (seen, step)
        seen += step
    assert seen == len(TOKENS)
    assert {value.shape[2] for value in cache.values()} == {len(TOKENS)}


@pytest.mark.parametrize("family", ["llama", "llama3", "qwen2", "qwen3", "gemma3"])
def test_greedy_text_is_transformers(family: str, tiny_model_dir: Model, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    directory = tiny_model_dir(family)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with closing(open_session(emit(directory, tmp_path, "onnx"), OPTIONS)) as session:
        for prompt in (TOKENS[:5], TOKENS[7:30]):
            ids = torch.tensor([prompt])
            expected = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, min_new_tokens=32, do_sample=False,
                eos_token_id=None, pad_token_id=0, suppress_tokens=None,
            )[0, len(prompt) :].tolist()  # fmt: skip
            session.reset()
            session.prefill(prompt)
            found = [session.greedy()]
            while len(found) < 32:
                session.decode(found[-1])
                found.append(session.greedy())
            assert found == expected


def test_neighbours_of_one_scheme_are_one_product(tiny_llama: Path, tmp_path: Path) -> None:
    import onnx

    artifact = emit(tiny_llama, tmp_path, "onnx")
    model = onnx.load(str(artifact.entry_path), load_external_data=False)
    ops = [node.op_type for node in model.graph.node]
    # two layers: q, k and v; the way out; gate and up; the way down
    assert ops.count("MatMul") == 8
    assert ops.count("GroupQueryAttention") == 2
    assert ops.count("SkipSimplifiedLayerNormalization") == 4
    assert ops.count("SimplifiedLayerNormalization") == 1
    assert ops.count("Gemm") == 1
    names = [node.name for node in model.graph.node]
    assert len(names) == len(set(names))


def test_inputs_and_outputs_are_what_clients_ask_for(tiny_llama: Path, tmp_path: Path) -> None:
    plain = Plain(emit(tiny_llama, tmp_path, "onnx"))
    cache = ["batch_size", 2, "past_sequence_length", 16]
    assert {value.name: value.shape for value in plain.session.get_inputs()} == {
        "input_ids": ["batch_size", "sequence_length"],
        "attention_mask": ["batch_size", "total_sequence_length"],
        **{f"past_key_values.{layer}.{kind}": cache for layer in (0, 1) for kind in ("key", "value")},
    }
    assert [value.name for value in plain.session.get_overridable_initializers()] == ["num_logits_to_keep"]
    outputs = [value.name for value in plain.session.get_outputs()]
    assert outputs == ["logits", *(f"present.{layer}.{kind}" for layer in (0, 1) for kind in ("key", "value"))]
