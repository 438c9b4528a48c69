"""Encoders as ONNX graphs against transformers on the same ids, and sentence embeddings against numpy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.tiny_encoders import (
    FAMILIES,
    difference,
    edit_json,
    export_onnx,
    make_tiny_encoder,
    padded,
    run_onnx,
    torch_outputs,
    write_pooling,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TASKS = ("feature-extraction", "text-classification", "token-classification")
OUTPUT = {"feature-extraction": "last_hidden_state", "text-classification": "logits", "token-classification": "logits"}
CLOSE = 1e-5
# A text's first and last id are special ones; no id is a padding id of any family.
RNG = np.random.default_rng(0)
ROWS = {n: [2, *RNG.integers(5, 128, n - 2).tolist(), 3] for n in (2, 3, 17, 64)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[tuple[object, ...], Path] = {}

    def make(family: str, task: str, **overrides: object) -> Path:
        key = (family, task, repr(overrides))
        if key not in made:
            made[key] = make_tiny_encoder(tmp_path_factory.mktemp(family), family, task, **overrides)
        return made[key]

    return make


def pad_of(directory: Path) -> int:
    return int(json.loads((directory / "config.json").read_text()).get("pad_token_id", 0))


def check_against_torch(directory: Path, out: Path, output: str) -> None:
    """Texts of several lengths one by one, then two in one batch, row by row."""
    artifact = export_onnx(directory, out)
    for row in ROWS.values():
        ids, mask = padded([row], 0)
        found, expected = run_onnx(artifact, ids, mask)[output], torch_outputs(directory, ids, mask)[output]
        assert found.shape == expected.shape
        assert found.dtype == np.float32
        assert difference(found, expected) < CLOSE
    rows = [ROWS[17], ROWS[3]]
    batch = run_onnx(artifact, *padded(rows, pad_of(directory)))[output]
    for row, found in zip(rows, batch, strict=True):
        ids, mask = padded([row], 0)
        expected = torch_outputs(directory, ids, mask)[output][0]
        assert difference(found[: len(row)] if found.ndim == 2 else found, expected) < CLOSE


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_task_equals_torch(family: str, task: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    check_against_torch(tiny(family, task), tmp_path / "out", OUTPUT[task])


@pytest.mark.parametrize("activation", ["relu", "gelu_new", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("family", ["Bert", "DistilBert"])
def test_other_activations(family: str, activation: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    key = "activation" if family == "DistilBert" else "hidden_act"
    check_against_torch(tiny(family, "feature-extraction", **{key: activation}), tmp_path / "out", "last_hidden_state")


def test_the_tiny_model_tells_activations_and_norms_apart(tiny: Callable[..., Path]) -> None:
    """What the comparisons above rest on: a neighbouring function is far away for them."""
    ids, mask = padded([ROWS[17]], 0)
    exact = torch_outputs(tiny("Bert", "feature-extraction"), ids, mask)["last_hidden_state"]
    other = torch_outputs(tiny("Bert", "feature-extraction", hidden_act="gelu_new"), ids, mask)["last_hidden_state"]
    looser = torch_outputs(tiny("Bert", "feature-extraction", layer_norm_eps=1e-3), ids, mask)["last_hidden_state"]
    assert difference(other, exact) > 5 * CLOSE
    assert difference(looser, exact) > 5 * CLOSE


@pytest.mark.parametrize("family", FAMILIES)
def test_a_masked_model_in_a_directory_of_sentence_transformers(
    family: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """Its weights have the family's prefix, and a head that nobody asks for."""
    directory = make_tiny_encoder(tmp_path / "model", family, "fill-mask")
    write_pooling(directory, "mean")
    check_against_torch(directory, tmp_path / "out", "last_hidden_state")


