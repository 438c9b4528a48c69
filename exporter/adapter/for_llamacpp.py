"""`packlight adapter`: a LoRA adapter as the GGUF file that llama.cpp adds to its base when it runs (`--lora`).

llama.cpp adds scale * lora_b @ lora_a with scale = adapter.lora.alpha / rank (src/llama-adapter.cpp); what a module
has of its own, another alpha or rank-stabilised scaling, goes into its lora_b. Rows that the base's file has in another
order are moved with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.adapter.merge import MergeRequest, read_with_base
from exporter.adapter.reading import TABLE
from runtime.atomic import replacing
from runtime.errors import ModelError, UnsupportedError, UserError
from targets.facts import several, shown
from targets.gguf import header
from targets.gguf.architectures import architecture_of
from targets.gguf.general import Sizes, general_metadata
from targets.gguf.keyvalue import KeyValue, float32, string, uint32
from targets.gguf.plan import read_content
from targets.gguf.stream import interleave_order
from targets.gguf.types import TYPES
from targets.weights import WeightReader

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from exporter.adapter.reading import Adapter, LowRank
    from exporter.progress import Reporter
    from targets.facts import ModelFacts
    from targets.gguf.architectures.base import OutTensor

    Floats = npt.NDArray[np.float32]

TABLE_IN_FILE = "token_embd.weight"


@dataclass(frozen=True)
class AdapterReport:
    """What was written."""

    out: str
    base: str
    matrices: int
    n_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {"packlight_adapter": 1, **vars(self)}


def write_adapter(request: MergeRequest, reporter: Reporter) -> AdapterReport:
    """Write request.out, a file. Raises UserError and its kin before anything is written."""
    out: Path = request.out.absolute()
    if out.suffix != ".gguf":
        raise UserError(f"{request.out}: name a file for -o, such as adapter.gguf")
    if out.exists():
        raise UserError(f"{request.out}: is there already; name another file")
    adapter, base = read_with_base(request, reporter)
    if adapter.whole:
        names = several([shown(name) for name in adapter.whole])
        fix = "make a model of it with 'packlight merge'"
        raise UnsupportedError(f"{request.adapter}: {names} trained whole, which llama.cpp cannot add; {fix}")
    placed = _places(adapter, base)
    matrices: list[tuple[str, Floats]] = []
    with WeightReader() as reader:
        for number, (name, low) in enumerate(adapter.added.items()):
            tensor = placed[name]
            matrices += zip((f"{tensor.name}.lora_a", f"{tensor.name}.lora_b"), _factors(reader, adapter, low, tensor),
                            strict=True)  # fmt: skip
            reporter.advance("adapter", number + 1, len(adapter.added))
    _write(out, _metadata(adapter, base), matrices)
    return AdapterReport(str(request.out), base.requested, len(adapter.added), out.stat().st_size)


def _places(adapter: Adapter, base: ModelFacts) -> dict[str, OutTensor]:
    """Where the base's file has every weight that is changed. Raises UnsupportedError where one has no place."""
    content, problems = read_content(base)
    if content is None or problems:
        raise UnsupportedError(f"{base.requested}: {problems[0]}")
    by_source: dict[str, OutTensor] = {}
    for tensor in content.tensors:
        if tensor.source is not None:
            by_source.setdefault(tensor.source.name, tensor)  # a table may be in the file once more, as the head
    if TABLE in adapter.added and all(tensor.name != "output.weight" for tensor in content.tensors):
        what = "changes the table of tokens, which is the head as well: llama.cpp would stop at the head"
        raise UnsupportedError(f"{adapter.directory}: {what}; make a model of it with 'packlight merge'")
    if missing := [shown(name) for name in adapter.added if name not in by_source]:
        what = f"{several(missing)} has no place of its own in a GGUF file of the base"
        raise UnsupportedError(f"{adapter.directory}: {what}; make a model of it with 'packlight merge'")
    return {name: by_source[name] for name in adapter.added}


def _factors(reader: WeightReader, adapter: Adapter, low: LowRank, tensor: OutTensor) -> tuple[Floats, Floats]:
    """lora_a (rank, columns) and lora_b (rows, rank), in float32; of the table (rows, rank) and (columns, rank).

    In the table's lora_a llama.cpp looks rows up (build_inp_embd of src/llama-graph.cpp).
    """
    right, left = (reader.read_rows(side, 0, side.shape[0]) for side in (low.right, low.left))
    if tensor.name == TABLE_IN_FILE:
        right = right.T
    if tensor.interleave_heads:
        left = left[interleave_order(len(left), tensor.interleave_heads)]
    return right, left * np.float32(low.scale * low.rank / adapter.alpha)


def _metadata(adapter: Adapter, base: ModelFacts) -> list[KeyValue]:
    count = sum(low.left.n_elements + low.right.n_elements for low in adapter.added.values())
    architecture, name = architecture_of(base.architecture).gguf, adapter.directory.absolute().name
    _, entries = general_metadata(adapter.directory, architecture, name, Sizes(count))
    entries = [string("general.type", "adapter") if one.key == "general.type" else one for one in entries]
    if not any(one.key == "general.base_model.count" for one in entries):
        entries += [uint32("general.base_model.count", 1), string("general.base_model.0.name", base.name)]
    return [
        *entries,
        string("adapter.type", "lora"),
        float32("adapter.lora.alpha", adapter.alpha),
        uint32("general.file_type", 0),
        uint32("general.quantization_version", 2),
    ]


def _write(out: Path, metadata: list[KeyValue], matrices: list[tuple[str, Floats]]) -> None:
    placed = header.place([(name, values.shape, TYPES["F32"]) for name, values in matrices])
    head = header.encode(metadata, placed)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary, temporary.open("wb") as file:
            file.write(head)
            for place, (_, values) in zip(placed, matrices, strict=True):
                file.write(b"\0" * (len(head) + place.offset - file.tell()))
                file.write(np.ascontiguousarray(values, "<f4").tobytes())
            file.write(b"\0" * (header.align(file.tell()) - file.tell()))
    except OSError as error:
        raise ModelError(f"{out}: cannot be written ({error.strerror}); choose another -o") from error
