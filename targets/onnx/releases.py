"""Which release of ONNX Runtime loads what: opset and IR version of each, and the first one that runs a graph right.

Measured, not copied: each operator and feature below was run as a one-node model on the CPU provider of the releases
1.16 to 1.32 (x86-64), and its output compared with 1.32's. `since` is the first release from which on all agree; where
an earlier one runs the node but answers something else, the reason says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from runtime.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx import GraphProto, ModelProto, NodeProto

Version = tuple[int, int]


class Release(NamedTuple):
    """A minor release of ONNX Runtime; opset: the newest of ONNX's own operators; ir: the newest IR version."""

    version: Version
    opset: int
    ir: int


RELEASES = (
    Release((1, 16), 19, 9),
    Release((1, 17), 20, 9),
    Release((1, 18), 21, 10),
    Release((1, 19), 21, 10),
    Release((1, 20), 21, 10),
    Release((1, 21), 22, 10),
    Release((1, 22), 22, 10),
    Release((1, 23), 23, 11),
    Release((1, 24), 25, 13),
    *(Release((1, minor), 26, 13) for minor in range(25, 32)),
    Release((1, 32), 26, 14),
)
"""Oldest first. The newest entry stands for what is newer, too: a release loads all that an older one does."""
OLDEST, NEWEST = RELEASES[0], RELEASES[-1]


@dataclass(frozen=True)
class Need:
    """The first release that runs a graph, as "1.23", and the node and reason that ask for it."""

    version: str
    because: str


@dataclass(frozen=True)
class _Rule:
    """From `since` on, nodes of `operator` for which `applies(node, graph)` holds are computed right."""

    operator: str
    since: Version
    what: str
    applies: Callable[[NodeProto, GraphProto], bool] = lambda _node, _graph: True


def parse_version(text: str) -> Version:
    """(1, 23) for "1.23" or "1.23.2". Raises UserError."""
    found = re.fullmatch(r"(\d+)\.(\d+)(\.\d+)?", text)
    if not found:
        raise UserError(f"'{text}' is not a version of ONNX Runtime; write it as in 1.23")
    return int(found[1]), int(found[2])


def opset_for(version: str | None = None) -> Release:
    """The newest opset and IR version that ONNX Runtime `version` loads; None: the newest release that is known.

    Raises UserError for a version that is older than any in the table.
    """
    if version is None:
        return NEWEST
    wanted = parse_version(version)
    fitting = [release for release in RELEASES if release.version <= wanted]
    if not fitting:
        raise UserError(
            f"ONNX Runtime {version} is older than {_text(OLDEST.version)}, the oldest that is known; update"
        )
    return fitting[-1]


def minimum_onnxruntime(model: ModelProto) -> Need:
    """The first release that loads `model` and computes each of its nodes right on the CPU.

    A com.microsoft operator that the table does not have asks for the newest release: nothing is known of it.
    """
    needs = [_opset_need(model)]
    for node in model.graph.node:
        rules = [rule for rule in RULES if rule.operator == node.op_type]
        if not rules and node.domain == "com.microsoft":
            needs.append((NEWEST.version, f"{node.op_type}, of which no older release is known"))
        needs += [(rule.since, rule.what) for rule in rules if rule.applies(node, model.graph)]
    version, because = max(needs, key=lambda need: need[0])
    return Need(_text(version), because)


def _opset_need(model: ModelProto) -> tuple[Version, str]:
    """The first release that loads the model's opset of ONNX's own operators and its IR version."""
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)
    for release in RELEASES:
        if release.opset >= opset and release.ir >= model.ir_version:
            return release.version, f"opset {opset} and IR version {model.ir_version}"
    return NEWEST.version, f"opset {opset} and IR version {model.ir_version}, newer than every release that is known"


def _text(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def _attribute(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute."""
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def _has_input(node: NodeProto, number: int) -> bool:
    return len(node.input) > number and bool(node.input[number])


def _stored_as(node: NodeProto, graph: GraphProto, number: int, type_name: str) -> bool:
    """Whether input `number` is an initializer of that type, by its name in TensorProto."""
    from onnx import TensorProto

    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    return _has_input(node, number) and types.get(node.input[number]) == getattr(TensorProto, type_name)


def _bits(node: NodeProto, bits: int) -> bool:
    return _attribute(node, "bits", 4) == bits


_OLD = ("BiasGelu", "DynamicQuantizeMatMul", "EmbedLayerNormalization", "FastGelu", "FusedMatMul", "Gelu",
        "MatMulIntegerToFloat", "MultiHeadAttention", "QLinearMatMul", "QuickGelu", "SimplifiedLayerNormalization",
        "SkipLayerNormalization", "SkipSimplifiedLayerNormalization")  # fmt: skip

RULES: tuple[_Rule, ...] = (
    *(_Rule(name, OLDEST.version, name) for name in _OLD),
    _Rule("RotaryEmbedding", (1, 17), "RotaryEmbedding"),
    _Rule("GroupQueryAttention", (1, 20),
          "GroupQueryAttention on the CPU (1.18 and 1.19 are wrong where several tokens follow a filled cache)"),
    _Rule("GroupQueryAttention", (1, 22), "GroupQueryAttention with position_ids or an attention bias",
          lambda node, _: _has_input(node, 9) or _has_input(node, 10)),
    _Rule("GroupQueryAttention", (1, 23), "GroupQueryAttention with a head sink", lambda node, _: _has_input(node, 11)),
    _Rule("GroupQueryAttention", (1, 24), "GroupQueryAttention with a window (1.23 and before see one token too many)",
          lambda node, _: _attribute(node, "local_window_size", -1) > 0),
    _Rule("MultiHeadAttention", (1, 20), "MultiHeadAttention with an attention bias that is broadcast",
          lambda node, _: _has_input(node, 5)),
    _Rule("MatMulNBits", (1, 17), "MatMulNBits"),
    _Rule("MatMulNBits", (1, 20), "MatMulNBits in float16 (1.19 answers NaN)",
          lambda node, graph: _stored_as(node, graph, 2, "FLOAT16")),
    _Rule("MatMulNBits", (1, 22), "MatMulNBits with 8 bits", lambda node, _: _bits(node, 8)),
    _Rule("MatMulNBits", (1, 23), "MatMulNBits with 8 bits and no accuracy level 4",
          lambda node, _: _bits(node, 8) and _attribute(node, "accuracy_level", 0) != 4),
    _Rule("MatMulNBits", (1, 24), "MatMulNBits with 2 bits", lambda node, _: _bits(node, 2)),
    _Rule("GatherBlockQuantized", (1, 20), "GatherBlockQuantized"),
    _Rule("GatherBlockQuantized", (1, 23), "GatherBlockQuantized of bytes",
          lambda node, graph: _stored_as(node, graph, 0, "UINT8")),
)  # fmt: skip
"""Every rule that applies counts; the latest decides."""
