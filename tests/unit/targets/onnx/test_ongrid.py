"""Codes that a recipe has chosen already: they stand in the exported file bit for bit, whatever the preset."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.tiny_encoders import difference, export_onnx

from runtime.errors import ModelError
from targets.base import EmitOptions
from targets.ongrid import ONNX_GRIDS as FILE
from targets.onnx.ongrid import OnGrid
from targets.onnx.presets import PRESETS
from targets.onnx.target import OnnxTarget
from targets.safetensors import read_facts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from runtime.artifact import Artifact

    Parts = dict[str, np.ndarray]

Q, K, V, OUT = (f"model.layers.0.self_attn.{letter}_proj.weight" for letter in "qkvo")
GATE, UP, DOWN = (f"model.layers.0.mlp.{word}_proj.weight" for word in ("gate", "up", "down"))
TABLE = "model.embed_tokens.weight"
NAME = K
SHAPES = {
    Q: (64, 64), K: (32, 64), V: (32, 64), OUT: (64, 64), GATE: (128, 64), UP: (128, 64), DOWN: (64, 128),
    TABLE: (600, 64),
}  # fmt: skip
# Products of the graph and the matrices in each, from the top down.
PRODUCTS = {
    "layers.0.attn.qkv": (Q, K, V), "layers.0.attn.q_k": (Q, K), "layers.0.attn.k_v": (K, V), "layers.0.attn.q": (Q,),
    "layers.0.attn.k": (K,), "layers.0.attn.v": (V,), "layers.0.attn.output": (OUT,),
    "layers.0.ffn.gate_up": (GATE, UP),
    "layers.0.ffn.gate": (GATE,), "layers.0.ffn.up": (UP,), "layers.0.ffn.down": (DOWN,),
    "embed_tokens": (TABLE,),
}  # fmt: skip


def home(tensors: Parts, name: str) -> tuple[str, int]:
    """The product that a matrix is in, and its first row there."""
    (title,) = (
        one
        for one, members in PRODUCTS.items()
        if name in members and {f"{one}.codes", f"{one}.weight"} & tensors.keys()
    )
    members = PRODUCTS[title]
    return title, sum(SHAPES[member][0] for member in members[: members.index(name)])


@pytest.fixture(scope="module")
def llama(tiny_model_dir: Callable[..., Path]) -> Path:
    return tiny_model_dir("llama", dtype="f32")


def parts_of(name: str, bits: int, size: int, *, symmetric: bool, seed: int = 0) -> Parts:
    """Codes, scales and zero points of one matrix that no rounding of its weights would give."""
    rows, columns = SHAPES[name]
    rng = np.random.default_rng(seed)
    blocks = columns // size
    parts: Parts = {
        f"codes{bits}": rng.integers(0, 1 << bits, (rows, columns)).astype(np.uint8),
        "scales": rng.uniform(0.01, 0.02, (rows, blocks)).astype(np.float16),
    }
    if not symmetric:
        parts["zero_points"] = rng.integers(0, 1 << bits, (rows, blocks)).astype(np.uint8)
    return parts


def row_parts_of(name: str, seed: int = 0) -> Parts:
    """As `parts_of`, of int8 rows: codes from 0 to 254 around 127, and one float32 scale a row."""
    rows, columns = SHAPES[name]
    rng = np.random.default_rng(seed)
    codes, scales = rng.integers(0, 255, (rows, columns)), rng.uniform(0.001, 0.002, (rows, 1))
    return {"codes8": codes.astype(np.uint8), "scales": scales.astype(np.float32)}


def whole(parts: Parts, shape: tuple[int, ...]) -> bool:
    """Whether the parts are those of a matrix of that shape."""
    codes, scales = parts.get("codes4", parts.get("codes8")), parts.get("scales")
    if codes is None or scales is None or codes.shape != shape or scales.ndim != 2 or shape[1] % scales.shape[1]:
        return False
    return parts.get("zero_points", scales).shape == scales.shape


def values_of(parts: Parts) -> np.ndarray:
    """The weights that codes, scales and zero points stand for."""
    bits = 4 if "codes4" in parts else 8
    middle = 127 if parts["scales"].dtype == np.float32 else 1 << (bits - 1)
    scales = parts["scales"].astype(np.float32)
    codes = parts[f"codes{bits}"].astype(np.float32).reshape(*scales.shape, -1)
    zeros = parts["zero_points"].astype(np.float32)[..., None] if "zero_points" in parts else middle
    with np.errstate(invalid="ignore"):
        values = (codes - zeros) * scales[..., None]
    return np.nan_to_num(values, posinf=9.0, neginf=-9.0).reshape(len(scales), -1).astype(np.float32)


def with_grids(model: Path, out: Path, matrices: dict[str, Parts]) -> Path:
    """A copy of a model with FILE beside its weights, which are what the codes stand for."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(model, out)
    weights = load_file(out / "model.safetensors")
    weights |= {
        name: values_of(parts)
        for name, parts in matrices.items()
        if name in weights and whole(parts, weights[name].shape)
    }
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    save_file(
        {f"{name}.{part}": array for name, parts in matrices.items() for part, array in parts.items()}, out / FILE
    )
    return out


