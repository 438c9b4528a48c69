"""The first release of ONNX Runtime for a graph: what was measured on the releases, as a table."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.errors import UserError
from targets.onnx.releases import NEWEST, RELEASES, minimum_onnxruntime, opset_for

onnx = pytest.importorskip("onnx")


def graph(op, inputs=("x",), opset=17, ir=8, domain="com.microsoft", initializers=None, **attributes):
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node(op, list(inputs), ["y"], domain=domain, **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    stored = [numpy_helper.from_array(value, name) for name, value in (initializers or {}).items()]
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(helper.make_graph([node], "g", [x], [y], stored), opset_imports=opsets, ir_version=ir)


HALF = {"scales": np.ones(2, np.float16)}
BYTES = {"codes": np.ones((2, 2), np.uint8)}
CACHED = ["qkv", "", "", "k", "v", "lengths", "total", "cos", "sin"]


@pytest.mark.parametrize(
    ("model", "version"),
    [
        (graph("QuickGelu"), "1.16"),
        (graph("Relu", domain=""), "1.16"),
        (graph("Relu", domain="", opset=20), "1.17"),
        (graph("Relu", domain="", opset=21, ir=10), "1.18"),
        (graph("Relu", domain="", opset=22, ir=10), "1.21"),
        (graph("Relu", domain="", opset=17, ir=11), "1.23"),
        (graph("MatMulNBits", ["x", "codes", "scales"], bits=4, accuracy_level=4), "1.17"),
        (graph("MatMulNBits", ["x", "codes", "scales"], bits=4, accuracy_level=4, initializers=HALF), "1.20"),
        (graph("MatMulNBits", ["x", "codes", "scales"], bits=8, accuracy_level=4), "1.22"),
        (graph("MatMulNBits", ["x", "codes", "scales"], bits=8), "1.23"),
        (graph("GatherBlockQuantized", ["codes", "x", "scales"]), "1.20"),
        (graph("GatherBlockQuantized", ["codes", "x", "scales"], initializers=BYTES), "1.23"),
        (graph("GroupQueryAttention", CACHED, do_rotary=1), "1.20"),
        (graph("GroupQueryAttention", [*CACHED, "", "bias"]), "1.22"),
        (graph("GroupQueryAttention", CACHED, local_window_size=-1), "1.20"),
        (graph("GroupQueryAttention", CACHED, local_window_size=512), "1.24"),
        (graph("MultiHeadAttention", ["q", "k", "v", "b"]), "1.16"),
        (graph("MultiHeadAttention", ["q", "k", "v", "", "", "bias"]), "1.20"),
        (graph("SomethingNew"), "1.32"),
    ],
)
def test_the_first_release(model, version):
    assert minimum_onnxruntime(model).version == version


def test_the_reason_names_the_operator():
    assert minimum_onnxruntime(graph("GroupQueryAttention", CACHED, local_window_size=512)).because == (
        "GroupQueryAttention with a window (1.23 and before see one token too many)"
    )


@pytest.mark.parametrize(
    ("version", "opset", "ir"), [("1.16", 19, 9), ("1.22.1", 22, 10), ("1.23", 23, 11), ("1.31.1", 26, 13)]
)
def test_what_a_release_loads(version, opset, ir):
    assert opset_for(version)[1:] == (opset, ir)


def test_the_newest_release_stands_for_newer_ones():
    assert opset_for() == opset_for("1.99") == NEWEST
    assert list(RELEASES) == sorted(RELEASES)


@pytest.mark.parametrize("version", ["1.15", "one", "1"])
def test_versions_that_are_refused(version):
    with pytest.raises(UserError):
        opset_for(version)


def test_the_installed_release_loads_what_the_table_says(tmp_path):
    ort = pytest.importorskip("onnxruntime")
    release = opset_for(ort.__version__)
    model = graph("Relu", domain="", opset=release.opset, ir=release.ir)
    loaded = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [item.name for item in loaded.get_inputs()] == [item.name for item in model.graph.input]
