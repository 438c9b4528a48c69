"""Calibration: the pieces of text, what is recorded against torch's own hooks, and what becomes of it in the file."""

from __future__ import annotations

import dataclasses
import re
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.tiny_encoders import (
    difference,
    export_onnx,
    make_tiny_encoder,
    padded,
    run_onnx,
    torch_outputs,
    write_pooling,
)

from runtime.errors import UserError
from targets.base import Calibration, EmitOptions
from targets.onnx.calibration import Ranges, find_ranges, scratch, token_chunks
from targets.onnx.linear import activation_grid
from targets.onnx.plan import make_plan
from targets.onnx.target import write_graph
from targets.safetensors import read_facts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CLS, SEP = 2, 3
METHODS = ("minmax", "percentile", "entropy")
SMALL = Calibration(chunks=4, tokens=48)
# Modules of transformers and the layer of the graph that has their input.
BERT_LAYERS = {
    "layers.{i}.attn.qkv": "encoder.layer.{i}.attention.self.query",
    "layers.{i}.attn.output": "encoder.layer.{i}.attention.output.dense",
    "layers.{i}.ffn.up": "encoder.layer.{i}.intermediate.dense",
    "layers.{i}.ffn.down": "encoder.layer.{i}.output.dense",
}
LLAMA_LAYERS = {
    "layers.{i}.attn.qkv": "model.layers.{i}.self_attn.q_proj",
    "layers.{i}.attn.output": "model.layers.{i}.self_attn.o_proj",
    "layers.{i}.ffn.gate_up": "model.layers.{i}.mlp.gate_proj",
    "layers.{i}.ffn.down": "model.layers.{i}.mlp.down_proj",
}
# The recorder's weights have 8 bits and so have the activations inside its products: each is off by 1/254 of its
# block's largest at most, errors of a row partly cancel, and two layers add up to under 2 % of the widest value; twice
# that for Llama's way down, whose input is a product of two. Layers differ by far more from each other.
NEAR = 0.04


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_tiny_encoder(tmp_path_factory.mktemp("bert"), initializer_range=0.1)
    write_pooling(directory, "mean")
    return directory