def exported_tensors(model: Path, out: Path, quant: str) -> Parts:
    """The tensors of an export, external ones too."""
    import onnx
    from onnx import numpy_helper

    artifact = export_onnx(model, out, quant)
    graph = onnx.load(artifact.entry_path, load_external_data=True).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def unpacked(packed: np.ndarray, bits: int, n: int) -> np.ndarray:
    """Codes along the last axis, the lower half of a byte first; n: how many, without what fills the last byte."""
    if bits == 8:
        return packed[..., :n]
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)[..., :n]


def check_stored(tensors: Parts, name: str, parts: Parts) -> None:
    """That a matrix stands in the file as it was given, bit for bit."""
    title, first_row = home(tensors, name)
    bits = 4 if "codes4" in parts else 8
    codes, scales = parts[f"codes{bits}"], parts["scales"]
    rows = slice(first_row, first_row + len(codes))
    found = unpacked(tensors[f"{title}.codes"][rows].reshape(len(codes), -1), bits, codes.shape[1])
    np.testing.assert_array_equal(found, codes)
    assert tensors[f"{title}.scales"].dtype == np.float16
    np.testing.assert_array_equal(tensors[f"{title}.scales"][rows].view(np.uint16), scales.view(np.uint16))
    if "zero_points" in parts:
        zeros = unpacked(tensors[f"{title}.zero_points"][rows], bits, scales.shape[1])
        np.testing.assert_array_equal(zeros, parts["zero_points"])
    else:
        assert f"{title}.zero_points" not in tensors


def check_rows_stored(tensors: Parts, name: str, parts: Parts) -> str:
    """That int8 rows stand in the file as they were given, in a scale an output or in blocks; returns the product."""
    title, first = home(tensors, name)
    rows = slice(first, first + SHAPES[name][0])
    if f"{title}.weight" in tensors:
        codes, scales = tensors[f"{title}.weight"][:, rows].T, tensors[f"{title}.scales"][rows, None]
        assert codes.dtype == np.uint8
        np.testing.assert_array_equal(codes.astype(int) - 128, parts["codes8"].astype(int) - 127)
        np.testing.assert_array_equal(scales, parts["scales"])
        values = (codes.astype(np.float32) - 128) * scales
    else:
        codes, scales = tensors[f"{title}.codes"][rows], tensors[f"{title}.scales"][rows]
        assert scales.dtype == np.float32
        np.testing.assert_array_equal(scales, np.repeat(parts["scales"], scales.shape[1], axis=1))
        values = ((codes.astype(np.float32) - 128) * scales[..., None]).reshape(len(codes), -1)
    # What DequantizeLinear and MatMulNBits compute with is what the directory says, to the last bit.
    np.testing.assert_array_equal(values, values_of(parts))
    return title


