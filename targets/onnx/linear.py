"""How a matrix of weights becomes nodes: one class a scheme. Decoders and encoders ask a scheme, never an operator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from targets.onnx.weights import CHANNEL_MIDDLE, Blob, BlocksJob, ChannelJob, FloatJob, VectorJob

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from targets.onnx.blocks import BlockGrid
    from targets.onnx.graph import GraphBuilder
    from targets.onnx.ongrid import OnGrid
    from targets.onnx.weights import Matrix

    Floats = npt.NDArray[np.float32]

ACCURACY_INT8 = 4
"""MatMulNBits' accuracy_level that multiplies in int8: what makes it fast on x86 (VNNI) and Arm (dotprod, i8mm)."""
UINT8_LARGEST = 255


@dataclass(frozen=True)
class Layer:
    """A linear layer: x @ weight.T + bias.

    name: in the graph, such as "layers.0.attn.qkv"; weight: (outputs, inputs); bias: vectors, one behind the other
    norm: the weights of the norm whose output it reads, (inputs,); None where it reads something else
    """

    name: str
    weight: Matrix
    bias: Matrix | None = None
    norm: Matrix | None = None

    def has_codes(self, given: OnGrid | None) -> bool:
        """Whether some of its rows have codes already, which no factor may change."""
        return given is not None and any(part.fact.name in given for part in self.weight.parts)


class Scheme(Protocol):
    """A way to store a matrix and to multiply by it. Schemes that compare equal can be fused along the outputs."""

    @property
    def label(self) -> str:
        """For people and the manifest: "int4 block 32"."""

    def linear(self, graph: GraphBuilder, layer: Layer, x: str) -> str:
        """Nodes for the layer on the value `x`, shape (…, inputs); returns a value of shape (…, outputs)."""

    def bits(self, layer_columns: int) -> float:
        """Stored bits of one weight in a row of so many, scales included."""


def vector(graph: GraphBuilder, name: str, matrix: Matrix, dtype: npt.DTypeLike) -> str:
    """Vectors, one behind the other, as one weight."""
    n = sum(part.fact.n_elements for part in matrix.parts)
    return graph.weight(VectorJob((Blob(name, np.dtype(dtype), (n,)),), matrix))[0]


def _with_bias(graph: GraphBuilder, layer: Layer, y: str, dtype: npt.DTypeLike) -> str:
    if layer.bias is None:
        return y
    return graph.node("Add", (y, vector(graph, f"{layer.name}.bias", layer.bias, dtype)), f"{layer.name}.biased")


@dataclass(frozen=True)
class FloatScheme:
    """Float weights, multiplied as they are; dtype: "float32" or "float16", of weights and activations."""

    dtype: str

    @property
    def label(self) -> str:
        """See `Scheme`."""
        return self.dtype

    def bits(self, layer_columns: int) -> float:  # noqa: ARG002
        """See `Scheme`."""
        return 8.0 * np.dtype(self.dtype).itemsize

    def linear(self, graph: GraphBuilder, layer: Layer, x: str) -> str:
        """See `Scheme`."""
        matrix = layer.weight
        blob = Blob(f"{layer.name}.weight", np.dtype(self.dtype), (matrix.n_columns, matrix.n_rows))
        (weight,) = graph.weight(FloatJob((blob,), matrix, transposed=True))
        return _with_bias(graph, layer, graph.node("MatMul", (x, weight), layer.name), self.dtype)