def rename_stored(directory: Path, rename: Callable[[str], str]) -> set[str]:
    """Rewrite the weights under other names; returns them."""
    from safetensors.numpy import load_file, save_file

    path = directory / "model.safetensors"
    tensors = {rename(name): tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    return set(tensors)


def old_name(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


@pytest.mark.parametrize("rename", [old_name, "bert.{}".format], ids=["gamma and beta", "prefix on a bare model"])
def test_other_names_of_the_same_tensors(rename: Callable[[str], str], tmp_path: Path) -> None:
    directory = make_tiny_encoder(tmp_path / "model")
    ids, mask = padded([ROWS[17]], 0)
    expected = torch_outputs(directory, ids, mask)["last_hidden_state"]
    names = rename_stored(directory, rename)
    assert any(name.endswith(".gamma") or name.startswith("bert.") for name in names)
    artifact = export_onnx(directory, tmp_path / "out")
    assert difference(run_onnx(artifact, ids, mask)["last_hidden_state"], expected) < CLOSE


def by_hand(states: np.ndarray, mode: str, *, normalize: bool) -> np.ndarray:
    """The embedding of one text's hidden states, (tokens, hidden)."""
    total = np.zeros(states.shape[1])
    for state in states:
        total = total + state
    embedding = total / len(states) if mode == "mean" else states[0].astype(np.float64)
    return embedding / np.sqrt((embedding * embedding).sum()) if normalize else embedding


@pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "as long as it is"])
@pytest.mark.parametrize("mode", ["mean", "cls"])
@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_sentence_embeddings(family: str, mode: str, normalize: bool, tmp_path: Path) -> None:
    directory = make_tiny_encoder(tmp_path / "model", family)
    write_pooling(directory, mode, normalize=normalize)
    artifact = export_onnx(directory, tmp_path / "out")
    rows = [ROWS[17], ROWS[3], ROWS[64]]
    batch = run_onnx(artifact, *padded(rows, pad_of(directory)))
    assert list(batch) == ["last_hidden_state", "sentence_embedding"]
    assert batch["sentence_embedding"].shape == (3, 32)
    for row, found in zip(rows, batch["sentence_embedding"], strict=True):
        states = torch_outputs(directory, *padded([row], 0))["last_hidden_state"][0]
        expected = by_hand(states, mode, normalize=normalize)
        assert difference(found, expected) < CLOSE
        assert difference(run_onnx(artifact, *padded([row], 0))["sentence_embedding"][0], expected) < CLOSE
        assert (abs(np.linalg.norm(found) - 1) < CLOSE) == normalize


def test_no_pooling_is_no_embedding(tiny: Callable[..., Path], tmp_path: Path) -> None:
    artifact = export_onnx(tiny("Bert", "feature-extraction"), tmp_path / "out")
    assert artifact.contract["outputs"] == ["last_hidden_state"]
    assert artifact.contract["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]


def test_token_types_are_looked_up(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Two segments, as in a pair of texts: here with the graph's third input, which other tests leave at zeros."""
    import onnxruntime
    import torch
    import transformers

    directory = tiny("Bert", "text-classification")
    ids, mask = padded([ROWS[17]], 0)
    kinds = (np.arange(17) >= 9).astype(np.int64)[None]
    model = transformers.BertForSequenceClassification.from_pretrained(directory).eval()
    with torch.no_grad():
        expected = model(torch.tensor(ids), token_type_ids=torch.tensor(kinds)).logits.numpy()
    artifact = export_onnx(directory, tmp_path / "out")
    session = onnxruntime.InferenceSession(str(artifact.entry_path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds})
    assert difference(found, expected) < CLOSE
    assert difference(run_onnx(artifact, ids, mask)["logits"], expected) > 0.01


# Three times as far from 1 as the worst of three seeds and four lengths was: codes in the wrong order, a scale of the
# wrong block or a table that is read in the wrong place turn an embedding anywhere.
@pytest.mark.parametrize(
    ("quant", "cosine"),
    [("fp16", 0.999998), ("int8", 0.9999), ("int4-mixed", 0.996), ("int4", 0.98), ("dynamic-int8", 0.9999)],
)
@pytest.mark.parametrize("family", ["Bert", "Roberta", "DistilBert"])
def test_quantized_encoders_stay_near(family: str, quant: str, cosine: float, tmp_path: Path) -> None:
    directory = make_tiny_encoder(tmp_path / "model", family, initializer_range=0.1)
    write_pooling(directory, "mean")
    artifact = export_onnx(directory, tmp_path / "out", quant)
    ids, mask = padded([ROWS[17], ROWS[3]], pad_of(directory))
    found = run_onnx(artifact, ids, mask)["sentence_embedding"]
    for row, embedding in zip((ROWS[17], ROWS[3]), found, strict=True):
        states = torch_outputs(directory, *padded([row], 0))["last_hidden_state"][0]
        assert embedding @ by_hand(states, "mean", normalize=True) > cosine


def test_bits_of_a_weight_count_every_blob(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """fp32: 32 bits for each of them; a pooler that a bare model has and nobody runs is not one of them."""
    directory = tiny("Bert", "feature-extraction")
    artifact = export_onnx(directory, tmp_path / "out")
    layer = 4 * (32 * 32 + 32) + 2 * 32 * 48 + 48 + 32 + 4 * 32
    vocab = json.loads((directory / "config.json").read_text())["vocab_size"]
    assert artifact.n_params == vocab * 32 + 64 * 32 + 2 * 32 + 2 * 32 + 2 * layer
    assert artifact.bits_per_weight == 32.0
    assert artifact.context_length == 64


def test_a_damaged_config_is_one_line(tmp_path: Path) -> None:
    from runtime.errors import ModelError

    directory = make_tiny_encoder(tmp_path / "model")
    edit_json(directory / "config.json", num_attention_heads="four")
    with pytest.raises(ModelError, match=r"num_attention_heads") as caught:
        export_onnx(directory, tmp_path / "out")
    assert "\n" not in str(caught.value)