CHANNELS = ("dynamic-int8", "static-int8")
IN_LAYERS = tuple(name for name in SHAPES if name != TABLE)


@pytest.fixture
def _every_range_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random codes make inputs of which a fixed range loses much: no layer is kept weights-only for that."""
    monkeypatch.setattr("targets.onnx.calibration.NOISIEST", 1.0)


@pytest.mark.usefixtures("_every_range_holds")
@pytest.mark.parametrize("quant", [*CHANNELS, "fp32", "int4"])
def test_int8_rows_are_packed_as_they_are(quant: str, llama: Path, tmp_path: Path) -> None:
    """In one product where they are fused; as blocks beside presets of other kinds."""
    matrices = {name: row_parts_of(name, seed) for seed, name in enumerate(IN_LAYERS)}
    tensors = exported_tensors(with_grids(llama, tmp_path / "model", matrices), tmp_path / "out", quant)
    titles = {check_rows_stored(tensors, name, parts) for name, parts in matrices.items()}
    assert {f"layers.0.{end}" for end in ("attn.qkv", "attn.output", "ffn.gate_up", "ffn.down")} == titles
    kinds = {name.rpartition(".")[2] for name in tensors if name.rpartition(".")[0] in titles}
    assert kinds == ({"weight", "scales"} if quant in CHANNELS else {"codes", "scales"})


@pytest.mark.usefixtures("_every_range_holds")
@pytest.mark.parametrize("name", [Q, K, V, GATE, UP])
@pytest.mark.parametrize("quant", CHANNELS)
def test_int8_rows_are_fused_with_neighbours_that_are_rounded(
    quant: str, name: str, llama: Path, tmp_path: Path
) -> None:
    matrices = {name: row_parts_of(name)}
    plain = exported_tensors(llama, tmp_path / "plain", quant)
    tensors = exported_tensors(with_grids(llama, tmp_path / "model", matrices), tmp_path / "out", quant)
    title = check_rows_stored(tensors, name, matrices[name])
    assert title in ("layers.0.attn.qkv", "layers.0.ffn.gate_up")
    others = np.ones(plain[f"{title}.scales"].shape, bool)
    start = home(tensors, name)[1]
    others[start : start + SHAPES[name][0]] = False
    np.testing.assert_array_equal(tensors[f"{title}.weight"][:, others], plain[f"{title}.weight"][:, others])
    np.testing.assert_array_equal(tensors[f"{title}.scales"][others], plain[f"{title}.scales"][others])
    assert "layers.0.ffn.down.weight" in tensors


def test_int8_rows_stay_where_no_fixed_range_holds_the_input(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MatMulNBits with the row's own float32 scale in each block, and float inputs."""
    monkeypatch.setattr("targets.onnx.calibration.NOISIEST", 0.0)
    matrices = {name: row_parts_of(name, seed) for seed, name in enumerate(IN_LAYERS) if name != K}
    tensors = exported_tensors(with_grids(llama, tmp_path / "model", matrices), tmp_path / "out", "static-int8")
    for name, parts in matrices.items():
        assert f"{check_rows_stored(tensors, name, parts)}.codes" in tensors
    assert home(tensors, K)[0] == home(tensors, Q)[0]


