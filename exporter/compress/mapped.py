"""A model in float32 whose weights lie in a file and not in memory: pages come when a layer runs, and go after it.

The file is mapped shared: what a step writes into a weight is in the file, and the kernel may take every page back. So
a model takes the memory of a layer, whatever its size, as long as the disk holds it.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import re
import shutil
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from exporter.compress.processes import count_now
from exporter.compress.stack import layers_of, name_of_layers
from exporter.verify.encoder_reference import AUTO_CLASSES, TransformersEncoder
from exporter.verify.reference import TorchSource, TransformersReference, quiet
from runtime.errors import ModelError, UserError
from runtime.units import format_bytes
from targets.mxfp4 import CODES
from targets.task import FEATURE_EXTRACTION
from targets.weights import WeightReader

if TYPE_CHECKING:
    from collections.abc import Container, Iterator
    from pathlib import Path

    from targets.facts import ModelFacts

CHUNK = 1 << 22
"""Weights that are copied at a time."""
DROPPED_FROM = 1 << 30
"""Bytes of a model from which on pages are given back after every layer; below it costs more time than memory."""
PAGE = mmap.ALLOCATIONGRANULARITY
_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")


class Mapped(TorchSource):
    """A directory in float32, its weights in a file in `room`. Raises UserError where the disk is small.

    room: a directory, for what else is large as well; always_drops: pages are given back however small the model is
    """

    always_drops = False
    _facts: ModelFacts
    room: Path
    _trusted: bool
    _kind: str

    def load(self, transformers: Any, kind: str, options: dict[str, Any]) -> tuple[Any, list[str]]:  # noqa: ANN401
        """See `TorchSource.load`."""
        self._kind = kind
        common = {key: options[key] for key in ("local_files_only", "trust_remote_code")}
        config = transformers.AutoConfig.from_pretrained(self._facts.path, **common)
        with _parameters_without_memory():
            model = getattr(transformers, kind).from_config(
                config, dtype=torch.float32, trust_remote_code=common["trust_remote_code"]
            )
        owners = dict(model.named_parameters(remove_duplicate=False))
        if any(fact.dtype == CODES for fact in self._facts.tensors.values()):
            what = "its experts are in MXFP4, which are not read into a mapped file"
            raise UserError(f"{self._facts.requested}: {what}; save it in bf16 with transformers (dequantize=True)")
        self._facts = self.named_as(owners, model.base_model_prefix)
        places, total = _places(self._facts, owners)
        self._file = _write(self._facts, self.room, places, total)
        for name, offset in places.items():
            path, _, own = name.rpartition(".")
            module = model.get_submodule(path)
            shape = self._facts.tensors[name].shape
            values = np.frombuffer(self._file, np.float32, int(np.prod(shape)), offset).reshape(shape)
            parameter = nn.Parameter(torch.from_numpy(values), requires_grad=False)
            setattr(module, own, parameter)
            if isinstance(module, nn.Linear) and own == "weight":  # a layer may be narrower than the configuration
                module.out_features, module.in_features = shape
        model.tie_weights()
        missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
        if self.always_drops or total >= DROPPED_FROM:
            self._drop_after_use(model, places)
        return model, missing

    def reopen(self, facts: ModelFacts) -> None:
        """Another directory's weights and configuration in place of these; the tokenizer stays. Raises ModelError."""
        import transformers

        self._facts, self._model = facts, None
        gc.collect()  # the file before goes with the last that looks at it
        with quiet(transformers):
            options = {"local_files_only": True, "trust_remote_code": self._trusted}
            self._model, missing = self.load(transformers, self._kind, options)
        if missing:
            raise ModelError(f"{facts.path}: {len(missing)} weights are missing, the first is {missing[0]}")
        self._model.eval()

    def replace(self, model: Any) -> None:  # noqa: ANN401 - a model of transformers
        """Another model of the same tokens in place of this one, in memory until `reopen`."""
        self._model = model

    def give_back(self) -> None:
        """Give all pages back to the kernel, for who looks at weights without running the model."""
        if self.always_drops or len(self._file) >= DROPPED_FROM:
            self._file.madvise(mmap.MADV_DONTNEED)

    def named_as(self, owners: Container[str], prefix: str) -> ModelFacts:  # noqa: ARG002 - for who overrides it
        """The facts with weights named as the model names its own. prefix: of those below the head"""
        return self._facts

    def layers_in(self, model: Any) -> Any:  # noqa: ANN401 - a model of transformers, and its ModuleList
        """The layers whose pages are given back. Raises ModelError."""
        return layers_of(model)

    def _drop_after_use(self, model: Any, places: dict[str, int]) -> None:  # noqa: ANN401
        """Give a layer's pages back to the kernel once it has run: the file keeps what is in them."""
        layers = self.layers_in(model)
        prefix = name_of_layers(model, layers)
        for number, layer in enumerate(layers):
            starts = [offset for name, offset in places.items() if name.startswith(f"{prefix}{number}.")]
            ends = [
                offset + 4 * self._facts.tensors[name].n_elements
                for name, offset in places.items()
                if name.startswith(f"{prefix}{number}.")
            ]
            if starts:
                layer.register_forward_hook(self._dropper(min(starts), max(ends)))

    def _dropper(self, start: int, end: int) -> Any:  # noqa: ANN401 - a hook
        length = -(-(end - start) // PAGE) * PAGE

        def drop(*_: Any) -> None:
            self._file.madvise(mmap.MADV_DONTNEED, start, min(length, len(self._file) - start))

        return drop


class MappedReference(Mapped, TransformersReference):
    """A decoder's directory. See `Mapped`."""

    def __init__(
        self, facts: ModelFacts, room: Path, *, threads: int | None = None, trust_remote_code: bool = False
    ) -> None:
        self._facts, self.room, self._trusted = facts, room, trust_remote_code
        super().__init__(facts.path, dtype="float32", threads=threads, trust_remote_code=trust_remote_code)

    def again(self, facts: ModelFacts) -> MappedReference:
        """Another directory, opened in the same way and the same room."""
        return MappedReference(facts, self.room, trust_remote_code=self._trusted)


class MappedEncoder(Mapped, TransformersEncoder):
    """An encoder's directory; task: see `TransformersEncoder`. See `Mapped`."""

    def __init__(
        self, facts: ModelFacts, room: Path, task: str, *, threads: int | None = None, trust_remote_code: bool = False
    ) -> None:
        self._facts, self.room, self._trusted, self.task = facts, room, trust_remote_code, task
        super().__init__(facts.path, task, dtype="float32", threads=threads, trust_remote_code=trust_remote_code)

    def again(self, facts: ModelFacts) -> MappedEncoder:
        """Another directory, opened in the same way and the same room."""
        return MappedEncoder(facts, self.room, self.task, trust_remote_code=self._trusted)

    def reopen(self, facts: ModelFacts) -> None:
        """See `Mapped.reopen`."""
        super().reopen(facts)
        self.max_tokens = self._longest()

    def replace(self, model: Any) -> None:  # noqa: ANN401 - as above
        """See `Mapped.replace`. It may take longer texts, or shorter ones."""
        super().replace(model)
        self.max_tokens = self._longest()

    def load(self, transformers: Any, kind: str, options: dict[str, Any]) -> tuple[Any, list[str]]:  # noqa: ANN401
        """See `TorchSource.load`. A pooler that is missing, and that an embedding does not read, is not there."""
        model, missing = super().load(transformers, kind, options)
        pooler = getattr(model, "pooler", None) if self.task == FEATURE_EXTRACTION else None
        without = [name for name in missing if not name.startswith("pooler.")]
        if pooler is not None and len(missing) - len(without) == len(list(pooler.parameters())):
            model.pooler, missing = None, without
        named = {f"{model.base_model_prefix}.{missing[0]}", missing[0].replace("weight", "gamma")} if missing else set()
        if other := sorted(named & self._facts.tensors.keys()):
            what = f"calls a weight {other[0]} that transformers calls {missing[0]}"
            raise UserError(f"{self._facts.requested}: {what}; load it with {kind} and save it anew")
        return model, missing


def open_mapped(
    facts: ModelFacts, room: Path, task: str, *, threads: int | None = None, trust_remote_code: bool = False
) -> MappedReference | MappedEncoder:
    """A model of that task, one of `targets.task.TASKS`, open."""
    if task in AUTO_CLASSES:
        return MappedEncoder(facts, room, task, threads=threads, trust_remote_code=trust_remote_code)
    return MappedReference(facts, room, threads=threads, trust_remote_code=trust_remote_code)


@contextlib.contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Modules that are made meanwhile have parameters on the meta device; their buffers are real."""
    register = nn.Module.register_parameter

    def without_memory(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = without_memory  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _places(facts: ModelFacts, owners: Container[str]) -> tuple[dict[str, int], int]:
    """Where each weight begins in the file, on a page of its own and a layer's beside each other; the file's length.

    owners: names of weights that the model has
    """

    def order(name: str) -> tuple[int, str]:
        layer = _LAYER.search(name)
        return (int(layer[1]) if layer else -1, name)

    places, position = {}, 0
    for name in sorted((name for name in facts.tensors if name in owners), key=order):
        places[name] = position
        position += -(-4 * facts.tensors[name].n_elements // PAGE) * PAGE
    return places, position


def _write(facts: ModelFacts, room: Path, places: dict[str, int], total: int) -> mmap.mmap:
    """The weights as float32 in a file of `room`, mapped. It has no name: a killed process leaves nothing."""
    free, needed = shutil.disk_usage(room).free, (1 + count_now()) * total  # each has its own; and once for the result
    if needed > free:
        what = f"needs {format_bytes(needed)} of disk beside {room.parent}"
        raise UserError(f"{facts.requested}: {what}, {format_bytes(free)} are free; choose another -o")
    with tempfile.TemporaryFile(dir=room) as file, WeightReader() as reader:
        file.truncate(max(total, PAGE))
        for name, offset in places.items():
            file.seek(offset)
            for rows in reader.read_chunks(facts.tensors[name], CHUNK):
                rows.tofile(file)
        file.flush()
        return mmap.mmap(file.fileno(), 0)
