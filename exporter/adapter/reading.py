"""An adapter directory of PEFT: what it adds to which weights of its base, and what it puts in place of others.

The layout is what peft's `save_pretrained` writes: adapter_config.json and adapter_model.safetensors, whose tensors are
named base_model.model.MODULE.lora_A.weight, .lora_B.weight, of a table .lora_embedding_A, .lora_embedding_B, or as the
base's own weights where modules were trained whole (`modules_to_save`).
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import ModelError, UnsupportedError
from targets.facts import several, shown
from targets.safetensors import load_object, read_header
from targets.weights import FLOAT_BYTES, WeightReader, row_chunks

if TYPE_CHECKING:
    from pathlib import Path

    from targets.facts import ModelFacts, TensorFact

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_PREFIX = "base_model.model."
_CHUNK = 1 << 20
"""Weights that are compared at a time."""
_SIDES = {".lora_A.weight": "right", ".lora_B.weight": "left"}
_TABLE_SIDES = {".lora_embedding_A": "right", ".lora_embedding_B": "left"}
_AGAIN = "train or copy the adapter again"
_REFUSED = {
    "use_dora": "DoRA rescales the merged weights",
    "lora_bias": "its products have biases",
    "target_parameters": "it changes parameters that are not matrices of modules",
    "trainable_token_indices": "it changes single rows of the table",
    "layer_replication": "it repeats layers of the base",
    "alora_invocation_tokens": "it acts on some tokens only",
    "use_qalora": "its inputs are pooled",
    "arrow_config": "it chooses between adapters",
}
"""Options that make an adapter something else than a sum, and why."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
"""Initialisations that subtract from the base: what is saved does not belong to the base as it is."""


@dataclass(frozen=True)
class LowRank:
    """What is added to a weight (rows, columns): scale * left (rows, rank) @ right (rank, columns).

    transposed: the base stores the weight as (columns, rows), as GPT-2's Conv1D does, and every table of embeddings
    """

    left: TensorFact
    right: TensorFact
    scale: float
    transposed: bool = False

    @property
    def rank(self) -> int:
        """Of the sum."""
        return self.right.shape[0]


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk.

    base: as it names its base model, with the revision; alpha: as trained, of modules without one of their own
    added: by the names of the base's weights; whole: tensors in their place
    """

    directory: Path
    base: str
    revision: str | None
    alpha: float
    added: dict[str, LowRank]
    whole: dict[str, TensorFact]


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds one, and no model."""
    return (directory / CONFIG).is_file() and not (directory / "config.json").is_file()


def read_adapter(directory: Path) -> Adapter:
    """Headers only. Raises ModelError for damage, UnsupportedError for what is more than a sum."""
    path = directory / CONFIG
    if not path.is_file():
        raise ModelError(f"{directory}: no {CONFIG}; name the directory that peft's save_pretrained wrote")
    weights = directory / WEIGHTS
    if not weights.is_file():
        pickled = directory / "adapter_model.bin"
        hint = (
            "it has only pickled weights, which can run any code; save it again with peft" if pickled.is_file() else ""
        )
        raise ModelError(f"{directory}: no {WEIGHTS}; {hint or _AGAIN}")
    try:
        config = load_object(path)
        facts = read_header(weights)
    except OSError as error:
        raise ModelError(f"{error.filename or directory}: cannot be read ({error.strerror}); {_AGAIN}") from error
    _refuse(path, config)
    sides, tables, whole = _sorted(weights, facts)
    if tables and config.get("ensure_weight_tying"):
        what = "keeps a table that it changes and the head alike"
        raise UnsupportedError(f"{path}: {what}; merge it with peft (merge_and_unload) and name the result")
    transposed = bool(config.get("fan_in_fan_out"))
    added = {
        f"{module}.weight": _low_rank(path, config, module, pair, transposed=transposed or module in tables)
        for module, pair in sorted(sides.items())
    }
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    return Adapter(
        directory=directory,
        base=base if isinstance(base, str) else "",
        revision=revision if isinstance(revision, str) else None,
        alpha=_number(path, config, "lora_alpha"),
        added=added,
        whole=whole,
    )