def text_file(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def pieces_of(model: Path, **options: Any) -> list[list[int]]:
    return token_chunks(model / "tokenizer.json", Calibration(**options))[0]


def test_pieces_carry_the_special_tokens(bert: Path) -> None:
    pieces = pieces_of(bert, chunks=4, tokens=16)
    assert len(pieces) == 4
    for piece in pieces:
        assert len(piece) == 16
        assert (piece[0], piece[-1]) == (CLS, SEP)
        assert CLS not in piece[1:]
    assert pieces == pieces_of(bert, chunks=4, tokens=16)


def test_a_decoder_without_special_tokens_has_none(tiny_llama: Path) -> None:
    pieces = pieces_of(tiny_llama, chunks=3, tokens=20)
    assert [len(piece) for piece in pieces] == [20] * 3
    assert min(map(min, pieces)) > 16  # the first 17 ids are special


@pytest.mark.parametrize("parts", [4, 5, 7, 8, 23])
def test_pieces_come_from_all_over_the_text(parts: int, bert: Path, tmp_path: Path) -> None:
    """A part is 14 times one letter: with two special tokens, one piece."""
    letters = [chr(ord("a") + number) for number in range(parts)]
    path = text_file(tmp_path / "text", " ".join(" ".join(letter * 14) for letter in letters))
    pieces = pieces_of(bert, text=path, chunks=4, tokens=16)
    ids = {
        piece[1]: letter
        for letter, piece in zip(letters, pieces_of(bert, text=path, chunks=99, tokens=16), strict=True)
    }
    chosen = [letters.index(ids[piece[1]]) for piece in pieces]
    assert len(chosen) == 4
    assert chosen == sorted(set(chosen))
    gaps = np.diff([*chosen, parts])
    assert gaps.max() - gaps.min() <= 1, chosen


def test_a_short_text_is_taken_as_it_is(bert: Path, tmp_path: Path) -> None:
    path = text_file(tmp_path / "text", "ab")
    (piece,), name = token_chunks(bert / "tokenizer.json", Calibration(text=path))
    assert (piece[0], len(piece), piece[-1]) == (CLS, 4, SEP)
    assert name == str(path)


def test_the_default_text_is_the_half_that_nobody_is_judged_on(bert: Path) -> None:
    assert "first half" in token_chunks(bert / "tokenizer.json", Calibration())[1]


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_an_empty_text_is_one_clear_error(text: str, bert: Path, tiny_llama: Path, tmp_path: Path) -> None:
    path = text_file(tmp_path / "empty.txt", text)
    for model in (bert, tiny_llama):
        with pytest.raises(UserError, match=r"empty\.txt: has no token to calibrate on") as caught:
            pieces_of(model, text=path)
        assert "\n" not in str(caught.value)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(UserError, match="'kl' is not a calibration"):
        Calibration(method="kl")


def calibrated(model: Path, room: Path, calibration: Calibration, chunks: list[list[int]]) -> Ranges:
    """What an export of static-int8 finds, on given chunks."""
    options = EmitOptions(quant="static-int8", threads=1, calibration=calibration)
    plan, problems = make_plan(read_facts(model, str(model)), options)
    assert plan is not None, problems
    for value in sorted(set(plan.recorded.values())):
        plan.graph.output(value, np.float32, ("batch_size", "sequence_length", None))
    room.mkdir()
    write_graph(room, plan, options, lambda *_: None)
    steps: list[tuple[str, int, int]] = []
    found = find_ranges(room / plan.file, plan.recorded, chunks, calibration, lambda *step: steps.append(step))
    done = [step[1] for step in steps]
    assert done == sorted(done)
    assert done[-1] <= steps[-1][2]
    return found


def hooked(model: Path, class_name: str, layers: dict[str, str], chunks: list[list[int]]) -> dict[str, np.ndarray]:
    """Inputs of layers in torch, (tokens, features), over all chunks, by the graph's name of the layer."""
    import torch
    import transformers

    network = getattr(transformers, class_name).from_pretrained(model, dtype=torch.float32).eval()
    modules = dict(network.named_modules())
    seen: dict[str, list[np.ndarray]] = {}
    for title, module in layers.items():
        for layer in range(2):
            name = title.format(i=layer)
            seen[name] = []
            modules[module.format(i=layer)].register_forward_hook(
                lambda _module, inputs, _output, name=name: seen[name].append(inputs[0][0].numpy())
            )
    with torch.no_grad():
        for ids in chunks:
            network(torch.tensor([ids]))
    return {name: np.concatenate(arrays) for name, arrays in seen.items()}


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_recorded_extremes_are_those_of_torch(
    family: str, bert: Path, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    model, name, layers = bert, "BertModel", BERT_LAYERS
    if family == "llama":
        model, name, layers = tiny_model_dir("llama", dtype="f32"), "LlamaForCausalLM", LLAMA_LAYERS
    chunks = pieces_of(model, chunks=4, tokens=48)
    found = calibrated(model, tmp_path / "room", SMALL, chunks)
    expected = hooked(model, name, layers, chunks)
    assert set(found.layers) == set(expected)
    for layer, values in expected.items():
        seen = values / found.smoothing[layer] if layer in found.smoothing else values
        ends = (min(float(seen.min()), 0.0), max(float(seen.max()), 0.0))
        assert found.layers[layer] == pytest.approx(ends, abs=NEAR * (ends[1] - ends[0])), layer


def test_the_method_changes_the_ranges(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("targets.onnx.ranges.TAIL", 0.01)  # of 25,000 values one in 100,000 is none
    chunks = pieces_of(bert, chunks=16, tokens=48)
    found = {
        method: calibrated(bert, tmp_path / method, dataclasses.replace(SMALL, method=method), chunks).layers
        for method in METHODS
    }
    widths = {method: {name: high - low for name, (low, high) in ranges.items()} for method, ranges in found.items()}
    for method in ("percentile", "entropy"):
        for name, width in widths[method].items():
            assert width <= widths["minmax"][name] * (1 + 1e-6), (method, name)
    assert sum(widths["entropy"][name] < 0.95 * width for name, width in widths["minmax"].items()) >= 1
    assert found["percentile"] != found["minmax"]
    assert found["percentile"] != found["entropy"]


def graph_of(artifact: Any) -> Any:
    import onnx

    return onnx.load(artifact.entry_path, load_external_data=True).graph


def constants(graph: Any) -> dict[str, np.ndarray]:
    from onnx import numpy_helper

    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def test_the_file_has_the_grids_that_were_found(bert: Path, tmp_path: Path) -> None:
    found = calibrated(bert, tmp_path / "room", SMALL, pieces_of(bert, chunks=4, tokens=48))
    graph = graph_of(export_onnx(bert, tmp_path / "out", "static-int8", calibration=SMALL))
    values = constants(graph)
    rounding = {node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    assert found.noisy == frozenset()
    assert set(rounding) == {f"{layer}.input_codes" for layer in found.layers}
    for layer, ends in found.layers.items():
        node = rounding[f"{layer}.input_codes"]
        scale, zero = activation_grid(*ends)
        assert values[node.input[1]] == pytest.approx(scale, rel=1e-5)
        assert values[node.input[2]] == zero
        assert values[node.input[2]].dtype == np.uint8


def test_static_int8_is_near_the_source_and_leaves_nothing_behind(bert: Path, tmp_path: Path) -> None:
    artifact = export_onnx(bert, tmp_path / "out", "static-int8", calibration=SMALL)
    files = {path.relative_to(artifact.root).as_posix() for path in artifact.root.rglob("*") if path.is_file()}
    graphs = {name for name in files if name.startswith("onnx/")}
    assert graphs == {"onnx/model_quantized.onnx", "onnx/model_quantized.onnx_data"}
    assert files == set(artifact.files)
    assert [path for path in artifact.root.iterdir() if path.name.startswith(".")] == []
    # A text that nobody calibrated on. Cosine of a mean over tokens through two layers of 8-bit products.
    ids, mask = padded([[CLS, *range(30, 70), SEP]], 0)
    found = run_onnx(artifact, ids, mask)
    states = torch_outputs(bert, ids, mask)["last_hidden_state"]
    mean = states[0].mean(axis=0)
    assert found["sentence_embedding"][0] @ (mean / np.linalg.norm(mean)) > 0.998
    assert difference(found["last_hidden_state"], states) < 0.1
    notes = artifact.contract["notes"]
    assert any(re.search(r"minmax over 192 tokens of .*first half", note) for note in notes), notes


def test_nothing_is_left_behind_by_a_failure(tmp_path: Path) -> None:
    def fail() -> None:
        with scratch(tmp_path) as room:
            (room / "model.onnx").write_bytes(b"x")
            raise UserError("stop")

    with pytest.raises(UserError, match="stop"):
        fail()
    assert list(tmp_path.iterdir()) == []


def plant(model: Path, out: Path, edit: Callable[[dict[str, np.ndarray]], None]) -> Path:
    """A copy of a model with edited weights."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(model, out)
    tensors = load_file(out / "model.safetensors")
    edit(tensors)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def test_a_layer_that_no_fixed_range_holds_keeps_its_input_as_floats(bert: Path, tmp_path: Path) -> None:
    """One token's state is a thousand times longer than the others' and has its own direction.

    Every feature is small but for that token's, whose range leaves the others two or three codes.
    """

    def edit(tensors: dict[str, np.ndarray]) -> None:
        # The [CLS] token alone drives one unit of the first layer's feed-forward to a huge value.
        up, down = "encoder.layer.0.intermediate.dense", "encoder.layer.0.output.dense"
        direction = hooked(bert, "BertModel", BERT_LAYERS, pieces_of(bert, chunks=4, tokens=48))["layers.0.ffn.up"]
        first = direction.reshape(4, 48, 32)[:, 0].mean(axis=0)
        others = direction.mean(axis=0)
        tensors[f"{up}.weight"][0] = 300 * (first - others)
        tensors[f"{up}.bias"][0] = -300 * float((first - others) @ (0.3 * others + 0.7 * first))
        tensors[f"{down}.weight"][:, 0] *= 0.001

    noisy = plant(bert, tmp_path / "noisy", edit)
    chunks = pieces_of(noisy, chunks=4, tokens=48)
    seen = hooked(noisy, "BertModel", BERT_LAYERS, chunks)["layers.0.ffn.down"].reshape(4, 48, 48)
    assert np.abs(seen[:, 0]).max() > 100 * np.abs(seen[:, 1:]).max()
    ranges = calibrated(noisy, tmp_path / "room", SMALL, chunks)
    artifact = export_onnx(noisy, tmp_path / "out", "static-int8", calibration=SMALL)
    assert "layers.0.ffn.down" in ranges.noisy
    n, all_ = len(ranges.noisy), len(ranges.layers)
    assert (1 <= n < all_, all_) == (True, 8)
    assert any(note.startswith(f"{n} of 8 products keep float inputs") for note in artifact.contract["notes"])
    operators = {node.output[0]: node.op_type for node in graph_of(artifact).node}
    assert {name for name in ranges.layers if operators[name] == "MatMulNBits"} == set(ranges.noisy)
    assert {name for name in ranges.layers if f"{name}.input_codes" in operators} == set(ranges.layers) - ranges.noisy


def test_a_model_of_few_positions_is_calibrated_within_them(tmp_path: Path) -> None:
    """Calibration's pieces of 128 tokens would be beyond the table of 24 positions."""
    model = make_tiny_encoder(tmp_path / "model", initializer_range=0.1, max_position_embeddings=24)
    artifact = export_onnx(model, tmp_path / "out", "static-int8")
    note = next(note for note in artifact.contract["notes"] if "activation ranges" in note)
    assert f"over {32 * 24} tokens" in note