@dataclass(frozen=True)
class BlockScheme:
    """Weights in blocks, `MatMulNBits`; activations are float32 outside and int8 inside.

    given: codes that were chosen before
    """

    grid: BlockGrid
    given: OnGrid | None = field(default=None, compare=False)

    @property
    def label(self) -> str:
        """See `Scheme`."""
        return self.grid.name

    def bits(self, layer_columns: int) -> float:
        """See `Scheme`."""
        return 8.0 * sum(self.grid.row_bytes(layer_columns)) / layer_columns

    def store(
        self, graph: GraphBuilder, name: str, matrix: Matrix, norm: Matrix | None = None, *, flat: bool = False
    ) -> tuple[str, str, str]:
        """The weights as names of codes (rows, blocks, bytes), scales as float32, and zero points ("" for none).

        flat: codes are (rows, bytes), as a table is read that is no head
        """
        rows, blocks = matrix.n_rows, self.grid.n_blocks(matrix.n_columns)
        size = self.grid.size * self.grid.bits // 8
        blobs = [
            Blob(f"{name}.codes", np.dtype(np.uint8), (rows, blocks * size) if flat else (rows, blocks, size)),
            Blob(f"{name}.scales", np.dtype(np.float16 if self.grid.half_scales else np.float32), (rows, blocks)),
        ]
        if not self.grid.symmetric:
            n_bytes = (blocks * self.grid.bits + 7) // 8
            blobs.append(Blob(f"{name}.zero_points", np.dtype(np.uint8), (rows, n_bytes)))
        codes, scales, *zeros = graph.weight(BlocksJob(tuple(blobs), matrix, self.grid, self.given, norm))
        if self.grid.half_scales:
            # The operator wants the activations' type. ONNX Runtime does this cast once, on loading.
            scales = graph.node("Cast", (scales,), f"{scales}.float", to=1)
        return codes, scales, zeros[0] if zeros else ""

    def lookup(
        self, graph: GraphBuilder, name: str, ids: str, stored: tuple[str, str, str], as_matrix: tuple[int, int] | None
    ) -> str:
        """Rows of a stored table, decoded.

        as_matrix: rows and columns, where `multiply` reads the table as well: the same bytes are seen as a matrix
        """
        codes, scales, zeros = stored
        rows = codes
        if as_matrix is not None:
            rows = graph.alias(f"{name}.rows", codes, (as_matrix[0], self.grid.row_bytes(as_matrix[1])[0]))
        return graph.node(
            "GatherBlockQuantized", [rows, ids, scales, *([zeros] if zeros else [])], name, bits=self.grid.bits,
            block_size=self.grid.size, gather_axis=0, quantize_axis=1,
        )  # fmt: skip

    def multiply(self, graph: GraphBuilder, name: str, x: str, stored: tuple[str, str, str], shape: tuple[int, int],
                 bias: str = "") -> str:  # fmt: skip
        """The product with stored weights of shape (rows, columns)."""
        inputs = [x, *stored, "", bias]
        while not inputs[-1]:
            inputs.pop()
        return graph.node(
            "MatMulNBits", inputs, name, N=shape[0], K=shape[1], bits=self.grid.bits, block_size=self.grid.size,
            accuracy_level=ACCURACY_INT8,
        )  # fmt: skip

    def linear(self, graph: GraphBuilder, layer: Layer, x: str) -> str:
        """See `Scheme`."""
        matrix = layer.weight
        stored = self.store(graph, layer.name, matrix, layer.norm)
        bias = "" if layer.bias is None else vector(graph, f"{layer.name}.bias", layer.bias, np.float32)
        return self.multiply(graph, layer.name, x, stored, (matrix.n_rows, matrix.n_columns), bias)


def _channels(
    graph: GraphBuilder, layer: Layer, x: str, smoothing: Mapping[str, Floats], given: OnGrid | None
) -> tuple[str, str, str]:  # fmt: skip
    """The input, smoothed where the layer has factors and no codes yet; 8-bit weights (inputs, outputs); their scales.

    smoothing, given: see DynamicScheme

    Codes are unsigned around CHANNEL_MIDDLE: x86 without VNNI multiplies unsigned inputs by signed weights in 16 bits
    that overflow, silently, unless an application asks for session.x64quantprecision (ONNX Runtime's documentation of
    quantization, "U8S8"). Whoever runs the file gets the same numbers so.
    """
    matrix, factors = layer.weight, None if layer.has_codes(given) else smoothing.get(layer.name)
    weight = Blob(f"{layer.name}.weight", np.dtype(np.uint8), (matrix.n_columns, matrix.n_rows))
    scales = Blob(f"{layer.name}.scales", np.dtype(np.float32), (matrix.n_rows,))
    stored, steps = graph.weight(ChannelJob((weight, scales), matrix, factors, given))
    return _smoothed(graph, layer, x, factors), stored, steps