def with_outlier(model: Path, out: Path) -> Path:
    """A copy whose norms in front of attention blow one feature up, in both layers."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(model, out)
    weights = load_file(out / "model.safetensors")
    for layer in range(2):
        weights[f"model.layers.{layer}.input_layernorm.weight"][5] *= 100
        for letter in "qkv":
            weights[f"model.layers.{layer}.self_attn.{letter}_proj.weight"][:, 5] *= 0.01
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    return out


@pytest.mark.usefixtures("_every_range_holds")
@pytest.mark.parametrize("quant", CHANNELS)
def test_a_layer_with_codes_is_not_smoothed(
    quant: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Factors would change its weights; its neighbours are smoothed as ever, and its range is that of the input."""
    model = with_outlier(llama, tmp_path / "outlier")
    smoothed = exported_tensors(model, tmp_path / "smoothed", quant)
    assert {"layers.0.attn.qkv.smoothing", "layers.1.attn.qkv.smoothing"} <= smoothed.keys()
    given = with_grids(model, tmp_path / "given", {K: row_parts_of(K)})
    found, found_graph = exported_tensors(given, tmp_path / "out", quant), graph_of(tmp_path / "out")
    check_rows_stored(found, K, row_parts_of(K))
    assert "layers.0.attn.qkv.smoothing" not in found
    assert "layers.1.attn.qkv.smoothing" in found
    if quant == "dynamic-int8":
        return
    monkeypatch.setattr("targets.onnx.calibration.OUTSTANDING", np.inf)
    never = exported_tensors(model, tmp_path / "never", quant)
    steps = [
        input_step(graph, tensors)
        for graph, tensors in (
            (found_graph, found),
            (graph_of(tmp_path / "never"), never),
            (graph_of(tmp_path / "smoothed"), smoothed),
        )
    ]
    assert steps[0] == pytest.approx(steps[1], rel=0.02)
    assert steps[2] < 0.5 * steps[1]


def graph_of(directory: Path) -> Any:
    """The graph of an export, without its weights."""
    import onnx

    return onnx.load(next(directory.rglob("*.onnx")), load_external_data=False).graph


