"""Everything about a GGUF file that is decided before a weight is read: metadata, tensors, types, names, sizes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.errors import UnsupportedError
from targets.base import Problem, TypeChoice
from targets.damage import damage_in
from targets.factors import merged_notes
from targets.gguf import header, requantize
from targets.gguf.architectures import architecture_of, uneven
from targets.gguf.architectures.base import OutTensor, dimensions, full_config, plan_tensors
from targets.gguf.choice import choose
from targets.gguf.content import Content, count_params, model_shape
from targets.gguf.encoders import EncoderTask, encoder_task
from targets.gguf.general import ModelName, Sizes, general_metadata
from targets.gguf.importance import Importance, importance_for, missing, uncounted
from targets.gguf.keyvalue import KeyValue, uint32
from targets.gguf.ongrid import problems as block_problems
from targets.gguf.ongrid import stored_blocks
from targets.gguf.presets import ALIASES, COPY, PRESETS, Preset
from targets.gguf.reading import READABLE_TYPES
from targets.gguf.types import TYPES, GgmlType
from targets.grouped import AWQ, GPTQ
from targets.ongrid import GGML, foreign_grids, other_preset
from targets.weights import FLOAT_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from targets.base import EmitOptions
    from targets.facts import ModelFacts, TensorFact

QUANTIZATION_VERSION = 2
"""Version of ggml's block layouts; general.quantization_version."""
_READABLE = {kind.name: kind for kind in READABLE_TYPES.values()}

ROUNDED = {
    GPTQ: "GPTQ, 4 bits", AWQ: "AWQ, 4 bits", "I4_OFFSET": "integers, 4 bits", "I8_OFFSET": "integers, 8 bits",
}  # fmt: skip
"""Element types of checkpoints that were rounded after their training, and what they are called."""


@dataclass(frozen=True)
class Plan:
    """A file that is ready to be written.

    tensors: what to write and where, in file order
    header: the bytes before the data section
    file_bytes: size of the finished file, exact
    importance: what the errors of matrices count, where it is known
    """

    name: ModelName
    preset: Preset
    metadata: list[KeyValue]
    tensors: list[tuple[OutTensor, header.Placed]]
    header: bytes
    context_length: int
    notes: tuple[str, ...] = ()
    importance: Importance | None = None

    @property
    def n_params(self) -> int:
        """Weights in the file, generated rope factors left out."""
        return count_params([tensor for tensor, _ in self.tensors])

    @property
    def data_bytes(self) -> int:
        """Bytes of the data section, the padding after the last tensor included (llama.cpp expects it)."""
        last = self.tensors[-1][1]
        return header.align(last.offset + last.n_bytes)

    @property
    def file_bytes(self) -> int:
        """Size of the finished file, exact."""
        return len(self.header) + self.data_bytes

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data for each weight."""
        return 8 * sum(placed.n_bytes for _, placed in self.tensors) / self.n_params


def find_preset(name: str) -> Preset:
    """The preset of that name. Raises UnsupportedError that lists the known ones."""
    wanted = name.lower()
    wanted = ALIASES.get(wanted, wanted)
    known = {**PRESETS, COPY.name: COPY}
    if wanted not in known:
        raise UnsupportedError(f"unknown quantization '{name}' for gguf; known: {', '.join(known)}")
    return known[wanted]


def make_plan(facts: ModelFacts, options: EmitOptions) -> tuple[Plan | None, list[Problem]]:
    """The plan, or every problem that keeps the model from being written. Raises ModelError and UnsupportedError."""
    preset = find_preset(options.quant)
    problems = packed_for_another(facts, preset)
    content, found = (None, problems) if problems else read_content(facts)
    if content is None or found:
        return None, found
    with damage_in(facts.path):
        decided, found = decide(preset, content, facts.requested, options.types)
        return (None, found) if found else (lay_out(preset, content, decided), [])


def packed_for_another(facts: ModelFacts, preset: Preset) -> list[Problem]:
    """What is wrong with writing blocks that were chosen for another preset."""
    other = other_preset(facts.path, "gguf", preset.name, "in the blocks")
    return other if other and stored_blocks(facts.path) else []


def read_content(facts: ModelFacts) -> tuple[Content | None, list[Problem]]:
    """What goes into the file whatever the preset is, or every problem. Raises ModelError and UnsupportedError."""
    if facts.source == "gguf":
        return requantize.read_content(facts)
    return _read_checkpoint(facts)


def _on_grid(facts: ModelFacts, tensors: list[OutTensor]) -> tuple[list[OutTensor], list[Problem]]:
    """The tensors, those that lie in ggml's bytes already read from there."""
    problems = foreign_grids(facts.path, GGML)
    stored = stored_blocks(facts.path)
    problems += block_problems(facts, stored)
    if problems:
        return tensors, problems
    parts = [
        Problem(tensor.name, "is made of parts of a tensor that lies in ggml's blocks", "compress without that tensor")
        for tensor in tensors
        if any(piece.name in stored and piece != facts.tensors.get(piece.name) for piece in tensor.pieces)
    ]
    return [_in_blocks(tensor, stored) for tensor in tensors], parts