def _refuse(path: Path, config: dict[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedError(f"{path}: is a {shown(kind)} adapter; only LoRA can be merged or written")
    if found := [why for key, why in _REFUSED.items() if config.get(key)]:
        raise UnsupportedError(f"{path}: {'; '.join(found)}; merge it with peft (merge_and_unload) and name the result")
    if config.get("bias", "none") != "none":
        raise UnsupportedError(f"{path}: bias '{shown(config['bias'])}' changes biases of the base; merge it with peft")
    started = config.get("init_lora_weights")
    if isinstance(started, str) and started.lower().startswith(_CHANGES_BASE):
        what = f"was started by {shown(started)}, which changes the base's weights"
        fix = "save it with peft's path_initial_model_for_weight_conversion"
        raise UnsupportedError(f"{path}: {what}; {fix}")


_Sides = dict[str, dict[str, "TensorFact"]]


def _sorted(path: Path, facts: list[TensorFact]) -> tuple[_Sides, set[str], dict[str, TensorFact]]:
    """Both sides of every module, those modules that are tables, and the weights that were trained whole."""
    sides: _Sides = {}
    tables: set[str] = set()
    whole: dict[str, TensorFact] = {}
    unknown = []
    for fact in facts:
        name = fact.name.removeprefix(_PREFIX)
        end = next((end for end in (*_SIDES, *_TABLE_SIDES) if name.endswith(end)), None)
        if fact.dtype not in FLOAT_BYTES or name == fact.name or (end is None and "lora_" in name):
            unknown.append(shown(fact.name))
        elif end is not None:
            module = name.removesuffix(end)
            sides.setdefault(module, {})[(_SIDES | _TABLE_SIDES)[end]] = fact
            tables.update([module] if end in _TABLE_SIDES else [])
        else:
            whole[name.replace(".modules_to_save.default.", ".").replace(".base_layer.", ".")] = fact
    if unknown:
        raise UnsupportedError(f"{path}: holds {several(unknown)}, which packlight does not know; merge it with peft")
    if single := [shown(module) for module, pair in sides.items() if len(pair) < len(_SIDES)]:
        raise ModelError(f"{path}: has one of two factors only: {several(single)}; {_AGAIN}")
    if not sides and not whole:
        raise ModelError(f"{path}: changes no weight; {_AGAIN}")
    return sides, tables, whole


def _low_rank(
    path: Path, config: dict[str, Any], module: str, pair: dict[str, TensorFact], *, transposed: bool
) -> LowRank:
    left, right = pair["left"], pair["right"]
    if len(left.shape) != 2 or len(right.shape) != 2 or left.shape[1] != right.shape[0]:
        raise ModelError(f"{path.parent}: {module}: {list(left.shape)} and {list(right.shape)} cannot be multiplied")
    rank = _of_module(path, config, "rank_pattern", module, _number(path, config, "r"))
    if rank != right.shape[0]:
        raise ModelError(f"{path}: rank {rank:g} of {module}, its weights have {right.shape[0]}; {_AGAIN}")
    alpha = _of_module(path, config, "alpha_pattern", module, _number(path, config, "lora_alpha"))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LowRank(left, right, scale, transposed)


def _number(path: Path, config: dict[str, Any], key: str) -> float:
    value = config.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise ModelError(f"{path}: '{key}' is {shown(value)}, not a positive number; {_AGAIN}")
    return float(value)


def _of_module(path: Path, config: dict[str, Any], key: str, module: str, usual: float) -> float:
    """What a table of patterns says of a module: the first pattern that its name ends in counts, as peft has it."""
    table = config.get(key) or {}
    if not isinstance(table, dict):
        raise ModelError(f"{path}: '{key}' is not an object; {_AGAIN}")
    for pattern in table:
        try:
            found = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise ModelError(f"{path}: '{key}' has the pattern {shown(pattern)}, which is none ({error})") from error
        if found:
            return _number(path, table, pattern)
    return usual


def belongs(adapter: Adapter, base: ModelFacts) -> None:
    """Raise ModelError where the adapter is of another model: a weight that the base lacks, or another shape."""
    problems = []
    for name, low in adapter.added.items():
        fact = adapter.whole.get(name, base.tensors.get(name))
        if fact is None and name == HEAD and base.config.get("tie_word_embeddings"):
            fact = base.tensors.get(TABLE)
        shape = (low.left.shape[0], low.right.shape[1])
        if fact is None or fact.shape != (shape[::-1] if low.transposed else shape):
            had = "none" if fact is None else str(list(fact.shape))
            problems.append(f"{shown(name)} {list(shape)}, the base has {had}")
    for name, fact in adapter.whole.items():
        known = base.tensors.get(name, base.tensors.get(TABLE) if name == HEAD else None)
        # Rows of the table and of the head may have been added for tokens of its own.
        same = known is not None and (fact.shape == known.shape or name in (TABLE, HEAD))
        if not same or known is None or fact.shape[1:] != known.shape[1:]:
            problems.append(f"{shown(name)} {list(fact.shape)}, the base has {list(known.shape) if known else 'none'}")
    if problems:
        fix = "name its own base with --base"
        raise ModelError(f"{adapter.directory}: does not belong to {base.requested}: {several(problems)}; {fix}")


def without_copies(adapter: Adapter, base: ModelFacts) -> Adapter:
    """The adapter without the base's own weights: peft saves a table that it adds to as well, changed or not."""
    with WeightReader() as reader:
        copies = {
            name
            for name, fact in adapter.whole.items()
            if name in adapter.added and _alike(reader, fact, base.tensors.get(name))
        }
    return dataclasses.replace(adapter, whole={name: one for name, one in adapter.whole.items() if name not in copies})


def _alike(reader: WeightReader, ours: TensorFact, theirs: TensorFact | None) -> bool:
    """Whether both are matrices of the same values."""
    if theirs is None or ours.shape != theirs.shape:
        return False
    return all(
        np.array_equal(reader.read_rows(ours, *rows), reader.read_rows(theirs, *rows))
        for rows in row_chunks(ours.shape[0], ours.shape[1], _CHUNK)
    )
