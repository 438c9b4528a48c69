"""What a GGUF file of an encoder says of its task: how a text's embedding is pooled, or that it is a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.errors import UnsupportedError
from runtime.gguf_kind import POOLINGS, task_of_kind
from targets.gguf.keyvalue import KeyValue, uint32
from targets.pooling import read_pooling
from targets.task import FEATURE_EXTRACTION, TEXT_CLASSIFICATION, infer_task, is_sentence_transformer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from targets.facts import ModelFacts

_NO_POOLING = (
    "the file names no pooling, because the model's directory names none that is known here: it gives the states of "
    "all tokens, to be pooled by who uses it"
)
_RAW = (
    "the model's embeddings have lengths of their own; llama.cpp's tools make all of them 1 unless --embd-normalize -1 "
    "is given"
)


@dataclass(frozen=True)
class EncoderTask:
    """entries: key/values for the file; normalize: embeddings are made of length 1; notes: a line each, for people."""

    entries: tuple[KeyValue, ...] = ()
    normalize: bool = False
    notes: tuple[str, ...] = ()


def encoder_task(facts: ModelFacts, arch: str) -> EncoderTask:
    """What a checkpoint is written for. Raises UnsupportedError for a task that llama.cpp has no head for.

    arch: general.architecture
    """
    task = infer_task(facts)
    key = f"{arch}.pooling_type"
    if task == TEXT_CLASSIFICATION:
        return EncoderTask((uint32(key, POOLINGS["rank"]),))
    if task != FEATURE_EXTRACTION:
        raise UnsupportedError(f"{facts.path}: is for {task}; llama.cpp has embeddings and classifiers of texts")
    pooling = read_pooling(facts.path)
    if pooling is None:
        notes = (_NO_POOLING,) if is_sentence_transformer(facts.path) else ()
        return EncoderTask(notes=notes)
    return EncoderTask((uint32(key, POOLINGS[pooling.mode]),), pooling.normalize, () if pooling.normalize else (_RAW,))


def contract_of(facts: ModelFacts, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What the contract of an artifact says of its task: "task", "normalize"; empty for a decoder alone.

    metadata: key/values of the file
    """
    arch = metadata.get("general.architecture")
    task = task_of_kind(arch, metadata.get(f"{arch}.pooling_type"))
    if task is None:
        return {}
    if task != FEATURE_EXTRACTION or facts.source != "huggingface":
        return {"task": task}
    return {"task": task, "normalize": encoder_task(facts, str(arch)).normalize}