def input_step(graph: Any, tensors: Parts) -> float:
    """The distance between two codes of the input of layer 0's attention."""
    (node,) = (node for node in graph.node if node.output[0] == "layers.0.attn.qkv.input_codes")
    return float(tensors[node.input[1]])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"codes8": np.zeros((32, 32), np.uint8)}, r"codes \[32, 32\] and .* are not int8 rows of \[32, 64\]"),
        ({"scales": np.ones((32, 4), np.float32)}, r"scales \[32, 4\] are not int8 rows"),
        ({"scales": np.ones((31, 1), np.float32)}, "are not int8 rows"),
        ({"scales": np.ones((32,), np.float32)}, "are not int8 rows"),
        ({"scales": np.ones((32, 1), np.float64)}, "scales F16"),
        ({"codes8": np.zeros((32, 64), np.int8)}, "codes of int8 rows have to be U8"),
        ({"zero_points": np.zeros((32, 1), np.uint8)}, "no zero points"),
        ({"scales": np.full((32, 1), 0.5, np.float32)}, "holds other values than the weights beside it"),
        ({"scales": None}, "not all of its parts"),
        ({"codes8": None}, "not all of its parts"),
    ],
    ids=str,
)
def test_damaged_int8_rows_are_refused_by_check(
    change: dict[str, np.ndarray | None], reason: str, llama: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import save_file

    model = with_grids(llama, tmp_path / "model", {NAME: row_parts_of(NAME)})
    parts = {**row_parts_of(NAME), **change}
    save_file({f"{NAME}.{part}": array for part, array in parts.items() if array is not None}, model / FILE)
    for quant in CHANNELS:
        (problem,) = OnnxTarget().check(read_facts(model, str(model)), EmitOptions(quant=quant))
        assert problem.where == f"{FILE}: {NAME}"
        assert "\n" not in str(problem)
        assert re.search(reason, str(problem)), str(problem)


@pytest.mark.parametrize(("part", "value", "reason"), [
    ("codes8", 255, "holds a code of 255, its grid ends at 254"), ("scales", np.nan, "a scale that is infinite or no"),
    ("scales", np.inf, "a scale that is infinite or no"),
])  # fmt: skip
def test_senseless_codes_and_scales_of_int8_rows_are_refused(
    part: str, value: float, reason: str, llama: Path, tmp_path: Path
) -> None:
    parts = row_parts_of(NAME)
    parts[part][7, 0] = value
    model = with_grids(llama, tmp_path / "model", {NAME: parts})
    with pytest.raises(ModelError, match=f"{NAME}.*{reason}") as caught:
        export_onnx(model, tmp_path / "out", "dynamic-int8")
    assert "\n" not in str(caught.value)


def test_a_table_of_int8_rows_stays_too(llama: Path, tmp_path: Path) -> None:
    """No recipe makes one; who does gets the weights that they mean."""
    matrices = {TABLE: row_parts_of(TABLE)}
    for quant in ("dynamic-int8", "int8"):
        model = with_grids(llama, tmp_path / f"model {quant}", matrices)
        check_rows_stored(exported_tensors(model, tmp_path / quant, quant), TABLE, matrices[TABLE])


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero points"])
@pytest.mark.parametrize(("bits", "size"), [(4, 16), (4, 32), (4, 64), (8, 16), (8, 32), (8, 64)])
def test_every_matrix_is_packed_as_it_is(bits: int, size: int, symmetric: bool, llama: Path, tmp_path: Path) -> None:
    """All matrices of a layer and the tied table, each with codes of its own."""
    matrices = {name: parts_of(name, bits, size, symmetric=symmetric, seed=seed) for seed, name in enumerate(SHAPES)}
    tensors = exported_tensors(with_grids(llama, tmp_path / "model", matrices), tmp_path / "out", "int4-mixed")
    for name, parts in matrices.items():
        check_stored(tensors, name, parts)
    assert home(tensors, V)[0] == "layers.0.attn.qkv"


@pytest.mark.parametrize("name", [Q, K, V])
@pytest.mark.parametrize(("bits", "quant"), [(4, "int8"), (8, "int4")])
def test_one_matrix_of_a_group_and_the_presets_grid_for_the_others(
    name: str, bits: int, quant: str, llama: Path, tmp_path: Path
) -> None:
    matrices = {name: parts_of(name, bits, 16, symmetric=False)}
    plain = exported_tensors(llama, tmp_path / "plain", quant)
    tensors = exported_tensors(with_grids(llama, tmp_path / "model", matrices), tmp_path / "out", quant)
    check_stored(tensors, name, matrices[name])
    assert home(tensors, name)[1] == 0
    same = set(plain) & set(tensors)
    assert {"embed_tokens.codes", "layers.0.attn.output.codes", "layers.0.ffn.down.codes",
            "layers.1.attn.output.codes"} <= same  # fmt: skip
    for title in same:
        assert plain[title].tobytes() == tensors[title].tobytes(), title


@pytest.mark.parametrize(
    ("name", "role"), [(Q, "attn_q"), (K, "attn_k"), (V, "attn_v"), (GATE, "ffn_gate"), (UP, "ffn_up")]
)
@pytest.mark.parametrize("quant", ["int8", "int4-mixed"])
def test_one_matrix_on_the_grid_of_the_preset_itself(
    quant: str, name: str, role: str, llama: Path, tmp_path: Path
) -> None:
    """Such a one is fused with neighbours that are rounded: each has to get its own codes."""
    grid = PRESETS[quant].scheme(role, 0, 2).grid
    matrices = {name: parts_of(name, grid.bits, grid.size, symmetric=grid.symmetric)}
    plain = exported_tensors(llama, tmp_path / "plain", quant)
    tensors = exported_tensors(with_grids(llama, tmp_path / "model", matrices), tmp_path / "out", quant)
    assert tensors.keys() == plain.keys()
    check_stored(tensors, name, matrices[name])
    title, start = home(tensors, name)
    others = np.ones(len(plain[f"{title}.codes"]), bool)
    others[start : start + SHAPES[name][0]] = False
    np.testing.assert_array_equal(tensors[f"{title}.codes"][others], plain[f"{title}.codes"][others])


def test_the_tied_table_is_one_for_both_of_its_uses(llama: Path, tmp_path: Path) -> None:
    name = TABLE
    matrices = {name: parts_of(name, 4, 32, symmetric=False)}
    model = with_grids(llama, tmp_path / "model", matrices)
    tensors = exported_tensors(model, tmp_path / "out", "int8")
    check_stored(tensors, name, matrices[name])
    np.testing.assert_array_equal(tensors["embeddings.rows"].reshape(-1), tensors["embed_tokens.codes"].reshape(-1))
    assert "head.codes" not in tensors


@pytest.mark.parametrize("kind", [(4, True), (4, False), (8, True), (8, False), "rows"], ids=str)
@pytest.mark.parametrize("quant", ["fp32", *CHANNELS])
def test_the_engine_computes_with_the_values_that_the_codes_mean(
    quant: str, kind: str | tuple[int, bool], llama: Path, tmp_path: Path
) -> None:
    """Against the same preset on a model whose float weights are those values."""
    from safetensors.numpy import load_file, save_file

    from runtime.measurement import RunOptions
    from runtime.sessions import open_session

    names = (TABLE, K, DOWN)
    matrices, floats = {}, load_file(llama / "model.safetensors")
    for name in names:
        parts = row_parts_of(name) if isinstance(kind, str) else parts_of(name, kind[0], 32, symmetric=kind[1])
        matrices[name], floats[name] = parts, values_of(parts)
    dense = tmp_path / "dense"
    shutil.copytree(llama, dense)
    save_file(floats, dense / "model.safetensors", {"format": "pt"})
    ids = np.random.default_rng(1).integers(20, 600, 24).tolist()

    def logits(artifact: Artifact) -> np.ndarray:
        session = open_session(artifact, RunOptions(threads=1, context=64))
        found = session.all_logits(ids)
        session.close()
        return found

    given = with_grids(dense, tmp_path / "given", matrices)
    expected = logits(export_onnx(dense, tmp_path / "a", "fp32"))
    found = logits(export_onnx(given, tmp_path / "b", quant))
    # MatMulNBits rounds its input to 8 bits, static-int8 all inputs; random codes would be off by the logits' own size
    assert difference(found, expected) < (0.05 if quant == "fp32" else 0.15)
    assert logits(export_onnx(llama, tmp_path / "c", "fp32")).shape == expected.shape
    assert difference(logits(export_onnx(llama, tmp_path / "d", "fp32")), expected) > 0.5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"codes4": np.zeros((32, 32), np.uint8)}, r"codes \[32, 32\] and scales \[32, 4\] do not go with \[32, 64\]"),
        ({"scales": np.ones((31, 4), np.float16)}, "do not go with"),
        ({"scales": np.ones((32, 3), np.float16)}, "do not go with"),
        ({"scales": np.ones((32,), np.float16)}, "do not go with"),
        ({"scales": np.ones((32, 4), np.float32)}, "scales F16"),
        ({"zero_points": np.zeros((32, 5), np.uint8)}, "zero points have to be U8"),
        ({"zero_points": np.zeros((32, 4), np.int8)}, "zero points have to be U8"),
        ({"codes4": np.zeros((32, 64), np.int8)}, "codes and zero points have to be U8"),
        ({"scales": np.ones((32, 8), np.float16)}, "blocks of 8 are not a power of two"),
        ({"scales": None}, "not all of its parts"),
        ({"codes4": None}, "not all of its parts"),
    ],
    ids=str,
)
def test_damaged_parts_are_refused_by_check(
    change: dict[str, np.ndarray | None], reason: str, llama: Path, tmp_path: Path
) -> None:
    parts = {**parts_of(NAME, 4, 16, symmetric=False), **change}
    model = with_grids(
        llama, tmp_path / "model", {NAME: {key: value for key, value in parts.items() if value is not None}}
    )
    (problem,) = OnnxTarget().check(read_facts(model, str(model)), EmitOptions(quant="int4"))
    assert problem.where == f"{FILE}: {NAME}"
    assert "\n" not in str(problem)
    assert re.search(reason, str(problem)), str(problem)