def _in_blocks(tensor: OutTensor, stored: Mapping[str, TensorFact]) -> OutTensor:
    """The tensor read from blocks where all of it lies in them."""
    if not tensor.sources or not all(fact.name in stored for fact in tensor.sources):
        return tensor
    if tensor.source is not None:
        return dataclasses.replace(tensor, source=stored[tensor.source.name])
    return dataclasses.replace(tensor, pieces=tuple(stored[piece.name] for piece in tensor.pieces))


def _read_checkpoint(facts: ModelFacts) -> tuple[Content | None, list[Problem]]:
    """The content that a Hugging Face directory becomes."""
    from targets.gguf.tokenizer import tokenizer_metadata

    declared = architecture_of(facts.architecture)
    with damage_in(facts.path / "config.json"):
        config = full_config(declared, facts)
        declared = declared.instead(config) or declared
        architecture = uneven.fitting(declared, config)
        tensors, problems = plan_tensors(architecture, config, facts)
        problems += architecture.refuse(config) + uneven.refusals(declared, config)
        if problems:
            return None, problems
    tensors, problems = _on_grid(facts, tensors)
    if problems:
        return None, problems
    with damage_in(facts.path / "config.json"):
        hyper_parameters = architecture.hyper_parameters(config)
    task = encoder_task(facts, architecture.gguf) if architecture.encoder else EncoderTask()
    with damage_in(facts.path / "tokenizer.json"):
        tokenizer = tokenizer_metadata(facts.path, config, dimensions(config)["vocab"])
    sizes = Sizes.of((tensor.name, tensor.shape) for tensor in tensors)
    name, general = general_metadata(facts.path, architecture.gguf, facts.name, sizes)
    metadata = [
        *general,
        *hyper_parameters,
        *task.entries,
        *tokenizer.entries,
    ]
    notes = [*architecture.notes(config), *task.notes, *tokenizer.notes]
    notes += [*_compressed(tensors), *merged_notes(facts.path)]
    shape = model_shape({entry.key: entry.value for entry in metadata}, [tensor.name for tensor in tensors])
    return Content(name, metadata, tensors, shape, tuple(notes), from_checkpoint=True), []


def _compressed(tensors: list[OutTensor]) -> list[str]:
    """That the source was compressed before, where it was."""
    rounded = {fact.dtype for tensor in tensors for fact in tensor.sources} & ROUNDED.keys()
    if rounded:
        kinds = ", ".join(sorted({ROUNDED[dtype] for dtype in rounded}))
        return [
            f"the source is quantized already ({kinds}): what that lost stays lost, and drift is measured against it, "
            "not against the original model"
        ]
    if not any(_block_type(tensor) for tensor in tensors):
        return []
    return [
        "the source was compressed before: its blocks are written as they are, and drift is measured against it, not "
        "against the original model"
    ]


def _block_type(tensor: OutTensor) -> GgmlType | None:
    """The quantized type in whose blocks all of a tensor lies already."""
    kinds = {fact.dtype for fact in tensor.sources}
    kind = next(iter(kinds), "")
    return TYPES.get(kind) if len(kinds) == 1 and kind not in FLOAT_BYTES else None


@dataclass(frozen=True)
class Decided:
    """The types of matrices by name, and the importance that they are rounded with.

    assumed: as if there were an importance matrix, which there is not yet
    """

    types: dict[str, GgmlType]
    importance: Importance | None = None
    assumed: bool = False


Found = tuple[Importance | None, list[Problem]]
"""An importance matrix, where one was named, and what is wrong with it."""


def importance_of(content: Content, wanted: TypeChoice) -> Found:
    """The importance matrix that was named. Raises ModelError for one that cannot be read."""
    if wanted.importance is None:
        return None, []
    return importance_for(wanted.importance, _free(content))


