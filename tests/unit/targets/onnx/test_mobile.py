"""The .ort file answers as the .onnx does, a reduced build's operators are the graph's, and nothing half-made stays."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.errors import ArtifactError, EngineError, UnsupportedError
from targets.onnx import mobile
from targets.onnx.mobile import ort_bytes, required_operators, to_ort
from targets.onnx.usability import PROVIDERS, Partitioning, ProviderUse, usability

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

K, N, BLOCK = 64, 96, 32


def write_model(path, half_scales=True):
    """A head as decoders have it: the last `num_logits_to_keep` rows of x, times four-bit weights; external data.

    num_logits_to_keep is an overridable initializer. x: float [batch, sequence, 64], y: float [batch, kept, 96].
    """
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    scales = rng.uniform(0.01, 0.02, N * K // BLOCK).astype(np.float16 if half_scales else np.float32)
    constants = {
        "codes": rng.integers(0, 256, (N, K // BLOCK, BLOCK // 2)).astype(np.uint8),
        "scales": scales,
        "num_logits_to_keep": np.array([1], np.int64),
        "end": np.array([2**62], np.int64),
        "axis": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Neg", ["num_logits_to_keep"], ["start"]),
        helper.make_node("Slice", ["x", "start", "end", "axis"], ["last"]),
        helper.make_node(
            "MatMulNBits", ["last", "codes", "scales.float" if half_scales else "scales"], ["y"],
            domain="com.microsoft", K=K, N=N, bits=4, block_size=BLOCK, accuracy_level=4,
        ),
    ]  # fmt: skip
    if half_scales:
        nodes.insert(0, helper.make_node("Cast", ["scales"], ["scales.float"], to=TensorProto.FLOAT))
    graph = helper.make_graph(
        nodes, "head",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "sequence", K]),
         helper.make_tensor_value_info("num_logits_to_keep", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "kept", N])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(
        model, str(path), save_as_external_data=True, location=f"{path.name}_data", size_threshold=100,
        convert_attribute=False,
    )  # fmt: skip
    return path


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model.onnx")


def session(path):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def test_the_ort_file_answers_bit_for_bit_as_the_onnx_file(model, tmp_path):
    assert (tmp_path / "model.onnx_data").stat().st_size >= N * K // 2
    converted = to_ort(model, tmp_path / "model.ort")
    x = np.random.default_rng(1).standard_normal((2, 5, K)).astype(np.float32)
    expected = session(model).run(None, {"x": x})[0]
    assert expected.shape == (2, 1, N)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_array_equal(session(converted.path).run(None, {"x": x})[0], expected)


def test_the_ort_file_needs_no_other_file(model, tmp_path):
    converted = to_ort(model, tmp_path / "model.ort")
    assert converted.n_bytes == converted.path.stat().st_size
    assert converted.onnxruntime == ort.__version__
    assert converted.path.read_bytes()[4:8] == b"ORTM"
    model.unlink()
    (tmp_path / "model.onnx_data").unlink()
    session(converted.path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.ort"]


def test_an_overridable_initializer_stays_one(model, tmp_path):
    loaded = session(to_ort(model, tmp_path / "model.ort").path)
    assert [value.name for value in loaded.get_inputs()] == ["x"]
    assert [value.name for value in loaded.get_overridable_initializers()] == ["num_logits_to_keep"]
    x = np.random.default_rng(1).standard_normal((1, 5, K)).astype(np.float32)
    three = loaded.run(None, {"x": x, "num_logits_to_keep": np.array([3], np.int64)})[0]
    assert three.shape == (1, 3, N)
    np.testing.assert_array_equal(three, session(model).run(None, {"x": x, "num_logits_to_keep": np.array([3])})[0])


def test_sizes_are_known_before_the_conversion(model, tmp_path):
    # 96 rows of 64 weights at four bits, and a float16 scale for each block of 32; one int64 each for the slice.
    codes, scales = 96 * 64 // 2, 96 * 2 * 2
    stored, folded = ort_bytes(model)
    assert stored - mobile._GRAPH_BYTES == codes + scales + 3 * 8
    assert folded == scales  # two bytes more for each scale, as float32
    converted = to_ort(model, tmp_path / "model.ort")
    assert converted.folded_bytes == scales
    plain = to_ort(write_model(tmp_path / "plain.onnx", half_scales=False), tmp_path / "plain.ort")
    assert plain.folded_bytes == 0
    assert abs(plain.n_bytes - converted.n_bytes) < 256


def test_a_model_over_the_limit_is_refused_before_anything_is_written(model, tmp_path, monkeypatch):
    monkeypatch.setattr(mobile, "ORT_LIMIT_BYTES", 2_000)
    monkeypatch.setattr(mobile, "_GRAPH_BYTES", 0)
    monkeypatch.setattr(mobile, "run_worker", lambda *_: pytest.fail("it was run"))
    with pytest.raises(UnsupportedError) as caught:
        to_ort(model, tmp_path / "model.ort")
    assert str(caught.value).startswith(f"{model}: its .ort would have ")
    assert "over the format's limit of " in str(caught.value)
    assert str(caught.value).endswith("use the .onnx, or a smaller quantization such as int4")
    assert not list(tmp_path.glob("*.ort*"))


def test_a_failure_leaves_nothing_and_keeps_what_was_there(model, tmp_path):
    (tmp_path / "model.ort").write_bytes(b"before")
    (tmp_path / "model.onnx_data").write_bytes(b"cut")
    with pytest.raises(EngineError) as caught:
        to_ort(model, tmp_path / "model.ort")
    assert str(caught.value).startswith(f"{model}: ONNX Runtime could not convert it to .ort: ")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "model.ort").read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx_data", "model.ort"]


@pytest.mark.parametrize("left", [b"", b"\0\0\0\0nope"])
def test_an_empty_or_foreign_result_is_no_success(model, tmp_path, monkeypatch, left):
    from pathlib import Path

    def worker(_job, request, _about):
        Path(request["out"]).write_bytes(left)
        return {"onnxruntime": "1.32.0"}

    monkeypatch.setattr(mobile, "run_worker", worker)
    with pytest.raises(ArtifactError, match=r"model.onnx: its .ort (is empty|does not begin as an .ort file does); "):
        to_ort(model, tmp_path / "model.ort")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx_data"]


def test_a_model_that_is_none(tmp_path):
    with pytest.raises(ArtifactError, match=r"none.onnx: cannot be read \(No such file or directory\)"):
        to_ort(tmp_path / "none.onnx", tmp_path / "model.ort")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ArtifactError, match=r"text.onnx: is not an ONNX model"):
        to_ort(tmp_path / "text.onnx", tmp_path / "model.ort")


def test_a_killed_worker_is_told(model, tmp_path, monkeypatch):
    import subprocess

    monkeypatch.setattr(mobile.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], -9, "", ""))
    with pytest.raises(EngineError, match=r"was killed by signal 9, often for want of memory"):
        to_ort(model, tmp_path / "model.ort")


def test_required_operators_are_those_of_the_graph_and_no_others(model, tmp_path):
    converted = to_ort(model, tmp_path / "model.ort")
    # The Cast is folded away. Versions are those in which the operators last changed before opset 21.
    assert required_operators(converted.path) == (
        "# Generated from model.ort\n"
        'ai.onnx;13;Neg{"inputs": {"0": ["int64_t"]}},Slice{"inputs": {"0": ["float"], "1": ["int64_t"]}}\n'
        "com.microsoft;1;MatMulNBits\n"
    )


def test_required_operators_of_something_else(model):
    with pytest.raises(ArtifactError, match=r"model.onnx: its .ort does not begin as an .ort file does"):
        required_operators(model)


def test_usability_counts_nodes_without_the_weights(model, tmp_path, capfd):
    (tmp_path / "model.onnx_data").unlink()
    model = write_without_small_external(model)
    result = usability(model)
    assert [provider.name for provider in result.providers] == list(PROVIDERS)
    nnapi = result.providers[0]
    # Neg and Slice are in ONNX Runtime's list for NNAPI, and Cast; MatMulNBits is not.
    assert nnapi.fixed == Partitioning(nodes=4, supported=3, partitions=1, suitability="maybe")
    assert nnapi.as_is == Partitioning(nodes=4, supported=2, partitions=1, suitability="no")
    assert nnapi.unsupported == ("com.microsoft:MatMulNBits",)
    assert result.notes()[0] == (
        "NNAPI would take 3 of 4 nodes in 1 partition if every shape were fixed: compare it with the CPU on a device"
    )
    assert result.to_json()["providers"][0]["fixed"]["supported"] == 3
    assert capfd.readouterr() == ("", "")


def write_without_small_external(path):
    """Let every tensor of the data file look large: none may be read."""
    proto = onnx.load(str(path), load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "length":
                entry.value = str(1 << 20)
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("as_is", "fixed", "note"),
    [
        ((400, 12, 8, "no"), (400, 12, 8, "no"), "NNAPI would take 12 of 400 nodes in 8 partitions: run on the CPU"),
        ((4, 4, 1, "yes"), (4, 4, 1, "yes"),
         "NNAPI would take 4 of 4 nodes in 1 partition: compare it with the CPU on a device"),
        ((4, 0, 0, "no"), (4, 4, 1, "yes"),
         "NNAPI would take 4 of 4 nodes in 1 partition if every shape were fixed: compare it with the CPU on a device"),
    ],
)  # fmt: skip
def test_notes_for_people(as_is, fixed, note):
    use = ProviderUse("NNAPI", Partitioning(*as_is), Partitioning(*fixed), ())
    assert use.note() == note
    assert use.worth_trying == note.endswith("device")
