"""What goes into a GGUF file before types are chosen: the same for a checkpoint and for a GGUF source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from targets.gguf.architectures.base import OutTensor
    from targets.gguf.general import ModelName
    from targets.gguf.keyvalue import KeyValue
    from targets.gguf.presets import ModelShape


@dataclass(frozen=True)
class Content:
    """What goes into a file, before types are chosen: name, metadata, tensors in order, and what presets ask for.

    notes: what llama.cpp will do otherwise than the source, for the report
    from_checkpoint: from a Hugging Face directory, not from a GGUF file
    """

    name: ModelName
    metadata: list[KeyValue]
    tensors: list[OutTensor]
    shape: ModelShape
    notes: tuple[str, ...] = ()
    from_checkpoint: bool = False


def count_params(tensors: list[OutTensor]) -> int:
    """Weights of the tensors that come from the source."""
    return sum(fact.n_elements for tensor in tensors for fact in tensor.sources)
