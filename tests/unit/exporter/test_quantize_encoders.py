"""An encoder's matrices on the grids of a file: the codes that a recipe chose are those of the file."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.onnx_weights import initializers, weights_in
from support.parity import emit
from support.recipes import run, weights_of
from support.tiny_encoders import (
    FAMILIES,
    difference,
    edit_json,
    make_tiny_encoder,
    padded,
    torch_outputs,
    write_pooling,
)
from support.tiny_gguf_encoders import make_case
from support.torchscript_weights import by_nibbles, by_rows, loaded

from runtime.errors import UnsupportedError, UserError
from runtime.measurement import RunOptions
from runtime.sessions import open_session
from targets.ongrid import GGML, SIDE_FILES
from targets.onnx import encoder_spec

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.artifact import Artifact

TEXT = {"source": "help", "chunks": 24, "tokens": 40}
RULES = [{"tensors": "token_embd.weight", "type": "q4_0"}]
QUANTIZE: dict[str, Any] = {"step": "quantize", "preset": "q4_0", "rules": RULES}
IDS = [2, 30, 40, 50, 60, 77, 31, 3]
NEAR = 0.05
"""Of the largest number: llama.cpp rounds what a matrix is multiplied by to 8 bits."""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def on_grid(source: Path, out: Path, **step: Any) -> dict[str, Any]:
    (report,) = run(source, out, {**QUANTIZE, **step}, format="gguf", calibration=TEXT)
    return report


@pytest.mark.parametrize(
    "name",
    ["bert", "bert-classifier", "roberta", "xlm-roberta-ranker", "camembert", "distilbert", "modernbert",
     "modernbert-classifier"],
)  # fmt: skip
def test_the_file_has_the_codes_that_were_chosen(name: str, tmp_path: Path) -> None:
    source, out = make_case(name, tmp_path / "model"), tmp_path / "out"
    report = on_grid(source, out)
    (there := tmp_path / "artifact").mkdir()
    artifact = emit(out, there, preset="q4_0")
    tensors = gguf.GGUFReader(artifact.entry_path).tensors
    written = {one.name: bytes(one.data) for one in tensors if one.tensor_type.name == "Q4_0"}
    assert "token_embd.weight" in written
    assert len(written) > 4
    chosen = [one.tobytes() for one in load_file(out / GGML).values()]
    assert sorted(written.values()) == sorted(chosen)
    assert report["n_bytes"] == artifact.entry_path.stat().st_size
    session: Any
    with contextlib.closing(open_session(artifact, RunOptions(threads=1))) as session:
        found = session.encode(IDS)
    wanted = torch_outputs(out, *padded([IDS], 0))
    key = "logits" if "logits" in wanted else "last_hidden_state"
    assert difference(found[key], wanted[key][0]) < NEAR


def judged(outputs: dict[str, np.ndarray]) -> np.ndarray:
    """Labels, or embeddings: means of length 1."""
    if "logits" in outputs:
        return outputs["logits"]
    means = outputs["last_hidden_state"].mean(1)
    found: np.ndarray = means / np.linalg.norm(means, axis=-1, keepdims=True)
    return found


@pytest.mark.parametrize("name", ["bert", "bert-classifier"])
def test_codes_by_what_the_matrices_are_given_and_by_training(name: str, tmp_path: Path) -> None:
    """Each keeps more of the model than the one before it."""
    source = make_case(name, tmp_path / "model")
    training = {"updates": 60, "batch": 8, "learning_rate": 2e-4, "text": {**TEXT, "chunks": 160}}
    steps = {"rtn": {"method": "rtn"}, "gptq": {}, "trained": {"training": training}}
    away = {}
    for how, step in steps.items():
        on_grid(source, tmp_path / how, **step)
        texts = [[2, *map(int, row), 3] for row in np.random.default_rng(5).integers(5, 190, (24, 20))]
        ours, theirs = (judged(torch_outputs(one, *padded(texts, 0))) for one in (tmp_path / how, source))
        away[how] = float(np.square(ours - theirs).mean())
    assert away["trained"] < away["gptq"] < away["rtn"], away


WIDE = {"hidden_size": 64, "intermediate_size": 128}
PRODUCTS = {"attn.output": "attn_output", "ffn.up": "ffn_up", "ffn.down": "ffn_down"}


def wide_encoder(directory: Path, family: str, task: str) -> Path:
    """Whose rows are whole blocks and groups."""
    size = {"dim": 64, "hidden_dim": 128} if family == "DistilBert" else WIDE
    made = make_tiny_encoder(directory, family, task, initializer_range=0.15, **size)
    if task == "feature-extraction":
        write_pooling(made, "mean")
        edit_json(made / "1_Pooling" / "config.json", word_embedding_dimension=64)
    return made


def numbers_of(artifact: Artifact, ids: list[int]) -> np.ndarray:
    """Labels, or the hidden states of tokens."""
    session: Any
    with contextlib.closing(open_session(artifact, RunOptions(threads=1))) as session:
        found = session.encode(ids)
    numbers: np.ndarray = found["logits" if "logits" in found else "last_hidden_state"]
    return numbers


@pytest.mark.parametrize("preset", ["int8", "int4", "dynamic-int8", "static-int8"])
@pytest.mark.parametrize(
    ("family", "task"), [*((family, "feature-extraction") for family in FAMILIES), ("Roberta", "text-classification")]
)
def test_an_onnx_file_has_the_codes_that_were_chosen(
    family: str, task: str, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("targets.onnx.calibration.NOISIEST", 1.0)  # as if a fixed range held every input
    source, out = wide_encoder(tmp_path / "model", family, task), tmp_path / "out"
    (report,) = run(source, out, {"step": "quantize", "preset": preset}, format="onnx", calibration=TEXT)
    (there := tmp_path / "artifact").mkdir()
    artifact = emit(out, there, "onnx", preset)
    graph = artifact.entry_path
    assert report["n_bytes"] == sum(path.stat().st_size for path in graph.parent.glob("*_data*"))
    stored, weights = initializers(graph), weights_of(out)
    layout = encoder_spec.FAMILIES[family]

    def chosen(module: str) -> np.ndarray:
        (found,) = (one for name, one in weights.items() if name.endswith(f"{module}.weight"))
        return found

    for layer in range(2):
        place = layout.layers.format(i=layer)
        for title, role in PRODUCTS.items():
            found = weights_in(stored, f"layers.{layer}.{title}")
            np.testing.assert_array_equal(found, chosen(place + layout.modules[role]))
        whole = np.concatenate([chosen(place + layout.modules[f"attn_{letter}"]) for letter in "qkv"])
        np.testing.assert_array_equal(weights_in(stored, f"layers.{layer}.attn.qkv"), whole)
    for title, key in {"word_embeddings": "word", "position_embeddings": "position"}.items():
        np.testing.assert_array_equal(weights_in(stored, title), chosen(layout.embeddings[key]))
    wanted = torch_outputs(out, *padded([IDS], 0))
    key = "logits" if "logits" in wanted else "last_hidden_state"
    fixed = 2 if preset == "static-int8" else 1  # ranges that calibration has seen are not always this text's
    assert difference(numbers_of(artifact, IDS), wanted[key][0]) < fixed * NEAR


@pytest.mark.parametrize(
    ("format_name", "preset"), [("torchscript", "int4"), ("torchscript", "int8"), ("executorch", "8da4w")]
)
@pytest.mark.parametrize(("family", "task"), [("Bert", "feature-extraction"), ("DistilBert", "token-classification")])
def test_a_pytorch_file_has_the_codes_that_were_chosen(
    family: str, task: str, format_name: str, preset: str, tmp_path: Path
) -> None:
    source, out = wide_encoder(tmp_path / "model", family, task), tmp_path / "out"
    run(source, out, {"step": "quantize", "preset": preset}, format=format_name, calibration=TEXT)
    assert (out / SIDE_FILES[format_name]).is_file()
    (there := tmp_path / "artifact").mkdir()
    artifact = emit(out, there, format_name, preset)
    wanted = torch_outputs(out, *padded([IDS], 0))
    key = "logits" if "logits" in wanted else "last_hidden_state"
    assert difference(numbers_of(artifact, IDS), wanted[key][0]) < NEAR
    if format_name == "torchscript":
        buffers, weights = loaded(artifact), weights_of(out)
        layout = encoder_spec.FAMILIES[family]
        for role, title in {"attn_output": "output", "ffn_up": "up", "ffn_down": "down"}.items():
            name = layout.layers.format(i=1) + layout.modules[role]
            (chosen,) = (one for key, one in weights.items() if key.endswith(f"{name}.weight"))
            taken = by_nibbles if f"layers.1.{title}.nibbles" in buffers else by_rows
            np.testing.assert_array_equal(taken(buffers, f"layers.1.{title}"), chosen)


def test_codes_for_onnx_by_what_the_matrices_are_given_and_by_training(tmp_path: Path) -> None:
    """Each keeps more of the model than the one before it, of texts that neither has seen."""
    source = wide_encoder(tmp_path / "model", "Bert", "feature-extraction")
    training = {"updates": 60, "batch": 8, "learning_rate": 2e-4, "text": {**TEXT, "chunks": 320}}
    steps: dict[str, dict[str, Any]] = {"rtn": {"method": "rtn"}, "gptq": {}, "trained": {"training": training}}
    away = {}
    for how, step in steps.items():
        quantize = {"step": "quantize", "preset": "int4", **step}
        (report,) = run(source, tmp_path / how, quantize, format="onnx", calibration=TEXT)
        away[how] = 1 - report["mean_cosine"]
    assert away["trained"] < 0.9 * away["gptq"], away
    assert away["gptq"] < 0.5 * away["rtn"], away


@pytest.mark.parametrize(
    ("step", "more", "message"),
    [
        ({"types": "measured"}, {}, "quantize with types measured is for decoders, .* say .* quantize, or exp"),
        ({}, {"calibration": {}}, "calibration: .* writes no text itself; name a text"),
    ],
)
def test_what_encoders_have_not(step: dict[str, Any], more: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = make_case("bert", tmp_path / "model")
    with pytest.raises(UserError, match=message):
        run(source, tmp_path / "out", {**QUANTIZE, **step}, format="gguf", **{"calibration": TEXT, **more})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize(
    ("format_name", "preset", "message"),
    [("onnx", "fp16", "preset fp16 has no codes"), ("torchscript", "dynamic-int8", "preset dynamic-int8 has no codes")],
)
def test_presets_without_codes_to_choose(format_name: str, preset: str, message: str, tmp_path: Path) -> None:
    source = make_case("bert", tmp_path / "model")
    with pytest.raises(UnsupportedError, match=message):
        run(source, tmp_path / "out", {"step": "quantize", "preset": preset}, format=format_name, calibration=TEXT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