def test_codes_without_weights_are_refused(llama: Path, tmp_path: Path) -> None:
    missing = "model.layers.7.self_attn.k_proj.weight"
    parts = parts_of(NAME, 4, 16, symmetric=True)
    model = with_grids(llama, tmp_path / "model", {missing: parts, NAME: parts})
    (problem,) = OnnxTarget().check(read_facts(model, str(model)), EmitOptions(quant="int4"))
    assert str(problem).startswith(f"{FILE}: {missing}: has not all of its parts, or no weights that it belongs to; ")


@pytest.mark.parametrize("place", [(0, 0), (31, 63)])
def test_a_code_with_more_bits_than_its_grid_is_refused(place: tuple[int, int], llama: Path, tmp_path: Path) -> None:
    parts = parts_of(NAME, 4, 16, symmetric=True)
    parts["codes4"][place] = 16
    model = with_grids(llama, tmp_path / "model", {NAME: parts})
    with pytest.raises(ModelError, match=rf"{NAME} holds a code of 16, its grid ends at 15") as caught:
        export_onnx(model, tmp_path / "out", "int4")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("which", ["zero_points", "scales"])
def test_senseless_scales_and_zero_points_are_refused(which: str, llama: Path, tmp_path: Path) -> None:
    parts = parts_of(NAME, 4, 16, symmetric=False)
    parts[which][3, 1] = 16 if which == "zero_points" else np.inf
    model = with_grids(llama, tmp_path / "model", {NAME: parts})
    with pytest.raises(ModelError, match=NAME) as caught:
        export_onnx(model, tmp_path / "out", "int4")
    assert "\n" not in str(caught.value)


