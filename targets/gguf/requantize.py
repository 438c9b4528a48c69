"""A GGUF file as the source: same metadata, same tensors, other types. What its quantization lost stays lost.

llama-quantize chooses types by tensors' names, shapes and a few hyper-parameters (`llama_tensor_get_type` of
src/llama-quant.cpp), whatever the architecture is, and copies all other tensors as they are. So does this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from targets import few_bits
from targets.base import Problem
from targets.damage import damage_in
from targets.facts import shown
from targets.gguf.architectures.base import OutTensor
from targets.gguf.content import Content, model_shape
from targets.gguf.general import Sizes, model_name
from targets.gguf.reading import read_gguf_metadata
from targets.weights import FLOAT_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from targets.facts import ModelFacts
    from targets.gguf.types import GgmlType

_NO_MODELS = {
    "adapter": ("a LoRA adapter", "name its model, or make one model of both with 'packlight merge'"),
    "imatrix": ("an importance matrix", "name a model, and the matrix with --imatrix"),
    "mmproj": ("what turns images or sound into tokens, and is not verified without its model", "use llama-quantize"),
}
"""Values of general.type that no model has."""
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
    if problem := _no_model(facts, known):
        return None, [problem]
    tensors = [OutTensor(fact.name, fact.shape, fact) for fact in facts.tensors.values()]
    file_type = known.get("general.file_type")
    content = Content(
        name=model_name(facts.name, Sizes.of((one.name, one.shape) for one in tensors), known),
        metadata=[entry for entry in metadata if entry.key not in _REWRITTEN],
        tensors=tensors,
        shape=model_shape(known, facts.tensors),
        notes=(*_stranger(known["general.architecture"]), *_losses(facts)),
        file_type=file_type if isinstance(file_type, int) else None,
    )
    return content, []


def _no_model(facts: ModelFacts, known: Mapping[str, Any]) -> Problem | None:
    """What keeps a file from being a model's."""
    where, kind, arch = str(facts.path), known.get("general.type"), known.get("general.architecture")
    if isinstance(kind, str) and kind in _NO_MODELS:
        what, instead = _NO_MODELS[kind]
        return Problem(where, f"is {what}", instead)
    n_layers = known.get(f"{arch}.block_count")
    if not isinstance(arch, str) or not isinstance(n_layers, int):
        return Problem(where, "lacks general.architecture or block_count", "name a GGUF file of a language model")
    if not 0 < n_layers <= len(facts.tensors):
        what = f"says it has {n_layers} layers, with {len(facts.tensors)} tensors"
        return Problem(where, what, "download or copy the file again")
    return None


def _stranger(arch: str) -> tuple[str, ...]:
    """That nobody here knows the architecture, where that is so."""
    import gguf

    if arch in gguf.MODEL_ARCH_NAMES.values():
        return ()
    return (
        f"the architecture '{shown(arch)}' is not known here: types were chosen by tensors' names, as for all others; "
        "tensors that its graph needs in floats may be among those that were quantized",
    )


def _losses(facts: ModelFacts) -> tuple[str, ...]:
    """That the source was quantized before, where it was."""
    kinds = {fact.dtype for fact in facts.tensors.values() if len(fact.shape) > 1} - FLOAT_BYTES.keys() - _WHOLE_NUMBERS
    if not kinds:
        return ()
    return (
        f"the source is quantized already ({', '.join(sorted(kinds))}): what that lost stays lost, and drift is "
        "measured against it, not against the original model",
    )


def undecodable(content: Content, written: Mapping[str, GgmlType]) -> list[Problem]:
    """Tensors of a type that neither gguf-py nor `few_bits` decodes, where another one is asked for.

    written: the new types, of tensors whose type changes
    """
    import gguf

    known = {kind.name for kind in gguf.quants._type_traits}  # gguf-py lists them nowhere else
    decodable = known | FLOAT_BYTES.keys() | few_bits.LEVELS.keys()
    return [
        Problem(fact.name, f"has type {fact.dtype}, which cannot be decoded", "take a file of a higher precision")
        for tensor in content.tensors
        for fact in tensor.sources
        if tensor.name in written and fact.dtype not in decodable
    ]


_WHOLE_NUMBERS = {"I8", "I16", "I32", "I64"}
"""Types of tables of indices, which no quantization made."""
