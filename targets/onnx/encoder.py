"""An encoder as an ONNX graph: fused attention, norms and activations; a sentence embedding or a head at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from targets.onnx.graph import GraphBuilder
from targets.onnx.linear import BlockScheme, FloatScheme, Layer, Scheme, vector
from targets.onnx.weights import Blob, FloatJob, Matrix, Part
from targets.task import FEATURE_EXTRACTION, TEXT_CLASSIFICATION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from targets.facts import TensorFact
    from targets.onnx.encoder_spec import EncoderSpec
    from targets.pooling import Pooling

    SchemeOf = Callable[[str, int], Scheme]

FLOAT, INT32, INT64_MAX = 1, 6, np.iinfo(np.int64).max
SHORTEST_NORM = 1e-12
"""What the length of an embedding is taken for at least where it is divided by it."""


def encoder_graph(spec: EncoderSpec, tensors: Mapping[str, TensorFact], scheme_of: SchemeOf) -> GraphBuilder:
    """The whole graph; its weights are jobs that are not yet written. tensors: as `account` gives them."""
    return _Encoder(spec, tensors, scheme_of).build()


class _Encoder:
    """One graph being built. Values are (batch, sequence, features)."""

    def __init__(self, spec: EncoderSpec, tensors: Mapping[str, TensorFact], scheme_of: SchemeOf) -> None:
        self.spec, self.tensors, self.scheme_of = spec, tensors, scheme_of
        self.graph = GraphBuilder("encoder")
        table = scheme_of("token_embd", 0)
        self.dtype = np.dtype(table.dtype if isinstance(table, FloatScheme) else np.float32)
        self.plain = FloatScheme(self.dtype.name)

    def build(self) -> GraphBuilder:
        graph, spec = self.graph, self.spec
        shape = ("batch_size", "sequence_length")
        ids = graph.input("input_ids", np.int64, shape)
        mask = graph.input("attention_mask", np.int64, shape)
        self.valid = graph.node("Cast", (mask,), "valid", to=INT32)
        x = self._embeddings(ids, mask)
        for layer in range(spec.n_layers):
            x = self._layer(x, layer)
        if spec.task == FEATURE_EXTRACTION:
            self._out(x, "last_hidden_state", (*shape, spec.hidden))
            if spec.pooling is not None:
                self._sentence(x, mask, spec.pooling)
        elif spec.task == TEXT_CLASSIFICATION:
            first = graph.node("Gather", (x, graph.constant(0)), "first_token", axis=1)
            self._out(self._head(first), "logits", ("batch_size", spec.labels))
        else:
            self._out(self._head(x), "logits", (*shape, spec.labels))
        return graph

    def _out(self, x: str, name: str, shape: tuple[int | str, ...]) -> None:
        """A value as a float32 output."""
        self.graph.node("Cast", (x,), name, to=FLOAT)
        self.graph.output(name, np.float32, shape)

    def _matrix(self, *modules: str, kind: str = "weight") -> Matrix:
        return Matrix(tuple(Part(self.tensors[f"{module}.{kind}"]) for module in modules))

    def _embeddings(self, ids: str, mask: str) -> str:
        graph, names = self.graph, self.spec.family.embeddings
        words = self._lookup(ids, names["word"], "word_embeddings")
        places = self._lookup(self._positions(ids, mask), names["position"], "position_embeddings")
        if "type" not in names:
            return self._norm(graph.node("Sum", (words, places), "embeddings.sum"), names["norm"], "embeddings.norm")
        types = graph.input("token_type_ids", np.int64, ("batch_size", "sequence_length"))
        blob = Blob("token_type_embeddings.weight", self.dtype, self.tensors[f"{names['type']}.weight"].shape)
        (table,) = graph.weight(FloatJob((blob,), self._matrix(names["type"])))
        kinds = graph.node("Gather", (table, types), "token_type_embeddings")
        total = graph.node("Sum", (words, places, kinds), "embeddings.sum")
        return self._norm(total, names["norm"], "embeddings.norm")

    def _positions(self, ids: str, mask: str) -> str:
        """Rows of the position table, (1 or batch, sequence)."""
        graph, spec = self.graph, self.spec
        if not spec.family.padded_positions:
            length = graph.node("Gather", (graph.node("Shape", (ids,), "ids_shape"), graph.constant(1)), "length")
            row = graph.node("Range", (graph.constant(0), length, graph.constant(1)), "position_row")
            return graph.node("Unsqueeze", (row, graph.constant([0])), "positions")
        count = graph.node("CumSum", (mask, graph.constant(1)), "token_numbers")
        real = graph.node("Mul", (count, mask), "token_numbers.real")
        return graph.node("Add", (real, graph.constant(spec.first_position - 1)), "positions")

    def _lookup(self, ids: str, module: str, name: str) -> str:
        """Rows of a table."""
        graph, scheme, matrix = self.graph, self.scheme_of("token_embd", 0), self._matrix(module)
        if not isinstance(scheme, BlockScheme):
            (table,) = graph.weight(
                FloatJob((Blob(f"{name}.weight", self.dtype, (matrix.n_rows, matrix.n_columns)),), matrix)
            )
            return graph.node("Gather", (table, ids), name)
        return scheme.lookup(graph, name, ids, scheme.store(graph, name, matrix, flat=True), None)

    def _norm_weights(self, module: str, name: str) -> tuple[str, str]:
        gamma = vector(self.graph, f"{name}.gamma", self._matrix(module), self.dtype)
        return gamma, vector(self.graph, f"{name}.beta", self._matrix(module, kind="bias"), self.dtype)

    def _bias(self, name: str, *modules: str) -> str:
        return vector(self.graph, f"{name}.bias", self._matrix(*modules, kind="bias"), self.dtype)

    def _layer(self, x: str, layer: int) -> str:
        graph, spec, name = self.graph, self.spec, f"layers.{layer}"
        module = {role: spec.family.layers.format(i=layer) + end for role, end in spec.family.modules.items()}
        query, key, value = self._qkv(x, layer, module)
        bias = self._bias(f"{name}.attn.qkv", module["attn_q"], module["attn_k"], module["attn_v"])
        context = graph.node(
            "MultiHeadAttention", (query, key, value, bias, self.valid), f"{name}.attn.context", num_heads=spec.n_heads
        )
        out = self._biased("attn_output", layer, f"{name}.attn.output", module, context)
        x = self._add_and_norm(x, out, f"{name}.attn", module["attn_norm"])
        up = self._linear("ffn_up", layer, f"{name}.ffn.up", module, x)
        active = self._activate(up, self._bias(f"{name}.ffn.up", module["ffn_up"]), f"{name}.ffn.active")
        down = self._biased("ffn_down", layer, f"{name}.ffn.down", module, active)
        return self._add_and_norm(x, down, f"{name}.ffn", module["ffn_norm"])

    def _linear(self, role: str, layer: int, name: str, module: Mapping[str, str], x: str) -> str:
        """A product whose bias the node behind it adds."""
        return self.scheme_of(role, layer).linear(self.graph, Layer(name, self._matrix(module[role])), x)

    def _biased(self, role: str, layer: int, name: str, module: Mapping[str, str], x: str) -> str:
        """A product with its bias."""
        made = Layer(name, self._matrix(module[role]), self._matrix(module[role], kind="bias"))
        return self.scheme_of(role, layer).linear(self.graph, made, x)

    def _qkv(self, x: str, layer: int, module: Mapping[str, str]) -> list[str]:
        """Three products, or one that is split where all have one scheme."""
        roles, hidden, name = ("attn_q", "attn_k", "attn_v"), self.spec.hidden, f"layers.{layer}.attn"
        schemes = [self.scheme_of(role, layer) for role in roles]
        if any(scheme != schemes[0] for scheme in schemes):
            return [self._linear(role, layer, f"{name}.{role[-1]}", module, x) for role in roles]
        matrix = self._matrix(*(module[role] for role in roles))
        whole = schemes[0].linear(self.graph, Layer(f"{name}.qkv", matrix), x)
        parts = [f"{name}.{role[-1]}" for role in roles]
        self.graph.node_to("Split", (whole, self.graph.constant([hidden] * 3)), parts, axis=-1)
        return parts

    def _add_and_norm(self, x: str, addend: str, name: str, norm: str) -> str:
        return self._norm(self.graph.node("Sum", (x, addend), f"{name}.sum"), norm, f"{name}.norm")

    def _norm(self, x: str, module: str, name: str) -> str:
        """A norm of its own behind a Sum, which ONNX Runtime fuses with nothing.

        Its SkipLayerNormalization takes three times as long on the CPU as both (1.32: 110 us for 128 x 384, against 17
        for the norm and 14 for the sum); an Add in front of a norm would become one on loading.
        """
        gamma, beta = self._norm_weights(module, name)
        return self.graph.node("LayerNormalization", (x, gamma, beta), name, axis=-1, epsilon=self.spec.eps)

    def _activate(self, x: str, bias: str, name: str) -> str:
        graph = self.graph
        if self.spec.activation == "gelu":
            return graph.node("BiasGelu", (x, bias), name)
        if self.spec.activation == "gelu_tanh":
            return graph.node("FastGelu", (x, bias), name)
        return graph.node("Relu", (graph.node("Add", (x, bias), f"{name}.biased"),), name)

    def _head(self, x: str) -> str:
        """The head's modules, in the activations' own type: they are small and decide."""
        family = self.spec.family
        modules = [module.removeprefix(family.prefix) for module in family.heads[self.spec.task]]
        for number, module in enumerate(modules):
            layer = Layer(f"head.{number}", self._matrix(module), self._matrix(module, kind="bias"))
            x = self.plain.linear(self.graph, layer, x)
            if number + 1 < len(modules):
                x = self.graph.node(family.head_activation, (x,), f"head.{number}.active")
        return x

    def _sentence(self, x: str, mask: str, pooling: Pooling) -> None:
        """The embedding of a text: the mean of its tokens or its first one; of length 1 where the model says so."""
        graph = self.graph
        if pooling.mode == "cls":
            pooled = graph.node("Gather", (x, graph.constant(0)), "pooled", axis=1)
        else:
            weights = graph.node("Cast", (mask,), "token_weights", to=FLOAT if self.dtype == np.float32 else 10)
            column = graph.node("Unsqueeze", (weights, graph.constant([2])), "token_weights.column")
            total = graph.node(
                "ReduceSum", (graph.node("Mul", (x, column), "weighted"), graph.constant([1])), "summed", keepdims=0
            )
            count = graph.node("ReduceSum", (column, graph.constant([1])), "n_tokens", keepdims=0)
            pooled = graph.node("Div", (total, count), "pooled")
        if pooling.normalize:
            wide = graph.node("Cast", (pooled,), "pooled.float", to=FLOAT)
            length = graph.node("ReduceL2", (wide, graph.constant([-1])), "embedding_length", keepdims=1)
            longest = graph.node("Max", (length, graph.constant(SHORTEST_NORM, np.float32)), "embedding_length.safe")
            pooled = graph.node("Div", (wide, longest), "normalized")
        self._out(pooled, "sentence_embedding", ("batch_size", self.spec.hidden))