def decide(
    preset: Preset,
    content: Content,
    model: str,
    wanted: TypeChoice | None = None,
    *,
    found: Found | None = None,
    assumed: bool = False,
) -> tuple[Decided, list[Problem]]:
    """The type of every tensor, and every problem with what was asked for. model: as the user names it.

    found: what `importance_of` gives, where that is known already
    assumed: as if there were an importance matrix, which is not asked for then
    Raises ModelError for an importance matrix that cannot be read.
    """
    wanted = wanted or TypeChoice()
    if preset is COPY:
        return Decided({}), _not_copied(content, wanted)
    importance, problems = found or importance_of(content, wanted)
    chosen = choose(preset, _free(content), content.shape, wanted, weighted=assumed or importance is not None)
    problems = problems + chosen.problems
    types = chosen.types
    if content.from_checkpoint:  # what a recipe chose stays; of a GGUF source the preset decides
        blocks = {t.name: kind for t in content.tensors if (kind := _block_type(t)) is not None}
        if blocks and dataclasses.replace(wanted, importance=None) != TypeChoice():
            what = "the model was compressed before, and its blocks are written as they are"
            problems.append(Problem("--rule and its like", what, "leave them out, or export the original model"))
        types = types | blocks
    kept = {tensor.name: {fact.dtype for fact in tensor.sources} for tensor in content.tensors}
    written = {name: kind for name, kind in types.items() if kept[name] != {kind.name}}
    problems += [] if content.from_checkpoint else requantize.undecodable(content, written)
    if assumed:
        return Decided(types, importance, assumed), problems
    return Decided(types, importance), problems + missing(preset, written, importance, model)


def _not_copied(content: Content, wanted: TypeChoice) -> list[Problem]:
    """What keeps all types from being the source's."""
    where, problems = f"--quant {COPY.name}", []
    if content.from_checkpoint:
        what = "keeps the types of a .gguf file, and MODEL is a directory"
        problems.append(Problem(where, what, "name another preset, such as bf16"))
    if wanted != TypeChoice():
        problems.append(Problem(where, "changes no type", "leave out --rule, --imatrix and their like"))
    return problems


def expected(
    preset: Preset, content: Content, model: str, wanted: TypeChoice, found: Found
) -> tuple[Decided, list[Problem]]:
    """As `decide`, and as if there were an importance matrix where what was asked for is not written without.

    Its record in the file is not counted, whose length is that of its name.
    """
    decided, problems = decide(preset, content, model, wanted, found=found)
    if not problems or wanted.importance is not None or preset is COPY:
        return decided, problems
    return decide(preset, content, model, wanted, found=found, assumed=True)


def _free(content: Content) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors whose type can be chosen."""
    return [(tensor.name, tensor.shape) for tensor in content.tensors if not tensor.precise]


def place(content: Content, types: Mapping[str, GgmlType]) -> list[header.Placed]:
    """Place the tensors, in their order."""
    kept = _kept_type if content.from_checkpoint else _own_type
    return header.place([(t.name, t.shape, types[t.name] if t.name in types else kept(t)) for t in content.tensors])


def lay_out(preset: Preset, content: Content, decided: Decided) -> Plan:
    """Place the tensors, encode the header."""
    placed = place(content, decided.types)
    importance = decided.importance
    file_type: int | None = preset.file_type
    if preset is COPY:  # what comes out is what went in
        file_type = content.file_type
        preset = next((one for one in PRESETS.values() if one.file_type == file_type), COPY)
    metadata = [
        *content.metadata,
        *([] if file_type is None else [uint32("general.file_type", file_type)]),
        uint32("general.quantization_version", QUANTIZATION_VERSION),
        *(importance.metadata() if importance is not None else ()),
    ]
    by_key = {entry.key: entry.value for entry in metadata}
    context = by_key.get(f"{by_key['general.architecture']}.context_length", 0)
    return Plan(
        name=content.name,
        preset=preset,
        metadata=metadata,
        tensors=list(zip(content.tensors, placed, strict=True)),
        header=header.encode(metadata, placed),
        context_length=context if isinstance(context, int) else 0,
        notes=(*content.notes, *uncounted(importance, decided.types)),
        importance=importance,
    )


def _kept_type(tensor: OutTensor) -> GgmlType:
    """The type of a checkpoint's tensor that no preset touches: of a vector float32, of a matrix what it has."""
    kept = tensor.sources[0].dtype if tensor.sources else "F32"
    return TYPES["F32"] if tensor.precise or len(tensor.shape) == 1 or kept not in TYPES else TYPES[kept]


def _own_type(tensor: OutTensor) -> GgmlType:
    """The type that a tensor of a GGUF file has."""
    return _READABLE[tensor.sources[0].dtype]
