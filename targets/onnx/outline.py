"""What ONNX Runtime will need for a graph that is not written yet: bytes, memory, multiplications."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import UnsupportedError
from runtime.measurement import PROMPT_TOKENS, TEXT_TOKENS, TURNS
from runtime.sessions.onnxruntime import PIECE
from targets.base import EmitOptions
from targets.gguf.tokenizer.files import read_files
from targets.onnx import clients
from targets.onnx.presets import PRESETS
from targets.onnx.target import OnnxTarget, graph_of, write_settings
from targets.outline import Footprint, Outlined, Work, first_problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.measurement import RunOptions
    from targets.facts import ModelFacts
    from targets.gguf.tokenizer.files import TokenizerFiles
    from targets.onnx.encoder_spec import EncoderSpec
    from targets.onnx.plan import Plan
    from targets.onnx.weights import Blob
    from targets.processor import Processor

FITTED = ("fp32", "fp16", "int8", "int4", "int4-mixed", "dynamic-int8")
PROCESS, HEAPS = 61_500_000, 2_500_000
"""The interpreter, numpy and ONNX Runtime; what products need beside their values. Fitted."""
PACKED_BLOCK = 12
"""Bytes for a block in memory: its scale twice and the sum of its codes, as floats."""
ATTENTION_STREAMS, ENCODER_HEAPS = 9, 3_000_000
"""Of an encoder: values of the hidden width that attention holds for a token. Fitted."""
LOOKED_UP = 0.8
"""Of the vocabulary, by `runtime.worker.token_ids`."""
ROTARY, WORDS = "rotary.", "word_embeddings"
READ_AROUND = 1 << 16
"""Bytes that Linux maps at once where one page of a file is asked for (fault_around_bytes)."""
READ_AHEAD = 1 << 18
"""The same of a file that was read from front to back before: its pages lie together in larger pieces. Fitted."""


@dataclass(frozen=True)
class OnnxOutline:
    """See `targets.outline.Outline`."""

    quant: str
    file_bytes: int
    exact: bool
    plan: Plan
    format: str = "onnx"

    @property
    def encoder(self) -> bool:
        """Whether it reads texts and generates none."""
        return self.plan.encoder is not None

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each weight."""
        return self.plan.bits_per_weight

    @property
    def context(self) -> int:
        """Most tokens that it can hold."""
        return self.plan.context

    def bytes_with(self, context: int) -> int:
        """The same for every context."""
        del context
        return self.file_bytes

    def kv_types(self) -> Sequence[str]:
        """The one that the graph fixes."""
        return ("f16",) if self.plan.preset.name == "fp16" else ("f32",)

    def footprint(self, options: RunOptions, processor: Processor) -> Footprint | None:
        """What ONNX Runtime takes on a CPU; None for a decoder's preset that nobody has fitted yet."""
        del processor  # packs alike on all
        if self.plan.encoder is not None:
            return self._of_encoder(self.plan.encoder, min(options.context, self.context))
        spec = self.plan.decoder
        if spec is None or self.quant not in FITTED:
            return None
        packed = self._packed_bytes() + self._scale_bytes()
        # `runtime.worker` reads a prompt, then fills the context with others.
        looked_up = options.context + min(PROMPT_TOKENS, options.context)
        table = self._table_bytes(looked_up) + self._rotary_bytes(options.context)
        kv = self.kv_bytes(options)
        compute = HEAPS + 4 * min(PIECE, options.batch) * (3 * self._widest() + 4 * spec.hidden) + 4 * spec.vocab
        # While the largest matrix is packed, it is there twice; the cache is not there yet.
        while_loading = max(self._copies(), default=0)
        return Footprint(
            weights_bytes=packed + table,
            kv_cache_bytes=kv,
            compute_bytes=max(compute, while_loading - kv - table),
            other_bytes=PROCESS,
        )

    def _of_encoder(self, spec: EncoderSpec, tokens: int) -> Footprint:
        """With texts of up to so many tokens. Attention holds the scores of all heads."""
        # `runtime.worker` reads its texts in two passes, and one more in the trials.
        looked_up = TURNS * tokens + min(TEXT_TOKENS, tokens)
        tables = {name: blob.n_bytes for name, blob in self._gathered.items()}
        words = sum(_around(LOOKED_UP * n, looked_up) for name, n in tables.items() if name.startswith(WORDS))
        rest = sum(n for name, n in tables.items() if not name.startswith(WORDS))
        attention = ATTENTION_STREAMS * spec.hidden + spec.n_heads * tokens
        values = max(attention, 2 * (spec.ffn + spec.hidden))
        if spec.family.padded_positions:
            # ONNX Runtime knows all its shapes, and keeps what a layer needed for the next one.
            values = attention + 2 * spec.ffn + 3 * spec.hidden
        return Footprint(
            weights_bytes=self._packed_bytes() + self._scale_bytes() + int(words) + rest + ENCODER_HEAPS,
            kv_cache_bytes=0,
            compute_bytes=4 * tokens * values,
            other_bytes=PROCESS,
        )

    @cached_property
    def _blobs(self) -> dict[str, Blob]:
        """All that lies in the data files, by name."""
        return {blob.name: blob for job in self.plan.graph.jobs for blob in job.blobs}

    @cached_property
    def _gathered(self) -> dict[str, Blob]:
        """Blobs that rows are looked up in."""
        names = {name: name for name in self._blobs} | {name: of for name, of, _ in self.plan.graph.aliases}
        nodes = (node for node in self.plan.graph.nodes if node.op_type.startswith("Gather"))
        found = {names[name] for node in nodes for name in node.input if name in names}
        return {name: self._blobs[name] for name in found}

    @cached_property
    def _multiplied(self) -> dict[str, Blob]:
        """Blobs that the engine reads for every token: no rotary table, and no table that is not the head as well."""
        left = set(self._only_looked_up)
        return {n: blob for n, blob in self._blobs.items() if n not in left and not n.startswith(ROTARY)}

    @cached_property
    def _only_looked_up(self) -> dict[str, Blob]:
        """Tables that nothing is multiplied by, with the scales and zero points of those in blocks."""
        spec = self.plan.decoder
        if spec is not None and spec.tied:
            return {}
        beside = (
            f"{name.removesuffix('.codes')}.{kind}" for name in self._gathered for kind in ("scales", "zero_points")
        )
        return {**self._gathered, **{name: self._blobs[name] for name in beside if name in self._blobs}}

    def _scale_bytes(self) -> int:
        """Of the scales of those tables, which the engine makes floats when it loads them."""
        return sum(4 * math.prod(blob.shape) for name, blob in self._only_looked_up.items() if name.endswith(".scales"))

    def _widest(self) -> int:
        """Most outputs of a product in a layer."""
        vocab = self.plan.decoder.vocab if self.plan.decoder else 0
        rows = [blob.shape[0] for name, blob in self._blobs.items() if name.endswith(".codes")]
        rows += [
            blob.shape[1] for name, blob in self._blobs.items() if not name.endswith(".codes") and len(blob.shape) == 2
        ]
        return max(count for count in rows if count != vocab)

    def _packed_bytes(self) -> int:
        """Held by the engine: codes and zero points, for every block its scale twice and the sum of its codes.

        Halves become floats, which is what a CPU multiplies.
        """
        return sum(
            PACKED_BLOCK * math.prod(blob.shape)
            if name.endswith(".scales") and len(blob.shape) == 2
            else _as_floats(blob)
            for name, blob in self._multiplied.items()
        )

    def _table_bytes(self, tokens: int) -> int:
        """Mapped from the file: what so many different tokens have looked up, and the kernel has read around it."""
        spec = self.plan.decoder
        whole = sum(blob.n_bytes for blob in self._gathered.values())
        codes = sum(blob.n_bytes for name, blob in self._gathered.items() if name.endswith(".codes"))
        if spec is None or not spec.tied:
            return int(_around(codes or whole, tokens))
        # It was read to be packed for the head.
        return int(_around(LOOKED_UP * codes, tokens, READ_AHEAD)) if codes else whole

    def _rotary_bytes(self, tokens: int) -> int:
        """Of the rotary tables, the rows of so many positions."""
        tables = [blob for name, blob in self._blobs.items() if name.startswith(ROTARY)]
        return sum(blob.n_bytes // blob.shape[0] * tokens for blob in tables)

    def _copies(self) -> list[int]:
        """Bytes of each matrix in blocks beside its packed form; where there is none, of the table."""
        scales = {n.removesuffix(".scales"): blob for n, blob in self._blobs.items() if n.endswith(".scales")}
        if not scales:
            return [_as_floats(blob) for blob in self._gathered.values()]
        codes = {n.removesuffix(".codes"): blob for n, blob in self._blobs.items() if n.endswith(".codes")}
        return [blob.n_bytes + 4 * math.prod(scales[name].shape) for name, blob in codes.items() if name in scales]

    def kv_bytes(self, options: RunOptions) -> int:
        """Of the cache, full."""
        spec = self.plan.decoder
        if spec is None:
            return 0
        width = 2 if self.plan.preset.name == "fp16" else 4
        return 2 * spec.n_layers * spec.n_kv_heads * spec.head_dim * options.context * width

    def work(self) -> Work:
        """Every matrix once."""
        spec, n_bytes = self.plan.decoder, sum(blob.n_bytes for blob in self._multiplied.values())
        if spec is None:
            n_layers = self.plan.encoder.n_layers if self.plan.encoder else 0
            return Work(self.plan.elements, {}, n_bytes, n_layers)
        per_layer = 2 * spec.head_dim * spec.n_layers
        return Work(
            weights=self.plan.elements,
            head=self.plan.head,
            weight_bytes=n_bytes,
            n_layers=spec.n_layers,
            kv_elements=spec.n_kv_heads * per_layer,
            attention=spec.n_heads * per_layer,
        )


def _as_floats(blob: Blob) -> int:
    """Bytes of a blob where halves are made floats."""
    return blob.n_bytes * (2 if blob.dtype == np.float16 else 1)


def _around(n_bytes: float, lookups: int, piece: int = READ_AROUND) -> float:
    """Of a mapped table of so many bytes, those that the kernel has read for so many rows of it, a piece for each."""
    return n_bytes * -math.expm1(-lookups * piece / n_bytes) if n_bytes else 0.0


def outlines(facts: ModelFacts, quants: Sequence[str] | None = None, engine: str | None = None) -> Outlined:
    """See `targets.outline.Outlined`; engine: its oldest version that has to load the artifact.

    Raises ModelError for files that are broken, UnsupportedError for a kind of model that no preset takes.
    """
    found: list[OnnxOutline] = []
    refused: dict[str, str] = {}
    target = OnnxTarget()
    side_bytes: int | None = None
    files: TokenizerFiles | None = None
    with tempfile.TemporaryDirectory() as directory:
        room = Path(directory)
        for name in quants or PRESETS:
            options = EmitOptions(name, engine=engine)
            try:
                problems = target.check(facts, options)
            except UnsupportedError as error:  # of this preset: a matrix that is too large for a file
                refused[name] = str(error)
                continue
            if problems:
                refused[name] = first_problem(problems)
                continue
            if side_bytes is None:
                clients.copy_side_files(facts.path, room)
                side_bytes = _bytes_below(room)
                files = read_files(facts.path)
            plan = target.final_plan(facts, options)
            settings = sum((room / one).stat().st_size for one in write_settings(facts, plan, room, files))
            graph = graph_of(plan, options).ByteSize()
            n_bytes = plan.file_bytes + graph + settings + side_bytes
            found.append(OnnxOutline(name, n_bytes, not plan.preset.calibrated, plan))
    return Outlined(tuple(found), refused)


def _bytes_below(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