def _smoothed(graph: GraphBuilder, layer: Layer, x: str, factors: Floats | None) -> str:
    """The input, each feature divided by its factor, which the weights take over (SmoothQuant, arXiv:2211.10438)."""
    if factors is None:
        return x
    return graph.node("Mul", (x, graph.table(f"{layer.name}.smoothing", 1 / factors)), f"{layer.name}.smoothed")


@dataclass(frozen=True)
class DynamicScheme:
    """int8 weights with a scale an output channel; activations become uint8 by their range at run time.

    smoothing: by a layer's name, what each feature of its input is divided by first, shape (inputs,)
    given: codes that were chosen before; their layers are not smoothed
    """

    smoothing: dict[str, Floats] = field(default_factory=dict, compare=False)
    given: OnGrid | None = field(default=None, compare=False)
    label: str = "int8 channels, dynamic activations"

    def bits(self, layer_columns: int) -> float:
        """See `Scheme`."""
        return 8.0 + 32.0 / layer_columns

    def linear(self, graph: GraphBuilder, layer: Layer, x: str) -> str:
        """See `Scheme`."""
        inputs = [*_channels(graph, layer, x, self.smoothing, self.given), graph.constant(CHANNEL_MIDDLE, np.uint8)]
        if layer.bias is not None:
            inputs.append(vector(graph, f"{layer.name}.bias", layer.bias, np.float32))
        return graph.node("DynamicQuantizeMatMul", inputs, layer.name)


@dataclass(frozen=True)
class StaticScheme:
    """int8 weights with a scale an output channel; activations become uint8 by ranges that were calibrated.

    ranges: (lowest, highest) of the input of each layer, smoothed, by the layer's name
    smoothing, given: as in DynamicScheme
    weights_only: layers whose inputs no fixed range holds; they take `otherwise`
    """

    ranges: dict[str, tuple[float, float]] = field(compare=False)
    weights_only: frozenset[str]
    otherwise: Scheme
    smoothing: dict[str, Floats] = field(default_factory=dict, compare=False)
    given: OnGrid | None = field(default=None, compare=False)
    label: str = "int8 channels, static activations"

    def bits(self, layer_columns: int) -> float:
        """See `Scheme`."""
        return 8.0 + 32.0 / layer_columns

    def linear(self, graph: GraphBuilder, layer: Layer, x: str) -> str:
        """See `Scheme`. In ONNX's QuantizeLinear and DequantizeLinear, which ONNX Runtime fuses with the product."""
        if layer.name in self.weights_only:
            return self.otherwise.linear(graph, layer, x)
        name = layer.name
        x, weight, scales = _channels(graph, layer, x, self.smoothing, self.given)
        scale, zero = activation_grid(*self.ranges[name])
        step = graph.constant(scale, np.float32)
        offset = graph.constant(zero, np.uint8)
        rounded = graph.node("QuantizeLinear", (x, step, offset), f"{name}.input_codes")
        value = graph.node("DequantizeLinear", (rounded, step, offset), f"{name}.input")
        n_rows = layer.weight.n_rows
        middles = graph.table(f"zero_points.{n_rows}", np.full(n_rows, CHANNEL_MIDDLE, np.uint8))
        matrix = graph.node("DequantizeLinear", (weight, scales, middles), f"{name}.matrix", axis=1)
        return _with_bias(graph, layer, graph.node("MatMul", (value, matrix), name), np.float32)


def activation_grid(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of uint8 codes over low..high, widened to hold zero exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / UINT8_LARGEST or 1.0
    return scale, int(min(max(round(-low / scale), 0), UINT8_LARGEST))
