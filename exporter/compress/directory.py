"""The directory that a compression ends in: transformers loads it, and `export` packs it."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np

from exporter.compress.widths import found_widths
from exporter.model_files import copy_beside_weights
from runtime.atomic import write_json
from runtime.errors import ModelError
from targets.factors import FACTORS
from targets.ongrid import RECIPE
from targets.safetensors import encode_header
from targets.widths import padded_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from exporter.compress.subject import Subject
    from targets.widths import Widths


def refuse_unknown_weights(subject: Subject) -> None:
    """Raise ModelError where the directory has weights that the open model has not: they would be lost."""
    known = subject.model.state_dict().keys() | dict(subject.model.named_buffers()).keys()  # older files have positions
    if missing := sorted(subject.facts.tensors.keys() - known):
        raise ModelError(f"{subject.facts.requested}: transformers has no weight {missing[0]}; it cannot be compressed")


def write_directory(room: Path, subject: Subject) -> None:
    """The source's own files, the weights as they are now in float32, and the subject's files beside them."""
    from safetensors.numpy import save_file as save_arrays

    source = subject.facts.path
    copy_beside_weights(source, room, but=(RECIPE,))
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config = {key: value for key, value in config.items() if key not in ("torch_dtype", "dtype", "quantization_config")}
    write_json(room / "config.json", {**subject.configured(config), "dtype": "float32"})
    try:
        _stream(room / "model.safetensors", subject.merged(), found_widths(subject.model), subject.source.give_back)
        if factors := subject.factors():
            save_arrays(factors, room / FACTORS)
        for name, arrays in subject.files.items():
            save_arrays(dict(arrays), room / name)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"{room.parent}: cannot be written ({error}); free space or choose another -o") from error


def _stream(path: Path, tensors: Mapping[str, Tensor], widths: Widths, written: Callable[[], None]) -> None:
    """A safetensors file of float32 tensors, written one after the other: the library would hold all of them at once.

    widths: of the layers, which are padded to the widest one's; written: is called after each

    The format: https://github.com/huggingface/safetensors#format
    """
    shapes = {name: padded_shape(name, tuple(tensor.shape), widths) for name, tensor in tensors.items()}
    with path.open("wb") as file:
        file.write(encode_header((name, "F32", shape, 4 * math.prod(shape)) for name, shape in shapes.items()))
        for name, tensor in tensors.items():
            values = tensor.detach().contiguous().numpy().astype("<f4", copy=False)
            if shapes[name] != values.shape:
                values = np.pad(values, [(0, full - own) for own, full in zip(values.shape, shapes[name], strict=True)])
            values.tofile(file)
            written()
