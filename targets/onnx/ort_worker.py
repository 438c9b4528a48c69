"""A process that runs ONNX Runtime's own tools: `python -m targets.onnx.ort_worker JOB`, a JSON request on stdin.

It answers with one JSON object on stdout: the result, or {"error": one line}. What the tools print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx import ModelProto
    from onnxruntime.tools.mobile_helpers.usability_checker import PartitioningInfo

PIECE_BYTES = 1 << 18
"""Looked at together; a healthy matrix is left after the first piece."""
SMALL_BYTES = 4096
"""External tensors up to this size are read for shape inference: shapes and axes are among them, weights are not."""


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """Load `model`, fuse it, and save it as .ort at `out`. {"onnxruntime": the version that did}."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = request["out"]
    # Every fusion for the CPU, and none of the layouts (NCHWc) that fit one kind of processor only.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.save_model_format", "ORT")
    # Keep int8 as it is: x86 would have it changed to uint8, which Arm's dot products do not want.
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    # Nothing is run here: packing the weights for this processor would only cost memory.
    options.add_session_config_entry("session.disable_prepacking", "1")
    onnxruntime.InferenceSession(request["model"], options, providers=["CPUExecutionProvider"])
    return {"onnxruntime": onnxruntime.__version__}


def operators(request: dict[str, Any]) -> dict[str, Any]:
    """Text of the configuration of a reduced build for the .ort at `ort`, with the types of each operator."""
    from onnxruntime.tools.ort_format_model import create_config_from_models

    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "required_operators_and_types.config"
        create_config_from_models([Path(request["ort"])], config, True)
        return {"config": config.read_text(encoding="utf-8")}


def uniform(request: dict[str, Any]) -> dict[str, Any]:
    """Initializers of the .ort at `ort`, with two dimensions or more, whose bytes are all one value.

    {"tensors": {name: that value}}. Only pages that are looked at are read.
    """
    import mmap

    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.InferenceSession import InferenceSession

    found: dict[str, int] = {}
    with Path(request["ort"]).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        graph = InferenceSession.GetRootAs(data, 0).Model().Graph()
        for number in range(graph.InitializersLength()):
            tensor = graph.Initializers(number)
            if tensor.DimsLength() < 2 or not tensor.RawDataLength():
                continue
            values = tensor.RawDataAsNumpy()
            pieces = range(0, values.size, PIECE_BYTES)
            if all((values[at : at + PIECE_BYTES] == values[0]).all() for at in pieces):
                found[tensor.Name().decode()] = int(values[0])
            del values  # a view of the map, which could not be closed
    return {"tensors": found}


def usability(request: dict[str, Any]) -> dict[str, Any]:
    """How much of the .onnx at `model` each accelerator of phones takes, by ONNX Runtime's own check.

    {"providers": [{"name", "as_is": {…}, "fixed": {…}}]}: with the shapes as they are, and as if they were fixed.
    """
    from onnxruntime.tools.mobile_helpers import usability_checker as checker

    model = _with_shapes(Path(request["model"]))
    checks: dict[str, Callable[[bool], PartitioningInfo]] = {
        "NNAPI": lambda fixed: checker.check_nnapi_partitions(model, fixed),
        "CoreML NeuralNetwork": lambda fixed: checker.check_coreml_partitions(
            model, fixed, "coreml_supported_neuralnetwork_ops.md"
        ),
        "CoreML MLProgram": lambda fixed: checker.check_coreml_partitions(
            model, fixed, "coreml_supported_mlprogram_ops.md"
        ),
    }
    return {
        "providers": [
            {"name": name, "as_is": _partitions(check(True)), "fixed": _partitions(check(False))}
            for name, check in checks.items()
        ]
    }


def _with_shapes(path: Path) -> ModelProto:
    """The model with the shapes that ONNX can infer; of the external weights only small ones are read."""
    import onnx
    from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        if uses_external_data(tensor) and int(where.get("length", SMALL_BYTES + 1)) <= SMALL_BYTES:
            load_external_data_for_tensor(tensor, str(path.parent))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    # Not strict: com.microsoft's operators are unknown to ONNX, and what follows them keeps an unknown shape.
    inferred = onnx.shape_inference.infer_shapes(model)
    if not inferred.graph.value_info:  # the check takes this for a model on which inference was forgotten
        inferred.graph.value_info.add().name = "no shape is known"
    return inferred


def _partitions(info: PartitioningInfo) -> dict[str, Any]:
    """Plain data of a PartitioningInfo."""
    return {
        "nodes": info.num_nodes,
        "supported": info.num_supported_nodes,
        "partitions": info.num_partitions,
        "suitability": info.suitability().name.lower(),
        "unsupported": sorted(info.unsupported_ops),
    }


JOBS = {"convert": convert, "operators": operators, "uniform": uniform, "usability": usability}


def main() -> int:
    """Do the job named on the command line; 0 when it was done."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to stderr, so that it cannot garble the answer
    try:
        answer = JOBS[sys.argv[1]](json.load(sys.stdin))
    except Exception as error:  # noqa: BLE001 - every failure of a foreign tool becomes one line for the parent
        answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    out.write(json.dumps(answer))
    out.flush()
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    raise SystemExit(main())
