"""The files that a plan becomes: one, or with a limit of size several, cut and named as llama-gguf-split does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.units import format_bytes
from targets.base import Problem
from targets.gguf.header import align, encode, place
from targets.gguf.parts import MOST_PARTS, cut, part_name, split_keys

if TYPE_CHECKING:
    from targets.gguf.architectures.base import OutTensor
    from targets.gguf.header import Placed
    from targets.gguf.plan import Plan


@dataclass(frozen=True)
class PlannedFile:
    """A file that is ready to be written.

    header: the bytes before the data section; tensors: what to write and where in that section, in the file's order
    """

    name: str
    header: bytes
    tensors: list[tuple[OutTensor, Placed]]

    @property
    def n_bytes(self) -> int:
        """Of the whole file, the padding behind the last tensor included, which llama.cpp expects."""
        last = self.tensors[-1][1]
        return len(self.header) + align(last.offset + last.n_bytes)


def files_of(plan: Plan, most: int | None) -> list[PlannedFile]:
    """The plan's file, or its parts. most: bytes of a part's tensors; where all fit into one the file is not cut."""
    name = plan.name.file_name(plan.preset.name)
    cuts = cut(_sizes(plan), most) if most is not None else []
    if len(cuts) < 2:
        return [PlannedFile(name, plan.header, plan.tensors)]
    files = []
    for number, part in enumerate(cuts):
        tensors = plan.tensors[part]
        placed = place([(one.name, one.shape, one.kind) for _, one in tensors])
        keys = split_keys(number, len(cuts), len(plan.tensors))
        metadata = [*plan.metadata, *keys] if number == 0 else keys
        pairs = list(zip((tensor for tensor, _ in tensors), placed, strict=True))
        file_name = part_name(name.removesuffix(".gguf"), number, len(cuts))
        files.append(PlannedFile(file_name, encode(metadata, placed), pairs))
    return files


def cut_problems(plan: Plan, most: int | None) -> list[Problem]:
    """What keeps a plan from being cut so."""
    if most is None:
        return []
    where, sizes = "--split-max-size", _sizes(plan)
    largest = max(range(len(sizes)), key=sizes.__getitem__)
    if sizes[largest] > most:
        tensor = plan.tensors[largest][1]
        what = f"{tensor.name} alone has {format_bytes(sizes[largest])}, and a tensor is not cut"
        return [Problem(where, what, f"name at least {sizes[largest]}")]
    if (count := len(cut(sizes, most))) > MOST_PARTS:
        return [Problem(where, f"makes {count} parts, the format has {MOST_PARTS}", "name more")]
    return []


def _sizes(plan: Plan) -> list[int]:
    """Bytes of the tensors, padding included, in their order."""
    return [align(placed.n_bytes) for _, placed in plan.tensors]
