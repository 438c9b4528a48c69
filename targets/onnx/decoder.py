"""A decoder as an ONNX graph: one graph for prefill and decoding, KV cache in and out, fused attention and norms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from targets.onnx import rope
from targets.onnx.graph import GraphBuilder
from targets.onnx.linear import BlockScheme, FloatScheme, Layer, vector
from targets.onnx.weights import Blob, FloatJob, Matrix, Part

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from targets.factors import Factors
    from targets.gguf.architectures.base import Config, OutTensor
    from targets.onnx.decoder_spec import DecoderSpec
    from targets.onnx.linear import Scheme

    SchemeOf = Callable[[str, int], Scheme]
    """(role, layer) -> scheme; roles: "token_embd", "output", and those of a layer such as "attn_q".

    A factor's role is its matrix's with ".left" or ".right".
    """

KEEP = "num_logits_to_keep"
"""How many of the last positions get logits; 0 for all. It has a default of 1, so that no client has to know it."""
FLOAT, INT32, INT64_MAX = 1, 6, np.iinfo(np.int64).max


@dataclass(frozen=True)
class DecoderWeights:
    """Stored tensors by the names of the architecture table ("blk.0.attn_q.weight").

    factors: of some of them, by the names that they are stored under
    """

    tensors: Mapping[str, OutTensor]
    factors: Mapping[str, Factors] = field(default_factory=dict)

    def matrix(self, *names: str) -> Matrix:
        """Stored tensors, one below the other."""
        return Matrix(tuple(self._part(name) for name in names))

    def _part(self, name: str) -> Part:
        tensor = self.tensors[name]
        if tensor.source is None:
            raise KeyError(name)
        return Part(tensor.source, tensor.plus)

    def pair(self, name: str) -> tuple[Matrix, Matrix] | None:
        """The two factors of a matrix, right and left; None where it is one."""
        source = self.tensors[name].source
        found = self.factors.get(source.name) if source is not None else None
        return (Matrix((Part(found.right),)), Matrix((Part(found.left),))) if found else None

    def biases(self, *names: str) -> Matrix | None:
        """Their biases; None where the first has none."""
        known = [name.replace(".weight", ".bias") for name in names]
        return self.matrix(*known) if known[0] in self.tensors else None


def decoder_graph(spec: DecoderSpec, config: Config, weights: DecoderWeights, scheme_of: SchemeOf) -> GraphBuilder:
    """The whole graph; its weights are jobs that are not yet written."""
    return _Decoder(spec, config, weights, scheme_of).build()


class _Decoder:
    """One graph being built. Values are (batch, sequence, features) until the last positions are cut out."""

    def __init__(self, spec: DecoderSpec, config: Config, weights: DecoderWeights, scheme_of: SchemeOf) -> None:
        self.spec, self.config, self.weights, self.scheme_of = spec, config, weights, scheme_of
        self.graph = GraphBuilder("decoder")
        table = scheme_of("token_embd", 0)
        self.dtype = np.dtype(table.dtype if isinstance(table, FloatScheme) else np.float32)
        self.tables: dict[bool, tuple[str, str]] = {}

    def build(self) -> GraphBuilder:
        graph, spec = self.graph, self.spec
        ids = graph.input("input_ids", np.int64, ("batch_size", "sequence_length"))
        mask = graph.input("attention_mask", np.int64, ("batch_size", "total_sequence_length"))
        keep = graph.default_input(KEEP, [1])
        graph.output("logits", np.float32, ("batch_size", 1, spec.vocab))
        self._lengths(mask)
        x = self._embed(ids)
        attended = self._norm(x, "blk.0.attn_norm.weight", "layers.0.attn.norm")
        for layer in range(spec.n_layers):
            attention = self._attention(attended, layer)
            normed, x = self._add_and_norm(x, attention, f"blk.{layer}.ffn_norm.weight", f"layers.{layer}.ffn.norm")
            forward = self._feed_forward(normed, layer)
            last = layer + 1 == spec.n_layers
            name = ("output_norm.weight", "norm") if last else (
                f"blk.{layer + 1}.attn_norm.weight", f"layers.{layer + 1}.attn.norm"
            )  # fmt: skip
            attended, x = self._add_and_norm(x, forward, *name)
        self._head(attended, keep)
        return graph

    def _lengths(self, mask: str) -> None:
        """What GroupQueryAttention wants to know: the last position of each sequence, and the longest length."""
        graph = self.graph
        lengths = graph.node("ReduceSum", (mask, graph.constant([1])), "lengths", keepdims=0)
        last = graph.node("Sub", (lengths, graph.constant([1])), "last_positions")
        self.last = graph.node("Cast", (last,), "last_positions_int32", to=INT32)
        total = graph.node("Gather", (graph.node("Shape", (mask,), "mask_shape"), graph.constant(1)), "total_length")
        self.total = graph.node("Cast", (total,), "total_length_int32", to=INT32)

    def _embed(self, ids: str) -> str:
        graph, scheme = self.graph, self.scheme_of("token_embd", 0)
        matrix = self.weights.matrix("token_embd.weight")
        if isinstance(scheme, BlockScheme):
            tied = self.spec.tied
            self.table = scheme.store(graph, "embed_tokens", matrix, self._head_norm_weights(), flat=not tied)
            shape = (matrix.n_rows, matrix.n_columns) if tied else None
            x = scheme.lookup(graph, "embeddings", ids, self.table, shape)
        else:
            blob = Blob("embed_tokens.weight", self.dtype, (matrix.n_rows, matrix.n_columns))
            (name,) = graph.weight(FloatJob((blob,), matrix))
            self.table = (name, "", "")
            x = graph.node("Gather", (name, ids), "embeddings")
        if self.spec.embedding_scale != 1.0:
            x = graph.node("Mul", (x, graph.constant(self.spec.embedding_scale, self.dtype.type)), "embeddings.scaled")
        return x

    def _head_norm_weights(self) -> Matrix | None:
        """The norm in front of a tied table's second use, as the head."""
        return self.weights.matrix("output_norm.weight") if self.spec.tied else None

    def _norm(self, x: str, weight: str, name: str) -> str:
        gamma = vector(self.graph, f"{name}.weight", self.weights.matrix(weight), self.dtype)
        return self.graph.node("SimplifiedLayerNormalization", (x, gamma), name, axis=-1, epsilon=self.spec.eps)

    def _add_and_norm(self, x: str, addend: str, weight: str, name: str) -> tuple[str, str]:
        """(the sum's norm, the sum)."""
        gamma = vector(self.graph, f"{name}.weight", self.weights.matrix(weight), self.dtype)
        outputs = (name, "", "", f"{name}.sum")
        self.graph.node_to("SkipSimplifiedLayerNormalization", (x, addend, gamma), outputs, epsilon=self.spec.eps)
        return name, outputs[-1]

    def _fused(self, x: str, layer: int, block: str, name: str, roles: tuple[str, ...]) -> list[str]:
        """Linear layers on the same input: neighbours of one scheme are one product. One value for each product."""
        groups: list[list[str]] = []
        alone = {role for role in roles if self.weights.pair(f"blk.{layer}.{role}.weight")}
        for role in roles:
            apart = not groups or role in alone or groups[-1][0] in alone
            if not apart and self.scheme_of(groups[-1][0], layer) == self.scheme_of(role, layer):
                groups[-1].append(role)
            else:
                groups.append([role])
        values = []
        for group in groups:
            stored = [f"blk.{layer}.{role}.weight" for role in group]
            title = name if len(groups) == 1 else "_".join(role.split("_")[-1] for role in group)
            made = Layer(
                f"layers.{layer}.{block}.{title}",
                self.weights.matrix(*stored),
                self.weights.biases(*stored),
            )
            values.append((group, self._linear(group[0], layer, made, x)))
        return self._split(values, layer, block, roles)

    def _linear(self, role: str, layer: int, made: Layer, x: str) -> str:
        """A linear layer, or two where the matrix is there as two factors."""
        pair = self.weights.pair(f"blk.{layer}.{role}.weight")
        if pair is None:
            return self.scheme_of(role, layer).linear(self.graph, made, x)
        right, left = (
            Layer(f"{made.name}.{side}", matrix, bias)
            for side, matrix, bias in zip(("right", "left"), pair, (None, made.bias), strict=True)
        )
        inner = self.scheme_of(f"{role}.right", layer).linear(self.graph, right, x)
        return self.scheme_of(f"{role}.left", layer).linear(self.graph, left, inner)

    def _split(self, values: list[tuple[list[str], str]], layer: int, block: str, roles: tuple[str, ...]) -> list[str]:
        """One value for each role; a single product of all roles is left whole where attention takes it so."""
        if len(values) == 1 and roles[0] == "attn_q" and not self.spec.head_norms:
            return [values[0][1]]
        parts = []
        for group, value in values:
            if len(group) == 1:
                parts.append(value)
                continue
            # Of this layer: feed-forwards may have widths of their own.
            heights = [self.weights.matrix(f"blk.{layer}.{role}.weight").n_rows for role in group]
            sizes = self.graph.constant(heights)
            outputs = [f"layers.{layer}.{block}.{role}" for role in group]
            self.graph.node_to("Split", (value, sizes), outputs, axis=-1)
            parts += outputs
        return parts

    def _attention(self, x: str, layer: int) -> str:
        graph, spec, name = self.graph, self.spec, f"layers.{layer}.attn"
        parts = self._fused(x, layer, "attn", "qkv", ("attn_q", "attn_k", "attn_v"))
        query, key, value = parts if len(parts) == 3 else (parts[0], "", "")
        if spec.head_norms:
            query = self._head_norm(query, f"blk.{layer}.attn_q_norm.weight", f"{name}.q_norm", spec.n_heads)
            key = self._head_norm(key, f"blk.{layer}.attn_k_norm.weight", f"{name}.k_norm", spec.n_kv_heads)
        cache = ("batch_size", spec.n_kv_heads, "past_sequence_length", spec.head_dim)
        grown = ("batch_size", spec.n_kv_heads, "total_sequence_length", spec.head_dim)
        past = [graph.input(f"past_key_values.{layer}.{kind}", self.dtype.type, cache) for kind in ("key", "value")]
        present = [f"present.{layer}.{kind}" for kind in ("key", "value")]
        cos, sin = self._rotary(spec.local[layer])
        window = {"local_window_size": spec.windows[layer]} if spec.windows[layer] else {}
        graph.node_to(
            "GroupQueryAttention", (query, key, value, *past, self.last, self.total, cos, sin),
            (f"{name}.context", *present), num_heads=spec.n_heads, kv_num_heads=spec.n_kv_heads, scale=spec.scale,
            do_rotary=1, rotary_interleaved=0, **window,
        )  # fmt: skip
        for output in present:
            graph.output(output, self.dtype.type, grown)
        stored = f"blk.{layer}.attn_output.weight"
        made = Layer(f"{name}.output", self.weights.matrix(stored), self.weights.biases(stored))
        out = self._linear("attn_output", layer, made, f"{name}.context")
        if spec.post_norms:
            out = self._norm(out, f"blk.{layer}.post_attention_norm.weight", f"{name}.post_norm")
        return out

    def _head_norm(self, x: str, weight: str, name: str, heads: int) -> str:
        graph, width = self.graph, self.spec.head_dim
        apart = graph.node("Reshape", (x, graph.constant([0, 0, heads, width])), f"{name}.heads")
        normed = self._norm(apart, weight, name)
        return graph.node("Reshape", (normed, graph.constant([0, 0, heads * width])), f"{name}.flat")

    def _rotary(self, local: bool) -> tuple[str, str]:
        """Names of the cosines and sines, made once for each kind of layer."""
        if local not in self.tables:
            attention = rope.SLIDING if local else rope.FULL
            theta = 10000.0 if local else self.spec.default_theta
            made = rope.tables(self.config, self.spec.context, attention, theta)
            names = ("cos", "sin") if not local else ("cos.local", "sin.local")
            cos, sin = (
                self.graph.table(f"rotary.{name}", values.astype(self.dtype))
                for name, values in zip(names, made, strict=True)
            )
            self.tables[local] = (cos, sin)
        return self.tables[local]

    def _feed_forward(self, x: str, layer: int) -> str:
        graph, name = self.graph, f"layers.{layer}.ffn"
        gate, up = self._fused(x, layer, "ffn", "gate_up", ("ffn_gate", "ffn_up"))
        if self.spec.activation == "silu":
            active = graph.node("QuickGelu", (gate,), f"{name}.silu", alpha=1.0)
        else:
            active = graph.node("FastGelu", (gate,), f"{name}.gelu")
        product = graph.node("Mul", (active, up), f"{name}.product")
        stored = f"blk.{layer}.ffn_down.weight"
        made = Layer(f"{name}.down", self.weights.matrix(stored), self.weights.biases(stored))
        out = self._linear("ffn_down", layer, made, product)
        if self.spec.post_norms:
            out = self._norm(out, f"blk.{layer}.post_ffw_norm.weight", f"{name}.post_norm")
        return out

    def _head(self, x: str, keep: str) -> None:
        """Logits of the last positions only: those of a prompt of 512 would take 100 MB on a vocabulary of 50,000."""
        graph, spec = self.graph, self.spec
        start = graph.node("Neg", (keep,), "first_kept")
        kept = graph.node("Slice", (x, start, graph.constant([INT64_MAX]), graph.constant([1])), "kept")
        logits = self._tied_head(kept) if spec.tied else self._own_head(kept)
        if spec.softcap:
            cap = graph.constant(spec.softcap, self.dtype.type)
            flat = graph.node("Tanh", (graph.node("Div", (logits, cap), "head.divided"),), "head.tanh")
            logits = graph.node("Mul", (flat, cap), "head.capped")
        # Clients sample in float32, whatever the graph computes in; where it is float32 this is nothing.
        graph.node("Cast", (logits,), "logits", to=FLOAT)

    def _own_head(self, x: str) -> str:
        layer = Layer("head", self.weights.matrix("output.weight"), norm=self.weights.matrix("output_norm.weight"))
        return self.scheme_of("output", 0).linear(self.graph, layer, x)

    def _tied_head(self, x: str) -> str:
        """The embedding table once more, from the same bytes."""
        graph, spec, scheme = self.graph, self.spec, self.scheme_of("token_embd", 0)
        if isinstance(scheme, BlockScheme):
            return scheme.multiply(graph, "head", x, self.table, (spec.vocab, spec.hidden))
        rows = graph.node("Reshape", (x, graph.constant([-1, spec.hidden])), "head.rows")
        product = graph.node("Gemm", (rows, self.table[0]), "head", transB=1)
        shape = graph.node("Concat", (graph.node("Slice", (
            graph.node("Shape", (x,), "head.shape"), graph.constant([0]), graph.constant([2])), "head.positions"),
            graph.constant([spec.vocab])), "head.logits_shape", axis=0)  # fmt: skip
        return graph.node("Reshape", (product, shape), "head.logits")
