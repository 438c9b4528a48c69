"""Verify an artifact: run it and its source on the same token ids and say how far apart they are.

The protocol is llama-perplexity's, so that figures equal its own: the text is tokenized once, cut into chunks of
`context` tokens, the first token of a chunk is replaced by BOS where the model adds one, and the positions of the
chunk's second half are scored on the token that follows.
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from exporter.verify.encoder import compare_encoders
from exporter.verify.encoder_reference import GgufEncoder, TransformersEncoder
from exporter.verify.packed_reference import PackedReference, is_packed
from exporter.verify.pair_reference import TransformersPair
from exporter.verify.parity import check_parity
from exporter.verify.reference import GgufReference, TransformersReference
from exporter.verify.tensors import dead_tensors
from runtime.errors import CheckFailed, ModelError, UserError
from runtime.measurement import RunOptions
from runtime.openmp import wait_briefly
from runtime.sessions import open_session
from runtime.sessions.base import is_encoder, task_of
from targets.drift import Drift, DriftAccumulator
from targets.task import is_pair
from targets.text import load_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from exporter.verify.encoder_reference import EncoderReference
    from exporter.verify.reference import Reference
    from runtime.artifact import Artifact
    from runtime.sessions.base import EncoderSession, Session
    from targets.encoder_drift import EncoderDrift
    from targets.facts import ModelFacts
    from targets.text import EvalText

    Progress = Callable[[str, int, int], None]

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a weight by the dtype that the source is run in."""

MIN_CONTEXT = 8
CHARACTERS_PER_TOKEN = 64
"""More than any text has: only so much of a long text is tokenized. A cut changes the tokens beside it only."""


@dataclass(frozen=True)
class VerifyOptions:
    """How to verify.

    text: a UTF-8 file; None takes `targets.text.default_text`
    chunks: at most so many windows of `context` tokens, the second half of each scored; for an encoder at most so many
        rounds of texts (`exporter.verify.encoder.TEXT_TOKENS`)
    threads: None lets each engine choose
    trust_remote_code: let transformers run code that the model's directory carries
    dtype: of the source in torch: float32, bfloat16 or float16
    kv_type: of the artifact's KV cache, see `RunOptions`; the source always has one in floats
    """

    text: Path | None = None
    chunks: int = 8
    context: int = 512
    threads: int | None = None
    trust_remote_code: bool = False
    dtype: str = "float32"
    kv_type: str | None = None

    def __post_init__(self) -> None:
        if self.chunks < 1:
            raise UserError(f"chunks is {self.chunks}: at least one has to be compared")
        if self.context < MIN_CONTEXT or self.context % 2:
            raise UserError(f"context is {self.context}: it has to be an even number of at least {MIN_CONTEXT} tokens")
        if self.dtype not in DTYPE_BYTES:
            raise UserError(f"'{self.dtype}' is not a dtype of the source; known: {', '.join(DTYPE_BYTES)}")


def verify(artifact: Artifact, facts: ModelFacts, options: VerifyOptions, progress: Progress) -> Drift | EncoderDrift:
    """The Drift of `artifact` from the source model of `facts`, of an encoder its EncoderDrift; progress counts chunks.

    Raises ModelError where the source cannot be run, EngineError where the engine refuses the artifact, CheckFailed
    where it gives no numbers, UserError for a text that is unreadable or too short.
    """
    text = load_text(options.text)
    # Two engines take turns here. It is read once, when the OpenMP library is loaded; later it does nothing.
    wait_briefly()
    if is_encoder(artifact):
        return _verify_encoder(artifact, facts, options, text, progress)
    context = min(options.context, artifact.context_length or options.context) // 2 * 2
    run = RunOptions(threads=options.threads, context=context, batch=context)
    progress("loading", 0, 2)
    with contextlib.ExitStack() as stack:
        session = open_session(artifact, dataclasses.replace(run, kv_type=options.kv_type))
        stack.callback(session.close)
        progress("loading", 1, 2)
        reference = open_reference(facts, options, run)
        stack.callback(reference.close)
        progress("loading", 2, 2)
        drift = compare(session, reference, text, (options.chunks, context), progress)
    return dataclasses.replace(drift, dead_tensors=dead_tensors(artifact, facts))


def _verify_encoder(
    artifact: Artifact, facts: ModelFacts, options: VerifyOptions, text: EvalText, progress: Progress
) -> EncoderDrift:
    task, run = task_of(artifact), RunOptions(threads=options.threads)
    progress("loading", 0, 2)
    with contextlib.ExitStack() as stack:
        session = cast("EncoderSession", open_session(artifact, run))
        stack.callback(session.close)
        progress("loading", 1, 2)
        reference = _open_encoder(facts, task, options, run)
        stack.callback(reference.close)
        progress("loading", 2, 2)
        return compare_encoders(session, reference, text, options.chunks, progress, task=task)


