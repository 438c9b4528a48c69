"""An ONNX graph while it is being written: nodes and small constants here, weights as blobs of an external file."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from targets.onnx.weights import Blob, ValuesJob

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    import onnx

    from targets.onnx.weights import Job

MICROSOFT = "com.microsoft"
CONTRIB = frozenset({
    "GroupQueryAttention", "SkipSimplifiedLayerNormalization", "MatMulNBits", "GatherBlockQuantized", "QuickGelu",
    "MultiHeadAttention", "SkipLayerNormalization", "BiasGelu", "FastGelu", "DynamicQuantizeMatMul", "FusedMatMul",
})  # fmt: skip
"""Operators of ONNX Runtime's own domain. SimplifiedLayerNormalization lies in the default one."""
Dim = int | str | None


@dataclass
class GraphBuilder:
    """Collects a graph. Every method that makes a value returns its name.

    name: of the graph; nodes, values: as they come; jobs: what fills the external weights
    """

    name: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    _inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    _outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    _constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    _tables: set[str] = field(default_factory=set)
    aliases: list[tuple[str, str, tuple[int, ...]]] = field(default_factory=list)

    def node(self, op: str, inputs: Sequence[str], name: str, n_outputs: int = 1, **attributes: Any) -> str:
        """Add a node called `name`; its first output is `name`, further ones `name.1` and on. "" is an absent input."""
        outputs = [name, *(f"{name}.{number}" for number in range(1, n_outputs))]
        return self.node_to(op, inputs, outputs, **attributes)

    def node_to(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> str:
        """Add a node with named outputs ("" for one that nobody reads); returns the first."""
        import onnx.helper

        domain = MICROSOFT if op in CONTRIB else ""
        name = f"/{next(output for output in outputs if output).replace('.', '/')}/{op}"
        self.nodes.append(
            onnx.helper.make_node(op, list(inputs), list(outputs), name=name, domain=domain or None, **attributes)
        )
        return outputs[0]

    def input(self, name: str, dtype: type[np.generic], shape: Sequence[Dim]) -> str:
        """A graph input; names in the shape are free dimensions."""
        self._inputs.append(_value(name, dtype, shape))
        return name

    def output(self, name: str, dtype: type[np.generic], shape: Sequence[Dim]) -> None:
        """Make a value a graph output."""
        self._outputs.append(_value(name, dtype, shape))

    def constant(self, values: npt.ArrayLike, dtype: type[np.generic] = np.int64) -> str:
        """A small constant inside the graph; equal ones are one."""
        import onnx.numpy_helper

        array = np.asarray(values, dtype)
        text = "x".join(map(str, array.shape)) or "scalar"
        name = f"const.{array.dtype}.{text}." + ".".join(repr(value) for value in array.reshape(-1).tolist())
        if name not in self._constants:
            self._constants[name] = onnx.numpy_helper.from_array(array, name)
        return name

    def default_input(self, name: str, values: npt.ArrayLike, dtype: type[np.generic] = np.int64) -> str:
        """An input that has a default: ONNX Runtime calls it an overridable initializer and asks no client for it."""
        import onnx.numpy_helper

        array = np.asarray(values, dtype)
        self._constants[name] = onnx.numpy_helper.from_array(array, name)
        return self.input(name, dtype, array.shape)

    def weight(self, job: Job) -> tuple[str, ...]:
        """Take a job; returns the names of its blobs."""
        self.jobs.append(job)
        return tuple(blob.name for blob in job.blobs)

    def table(self, name: str, values: npt.NDArray[np.generic]) -> str:
        """Generated values that are too many for the graph itself; those of one name are stored once."""
        if name in self._tables:
            return name
        self._tables.add(name)
        return self.weight(ValuesJob((Blob(name, values.dtype, values.shape),), values))[0]

    def alias(self, name: str, of: str, shape: tuple[int, ...]) -> str:
        """A second tensor over the same bytes of the data file, in another shape."""
        self.aliases.append((name, of, shape))
        return name

    def proto(self, data_files: Sequence[str], opset: int, ir_version: int) -> onnx.ModelProto:
        """The model, its weights at their places in `data_files`. Call after the jobs are laid out."""
        import onnx.helper

        blobs = {blob.name: blob for job in self.jobs for blob in job.blobs}
        stored = [_external(blob, blob.name, blob.shape, data_files) for blob in blobs.values()]
        stored += [_external(blobs[of], name, shape, data_files) for name, of, shape in self.aliases]
        graph = onnx.helper.make_graph(
            self.nodes, self.name, self._inputs, self._outputs, [*self._constants.values(), *stored]
        )
        imports = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(MICROSOFT, 1)]
        return onnx.helper.make_model(graph, opset_imports=imports, ir_version=ir_version, producer_name="packlight")


def _value(name: str, dtype: type[np.generic], shape: Sequence[Dim]) -> onnx.ValueInfoProto:
    import onnx.helper

    return onnx.helper.make_value_info(name, _tensor_type(np.dtype(dtype), tuple(shape)))


@functools.cache
def _tensor_type(dtype: np.dtype[np.generic], shape: tuple[Dim, ...]) -> onnx.TypeProto:
    """Once for all layers, whose caches are alike: making one takes longer than the rest of a node."""
    import onnx.helper

    return onnx.helper.make_tensor_type_proto(onnx.helper.np_dtype_to_tensor_dtype(dtype), list(shape))


def _external(blob: Blob, name: str, shape: tuple[int, ...], data_files: Sequence[str]) -> onnx.TensorProto:
    """A tensor whose bytes lie in one of the data files."""
    import onnx

    tensor = onnx.TensorProto(
        name=name, dims=shape, data_type=onnx.helper.np_dtype_to_tensor_dtype(blob.dtype),
        data_location=onnx.TensorProto.EXTERNAL,
    )  # fmt: skip
    for key, value in (("location", data_files[blob.file]), ("offset", blob.offset), ("length", blob.n_bytes)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
    return tensor
