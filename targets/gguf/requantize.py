"""A GGUF file as the source: same metadata, same tensors, other types. What its quantization lost stays lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from targets.base import Problem
from targets.damage import damage_in
from targets.gguf.architectures.base import OutTensor
from targets.gguf.content import Content, count_params, model_shape
from targets.gguf.general import model_name
from targets.gguf.reading import read_gguf_metadata
from targets.weights import FLOAT_BYTES

if TYPE_CHECKING:
    from targets.facts import ModelFacts

FAMILIES = ("deci", "gemma3", "llama", "qwen2", "qwen3")
"""Those whose files were compared with llama-quantize's; fewer than can be written from a checkpoint."""
_REWRITTEN = {
    "general.file_type", "general.quantization_version", "general.alignment",
    "split.no", "split.count", "split.tensors.count",
}  # fmt: skip
"""Keys that describe the file and not the model: they are written anew."""


def read_content(facts: ModelFacts) -> tuple[Content | None, list[Problem]]:
    """The content of a GGUF file, and every problem found in it. Raises ModelError for a damaged file."""
    with damage_in(facts.path):
        return _content(facts)


def _content(facts: ModelFacts) -> tuple[Content | None, list[Problem]]:
    metadata = read_gguf_metadata(facts.path)
    known = {entry.key: entry.value for entry in metadata}
    arch = known.get("general.architecture")
    n_layers = known.get(f"{arch}.block_count")
    if not isinstance(arch, str) or not isinstance(n_layers, int):
        problem = Problem(str(facts.path), "lacks general.architecture or block_count", "name a GGUF file of a model")
        return None, [problem]
    if arch not in FAMILIES:
        # llama-quantize leaves some tensors of other families alone: which is not known here
        problem = Problem(str(facts.path), f"is a '{arch}', another family", f"known: {', '.join(FAMILIES)}")
        return None, [problem]
    if not 0 < n_layers <= len(facts.tensors):
        what = f"says it has {n_layers} layers, with {len(facts.tensors)} tensors"
        return None, [Problem(str(facts.path), what, "download or copy the file again")]
    tensors = [OutTensor(fact.name, fact.shape, fact) for fact in facts.tensors.values()]
    return (
        Content(
            name=model_name(facts.name, count_params(tensors), known),
            metadata=[entry for entry in metadata if entry.key not in _REWRITTEN],
            tensors=tensors,
            shape=model_shape(known, facts.tensors),
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


def _unreadable(facts: ModelFacts) -> list[Problem]:
    """Tensors of a type that gguf-py does not decode: those of integers, Q1_0 and Q2_0."""
    import gguf

    decodable = {kind.name for kind in gguf.quants._type_traits}  # gguf-py lists them nowhere else
    return [
        Problem(fact.name, f"has type {fact.dtype}, which cannot be decoded", "take a file of a higher precision")
        for fact in facts.tensors.values()
        if fact.dtype not in decodable and fact.dtype not in FLOAT_BYTES
    ]