def _open_encoder(facts: ModelFacts, task: str, options: VerifyOptions, run: RunOptions) -> EncoderReference:
    """The source of `facts`: in llama.cpp for a .gguf file, else in torch."""
    if facts.source == "gguf":
        return GgufEncoder(facts.path, run)
    return TransformersEncoder(
        facts.path, task, dtype=options.dtype, threads=options.threads, trust_remote_code=options.trust_remote_code
    )


def bits_per_weight(artifact: Artifact, facts: ModelFacts) -> float:
    """What the thresholds go by: the manifest's figure; for a bare file, its bytes over the source's weights."""
    if artifact.bits_per_weight or not facts.n_stored_params:
        return artifact.bits_per_weight
    return 8 * artifact.total_bytes / facts.n_stored_params


def open_reference(facts: ModelFacts, options: VerifyOptions, run: RunOptions) -> Reference:
    """The source of `facts`: in llama.cpp for a .gguf file, else in torch."""
    if facts.source == "gguf":
        return GgufReference(facts.path, run)
    how: dict[str, Any] = {
        "dtype": options.dtype, "threads": options.threads, "trust_remote_code": options.trust_remote_code,
    }  # fmt: skip
    if is_pair(facts):
        return TransformersPair(facts.path, **how)
    return PackedReference(facts, **how) if is_packed(facts) else TransformersReference(facts.path, **how)


def compare(
    session: Session, reference: Reference, text: EvalText, shape: tuple[int, int], progress: Progress
) -> Drift:
    """The Drift between an open artifact and an open source; shape: (chunks at most, tokens a chunk)."""
    n_chunks, context = shape
    chunks = cut_chunks(reference, text, n_chunks, context)
    columns = min(session.n_vocab, reference.n_vocab)
    if int(chunks.max()) >= columns:
        raise CheckFailed(
            f"the source's token {int(chunks.max())} has no column in the artifact's {session.n_vocab} logits:"
            " its vocabulary is cut short; export the model again"
        )
    progress("comparing tokenizers", 0, 1)
    parity, notes = check_parity(reference, session)
    progress("comparing tokenizers", 1, 1)
    if session.n_vocab != reference.n_vocab:
        notes.append(
            f"compared on the {columns} columns that both have: source {reference.n_vocab}, artifact {session.n_vocab}"
        )
    first = context // 2
    accumulator = DriftAccumulator()
    for index, ids in enumerate(chunks):
        progress("comparing logits", index, len(chunks))
        source = reference.logits(ids.tolist(), first)[:-1, :columns]
        artifact = session.all_logits(ids.tolist())[first:-1, :columns]
        where = f"chunk {index + 1} of {len(chunks)} of {text.name}"
        _check_finite(source, artifact, where, first)
        accumulator.add(source, artifact, ids[first + 1 :])
    progress("comparing logits", len(chunks), len(chunks))
    statistics = accumulator.statistics()
    return Drift(
        **vars(statistics), n_chunks=len(chunks), chunk_tokens=context, text_name=text.name, text_sha256=text.sha256,
        parity=parity, engine=session.engine, reference=reference.description, notes=tuple(notes),
        kl_by_position=accumulator.by_position(first),
    )  # fmt: skip


def cut_chunks(reference: Reference, text: EvalText, n_chunks: int, context: int) -> npt.NDArray[np.int64]:
    """Token ids by the source's tokenizer, shape (chunks, context). Raises UserError where not one chunk is full."""
    head = text.text[: n_chunks * context * CHARACTERS_PER_TOKEN]
    ids = reference.tokenize(head, add_special=True)
    full = min(n_chunks, len(ids) // context)
    if not full:
        raise UserError(
            f"{text.name}: has {len(ids)} tokens, one chunk needs {context}; name a longer text or a smaller context"
        )
    chunks = np.array(ids[: full * context], dtype=np.int64).reshape(full, context)
    if reference.bos_id is not None:
        chunks[:, 0] = reference.bos_id
    return chunks


def _check_finite(source: npt.NDArray[np.float32], artifact: npt.NDArray[np.float32], where: str, first: int) -> None:
    """Statistics over NaN would say nothing and could pass for numbers."""
    if not np.isfinite(source).all():
        raise ModelError(f"the source's own logits are not finite in {where}; its weights or its dtype are at fault")
    rows = ~np.isfinite(artifact).all(axis=1)
    if rows.any():
        raise CheckFailed(
            f"the artifact's logits are not finite at position {first + int(rows.argmax())} of {where}:"
            " it is broken; export the model again"
        )
