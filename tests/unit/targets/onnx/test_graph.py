"""The graph writer: names, constants, places of weights, and that ONNX Runtime runs what it wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from targets.onnx.graph import GraphBuilder
from targets.onnx.weights import lay_out

if TYPE_CHECKING:
    from pathlib import Path


def test_equal_constants_are_one() -> None:
    graph = GraphBuilder("g")
    one = graph.constant([1])
    assert graph.constant([1]) == one
    others = {graph.constant(1), graph.constant([1], np.float32), graph.constant([[1]]), graph.constant([1, 1])}
    assert len(others | {one}) == 5
    assert len(graph.proto([], 21, 10).graph.initializer) == 5


@pytest.mark.parametrize(("one", "other"), [(1.0000001, 1.0000002), (16777217, 16777216), (1e-7, 1.0000001e-7)])
def test_constants_that_differ_are_two(one: float, other: float) -> None:
    """What a short text of the numbers would take for the same."""
    graph = GraphBuilder("g")
    names = [graph.constant(value, np.float64) for value in (one, other)]
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.proto([], 21, 10).graph.initializer}
    assert [float(stored[name]) for name in names] == [one, other]


def test_nodes_know_their_domain_and_names() -> None:
    graph = GraphBuilder("g")
    assert graph.node("Split", ("x",), "a.b", n_outputs=3, axis=-1) == "a.b"
    graph.node_to("SkipSimplifiedLayerNormalization", ("x", "y", "g"), ("", "", "", "sum"), epsilon=1e-5)
    split, skip = graph.nodes
    assert (split.name, split.domain, list(split.output)) == ("/a/b/Split", "", ["a.b", "a.b.1", "a.b.2"])
    assert (skip.name, skip.domain) == ("/sum/SkipSimplifiedLayerNormalization", "com.microsoft")


def test_a_graph_runs_with_its_weights_in_two_files(tmp_path: Path) -> None:
    import onnxruntime

    graph = GraphBuilder("g")
    x = graph.input("x", np.float32, ("n", 2))
    times = graph.default_input("times", [1.0], np.float32)
    one = graph.table("one", np.array([[1, 2], [3, 4]], np.float32))
    two = graph.table("two", np.array([10, 20], np.float32))
    three = graph.table("three", np.array([0.5], np.float32))
    flat = graph.alias("one.flat", one, (4,))
    product = graph.node("MatMul", (x, one), "product")
    total = graph.node("Add", (graph.node("Mul", (product, times), "scaled"), two), "sum")
    more = graph.node("Add", (graph.node("ReduceSum", (flat,), "all", keepdims=0), three), "more")
    graph.node("Add", (total, more), "y")
    graph.output("y", np.float32, ("n", 2))
    # the second would end at byte 72, so it begins a file; the third lies behind it
    assert lay_out(graph.jobs, 71) == [16, 68]
    names = ["data", "data_1"]
    room = [bytearray(16), bytearray(68)]
    for job in graph.jobs:
        (stored,) = job.blobs
        room[stored.file][stored.offset : stored.offset + stored.n_bytes] = job.values.tobytes()  # type: ignore[attr-defined]
    for name, content in zip(names, room, strict=True):
        (tmp_path / name).write_bytes(content)
    proto = graph.proto(names, 21, 10)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    onnx.checker.check_model(str(tmp_path / "m.onnx"))
    assert (proto.ir_version, proto.producer_name) == (10, "packlight")
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 21), ("com.microsoft", 1)]
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    feeds = {"x": np.array([[1, 1]], np.float32)}
    assert session.run(None, feeds)[0].tolist() == [[4 + 10 + 10.5, 6 + 20 + 10.5]]
    assert session.run(None, {**feeds, "times": np.array([2], np.float32)})[0].tolist() == [[28.5, 42.5]]