def test_float16_activations_do_not_go_with_codes(llama: Path, tmp_path: Path) -> None:
    """The operators that read codes are written for float32 activations: refused, or loadable."""
    from runtime.measurement import RunOptions
    from runtime.sessions import open_session

    model = with_grids(llama, tmp_path / "model", {NAME: parts_of(NAME, 4, 16, symmetric=False)})
    if not OnnxTarget().check(read_facts(model, str(model)), EmitOptions(quant="fp16")):
        open_session(export_onnx(model, tmp_path / "out", "fp16"), RunOptions(threads=1, context=64)).close()


def test_a_file_that_is_no_safetensors_is_one_line(llama: Path, tmp_path: Path) -> None:
    model = with_grids(llama, tmp_path / "model", {NAME: parts_of(NAME, 4, 16, symmetric=True)})
    (model / FILE).write_bytes(b"\x01\x02")
    with pytest.raises(ModelError, match=FILE) as caught:
        OnnxTarget().check(read_facts(model, str(model)), EmitOptions(quant="int4"))
    assert "\n" not in str(caught.value)


def test_a_directory_without_the_file_says_nothing(llama: Path) -> None:
    assert OnGrid.of(llama) is None


def test_rows_are_those_asked_for(llama: Path, tmp_path: Path) -> None:
    parts: dict[str, Any] = parts_of(NAME, 4, 16, symmetric=False)
    given = OnGrid.of(with_grids(llama, tmp_path / "model", {NAME: parts}))
    assert given is not None
    assert NAME in given
    assert Q not in given
    with pytest.raises(KeyError):
        given.grid(Q)
    assert (given.grid(NAME).bits, given.grid(NAME).size, given.grid(NAME).symmetric) == (4, 16, False)
    codes = given.rows(NAME, 5, 9)
    np.testing.assert_array_equal(codes.codes.reshape(4, 64), parts["codes4"][5:9])
    np.testing.assert_array_equal(codes.scales, parts["scales"][5:9].astype(np.float32))
    np.testing.assert_array_equal(codes.zero_points, parts["zero_points"][5:9])
