"""What phones need beside the .onnx: ONNX Runtime's `.ort` file, and the operators that a reduced build has to keep.

ONNX Runtime makes both itself, in a process of its own (`targets.onnx.ort_worker`): a conversion takes about twice the
model in memory, and its tools log to the root logger and change the search path of modules.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.atomic import replacing
from runtime.errors import ArtifactError, EngineError, UnsupportedError
from runtime.units import format_bytes

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto

ORT_LIMIT_BYTES = 2**31 - 1
"""A flatbuffer's offsets are signed 32-bit numbers. ONNX Runtime does not look: it fails and leaves an empty file."""
ORT_IDENTIFIER = b"ORTM"
"""The file identifier of an .ort flatbuffer: bytes 4 to 8."""
_GRAPH_BYTES = 1 << 20  # nodes and names of a decoder are some hundred kB; a margin, for the refusal only


@dataclass(frozen=True)
class OrtFile:
    """A converted model.

    path: the .ort; n_bytes: its size; folded_bytes: what it has more than the .onnx because constants that the .onnx
        stores small (float16 scales of blocks under a Cast) are stored as the kernels want them
    onnxruntime: the version that made it. Older ones refuse it, though they load the .onnx: an .ort lists the inputs
        that each operator had in that version
    """

    path: Path
    n_bytes: int
    folded_bytes: int
    onnxruntime: str


def to_ort(model: Path, out: Path) -> OrtFile:
    """Convert the .onnx at `model` (with the external data beside it) to ONNX Runtime's format at `out`.

    The file holds the weights and the fused graph; it runs on Arm and x86 alike. Constants are folded. That is not
    a choice: no optimizer runs when an .ort is loaded, and MatMulNBits silently answers zeros where its scales are
    computed (float16 scales under a Cast) and not constant.
    Raises ArtifactError for a model that is not there or not ONNX, UnsupportedError for one that would be over 2 GB,
    EngineError where ONNX Runtime fails. Then nothing is left behind, and a file that was at `out` before stays.
    """
    stored, folded = ort_bytes(model)
    if stored + folded > ORT_LIMIT_BYTES:
        raise UnsupportedError(
            f"{model}: its .ort would have {format_bytes(stored + folded)}, over the format's limit of "
            f"{format_bytes(ORT_LIMIT_BYTES)}; use the .onnx, or a smaller quantization such as int4"
        )
    with replacing(out) as partial:
        version = run_worker("convert", {"model": str(model), "out": str(partial)}, model)["onnxruntime"]
        n_bytes = _checked(partial, model)
    return OrtFile(path=out, n_bytes=n_bytes, folded_bytes=folded, onnxruntime=version)


def required_operators(ort: Path) -> str:
    """The operators and types that `ort` needs, as text for `build.py --include_ops_by_config` of ONNX Runtime.

    One line for each domain and version, `domain;version;Op{"inputs": {"0": ["float"]}},…`, as ONNX Runtime's own tool
    writes them. Only an .ort has them: an .onnx is fused on the device, into operators that depend on its processor.
    Raises ArtifactError where `ort` is not an .ort file, EngineError where the tool fails.
    """
    _checked(ort, ort)
    text: str = run_worker("operators", {"ort": str(ort)}, ort)["config"]
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return "\n".join([f"# Generated from {ort.name}", *lines, ""])


def ort_bytes(model: Path) -> tuple[int, int]:
    """Bytes that the weights and the graph of the .onnx at `model` will have in an .ort, and bytes that folding adds.

    Read from the graph alone; no weight is loaded. Raises ArtifactError.
    """
    graph = load_graph(model).graph
    sizes = {tensor.name: _tensor_bytes(tensor) for tensor in graph.initializer}
    return sum(sizes.values()) + _GRAPH_BYTES, _folded_bytes(graph, sizes)


def load_graph(model: Path) -> ModelProto:
    """The ModelProto at `model` without its external weights. Raises ArtifactError that names the file."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load(str(model), load_external_data=False)
    except OSError as error:
        raise ArtifactError(f"{model}: cannot be read ({error.strerror}); export the model again") from error
    except DecodeError as error:
        raise ArtifactError(f"{model}: is not an ONNX model ({error}); export the model again") from error
    if not proto.graph.node:
        raise ArtifactError(f"{model}: has no nodes, it is not an ONNX model; export the model again")
    return proto


def run_worker(job: str, request: dict[str, Any], about: Path) -> dict[str, Any]:
    """Do one job of `targets.onnx.ort_worker` in a process of its own. Raises EngineError that names `about`."""
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-P", "-m", "targets.onnx.ort_worker", job],
        input=json.dumps(request), capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    answer: dict[str, Any] = {}
    with contextlib.suppress(json.JSONDecodeError):
        answer = json.loads(done.stdout)
    if done.returncode == 0 and "error" not in answer:
        return answer
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    killed = f"was killed by signal {-done.returncode}, often for want of memory" if done.returncode < 0 else last
    raise EngineError(f"{about}: ONNX Runtime could not {_JOBS[job]}: {answer.get('error', killed)}")


_JOBS = {
    "convert": "convert it to .ort",
    "operators": "list its operators",
    "uniform": "look into its weights",
    "usability": "judge its use on phones",
}


def _checked(path: Path, about: Path) -> int:
    """Bytes of the .ort at `path`. Raises ArtifactError where it is missing, empty or something else."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise ArtifactError(f"{about}: there is no .ort file ({error.strerror}); convert the model again") from error
    if head[4:] != ORT_IDENTIFIER:
        what = "is empty" if not head else "does not begin as an .ort file does"
        raise ArtifactError(f"{about}: its .ort {what}; convert the model again")
    return path.stat().st_size


def _tensor_bytes(tensor: TensorProto) -> int:
    """Bytes of a tensor's data, from its shape and type."""
    from onnx import TensorProto, helper

    count = prod(tensor.dims)
    if tensor.data_type in (TensorProto.UINT4, TensorProto.INT4):
        return int(count + 1) // 2
    if tensor.data_type == TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    return int(count * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _folded_bytes(graph: GraphProto, sizes: dict[str, int]) -> int:
    """Bytes that Casts of stored float16 tensors to float32 add when they are folded."""
    from onnx import TensorProto

    halves = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    # A folded Cast's input goes away: float16 becomes float32, twice the bytes.
    wide = {
        node.input[0]
        for node in graph.node
        if node.op_type == "Cast"
        and node.input[0] in halves
        and any(attribute.name == "to" and attribute.i == TensorProto.FLOAT for attribute in node.attribute)
    }
    return sum(sizes[name] for name in wide)
