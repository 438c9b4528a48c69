"""A GGUF file as the source: same metadata, same tensors, other types. What its quantization lost stays lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from targets.base import Problem
from targets.gguf.architectures.base import OutTensor
from targets.gguf.content import Content, count_params
from targets.gguf.general import model_name
from targets.gguf.presets import ModelShape
from targets.gguf.reading import read_gguf_metadata
from targets.gguf.types import TYPES
from targets.weights import FLOAT_BYTES

if TYPE_CHECKING:
    from targets.facts import ModelFacts

FAMILIES = ("deci", "gemma3", "llama", "qwen2", "qwen3")
"""Those whose files were compared with llama-quantize's; fewer than can be written from a checkpoint."""
_REWRITTEN = {"general.file_type", "general.quantization_version", "general.alignment"}
"""Keys that describe the file and not the model: they are written anew."""


def read_content(facts: ModelFacts) -> tuple[Content | None, list[Problem]]:
    """The content of a GGUF file, and every problem found in it. Raises ModelError for a damaged file."""
    metadata = read_gguf_metadata(facts.path)
    known = {entry.key: entry.value for entry in metadata}
    arch = known.get("general.architecture")
    n_layers = known.get(f"{arch}.block_count")
    if not isinstance(arch, str) or not isinstance(n_layers, int):
        problem = Problem(str(facts.path), "lacks general.architecture or block_count", "name a GGUF file of a model")
        return None, [problem]
    if arch not in FAMILIES or known.get(f"{arch}.expert_count"):
        # llama-quantize leaves some tensors of other families alone and gives experts other types: not known here
        problem = Problem(
            str(facts.path), f"is a '{arch}' with experts or of another family", f"known: {', '.join(FAMILIES)}"
        )
        return None, [problem]
    tensors = [OutTensor(fact.name, fact.shape, fact) for fact in facts.tensors.values()]
    heads, kv_heads = _count(known.get(f"{arch}.attention.head_count")), known.get(f"{arch}.attention.head_count_kv")
    n_gqa = heads // (_count(kv_heads) or heads or 1)
    shape = ModelShape(
        n_layers=n_layers,
        n_gqa=n_gqa,
        tied="output.weight" not in facts.tensors,
        is_70b=n_layers == 80 and (arch == "qwen2" or (arch == "llama" and n_gqa > 1)),
    )
    return (
        Content(
            name=model_name(facts.name, count_params(tensors), known),
            metadata=[entry for entry in metadata if entry.key not in _REWRITTEN],
            tensors=tensors,
            shape=shape,
            notes=_losses(facts),
        ),
        _unreadable(facts),
    )


def _losses(facts: ModelFacts) -> tuple[str, ...]:
    """That the source was quantized before, where it was."""
    kinds = {fact.dtype for fact in facts.tensors.values() if len(fact.shape) > 1} - FLOAT_BYTES.keys()
    if not kinds:
        return ()
    return (
        f"the source is quantized already ({', '.join(sorted(kinds))}): what that lost stays lost, and drift is "
        "measured against it, not against the original model",
    )


def _count(value: object) -> int:
    """A head count; per-layer arrays count by their first layer, as llama-quantize does."""
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, int) else 0


def _unreadable(facts: ModelFacts) -> list[Problem]:
    """Tensors of a type that is neither decoded nor written."""
    import gguf

    decodable = {kind.name for kind in gguf.quants._type_traits}  # gguf-py lists them nowhere else
    return [
        Problem(fact.name, f"has type {fact.dtype}, which cannot be decoded", "take a file of a higher precision")
        for fact in facts.tensors.values()
        if fact.dtype not in decodable and fact.dtype not in TYPES
    ]
