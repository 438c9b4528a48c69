"""What goes into a GGUF file before types are chosen: the same for a checkpoint and for a GGUF source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from targets.gguf.mixtures import ModelShape

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from targets.gguf.architectures.base import OutTensor
    from targets.gguf.general import ModelName
    from targets.gguf.keyvalue import KeyValue

_SIZED_70B = {"llama": 80, "llama-embed": 80, "deci": 80, "qwen2": 80, "olmo": 80, "jais2": 68}
"""Layers of what llama.cpp takes for a model of 70 B (`load_arch_hparams` of src/models/)."""
_ALIKE = ("llama", "llama-embed")
"""Of those the architectures whose 70 B are told from 65 B by fewer heads of keys and values."""


@dataclass(frozen=True)
class Content:
    """What goes into a file, before types are chosen: name, metadata, tensors in order, and what presets ask for.

    notes: what llama.cpp will do otherwise than the source, for the report
    from_checkpoint: from a Hugging Face directory, not from a GGUF file
    file_type: general.file_type of a GGUF source that says it
    """

    name: ModelName
    metadata: list[KeyValue]
    tensors: list[OutTensor]
    shape: ModelShape
    notes: tuple[str, ...] = ()
    from_checkpoint: bool = False
    file_type: int | None = None


def count_params(tensors: list[OutTensor]) -> int:
    """Weights of the tensors that come from the source."""
    return sum(fact.n_elements for tensor in tensors for fact in tensor.sources)


def model_shape(known: Mapping[str, Any], names: Iterable[str]) -> ModelShape:
    """What presets ask for, from a file's metadata by key and its tensors' names."""
    arch = str(known.get("general.architecture"))
    n_layers = _layers(known, arch)
    heads = _count(known.get(f"{arch}.attention.head_count"))
    kv_heads = known.get(f"{arch}.attention.head_count_kv")
    n_kv_heads = heads if kv_heads is None else _count(kv_heads)
    grouped = arch not in _ALIKE or heads != n_kv_heads
    return ModelShape(
        n_layers=n_layers,
        n_gqa=heads // n_kv_heads if n_kv_heads else 0,
        tied="output.weight" not in set(names),
        is_70b=grouped and n_layers == _SIZED_70B.get(arch),
        n_experts=_count(known.get(f"{arch}.expert_count")),
        arch=arch,
    )


def _layers(known: Mapping[str, Any], arch: str) -> int:
    """Layers as llama-quantize counts them, which may be more than the file has (src/models/ of llama.cpp)."""
    stored = _count(known.get(f"{arch}.block_count"))
    if arch == "graniteswitch":  # the router is one more
        return stored + 1
    if arch == "nanbeige":  # the same layers several times
        return stored * _count(known.get(f"{arch}.num_loops", 1))
    return stored


def _count(value: object) -> int:
    """A count; arrays of one for each layer count by their first layer, as llama-quantize does."""
    first = value[0] if isinstance(value, Sequence) and value else value
    return first if isinstance(first, int) else 0
