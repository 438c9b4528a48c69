"""What llama.cpp will need for a GGUF file that is not written yet: bytes, memory, multiplications.

The sizes of tensors, cache and file are sums. What llama.cpp touches of its compute buffers, and what its vocabulary
takes, are fitted to measurements of `benchmarks/estimate_accuracy.py`; each constant says so.
Source of the rules: src/llama-context.cpp, src/llama-kv-cache*.cpp and ggml/src/ggml-cpu/repack.cpp of llama.cpp.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from runtime.gguf_kind import ENCODERS, PAIRS
from runtime.measurement import KV_BLOCK, KV_FLOATS, KV_TYPE, KV_TYPES, RunOptions
from targets.base import TypeChoice
from targets.damage import damage_in
from targets.gguf.header import align
from targets.gguf.plan import expected, find_preset, importance_of, lay_out, packed_for_another, place, read_content
from targets.gguf.presets import COPY, PRESETS
from targets.gguf.types import TYPES
from targets.outline import Footprint, Outlined, Work, first_problem

if TYPE_CHECKING:
    from targets.facts import ModelFacts
    from targets.gguf.content import Content
    from targets.gguf.header import Placed
    from targets.gguf.plan import Decided
    from targets.gguf.presets import Preset
    from targets.processor import Processor

CELLS = 256
"""A context, and the window of a sliding layer, is rounded up to so many cells."""
REPACKED = {
    "avx2": {"Q4_0": 8, "Q4_K": 8, "IQ4_NL": 8},
    "avx512": {"Q2_K": 8},
    "dotprod": {"Q4_0": 4, "Q4_K": 8, "Q5_K": 8, "Q6_K": 8, "IQ4_NL": 4, "Q8_0": 4},
}
"""Types that ggml copies into another order, by what the processor needs for it; what the rows have to divide by."""
TABLE = "token_embd.weight"
GEMMA_PATTERN = 6
"""Every sixth layer of Gemma 3 attends to all, where the file does not say it layer by layer."""
FITTED = ("llama", "deci", "qwen2", "qwen3", "gemma3")
"""Families whose graph the memory of a run was fitted for, without experts; of others it is not known."""
WITHOUT_HEADS = ("mamba", "mamba2")
"""Families without attention."""

STREAMS, SCORE_STREAMS, HEAPS = 3, 4.5, 2_800_000
PROCESS, LAYER_BYTES, TOKEN_BYTES, MERGE_BYTES = 27_500_000, 45_000, 155, 120
ENCODER_PROCESS = 25_700_000
READ_AS = {"F32": 0.0, "F16": 2.0, "BF16": 2.0}
"""Bytes that a value is made into to be multiplied by a matrix of that type; a little more than one for all others."""


@dataclass(frozen=True)
class EncoderGraph:
    """What an encoder holds of a token at once: hidden states, and values of its feed-forward for each neuron.

    masks: of all tokens by all. Fitted; attention is the flash kernel's and holds no scores
    """

    streams: float
    neurons: float
    masks: int = 1


ENCODER_GRAPHS = {
    "bert": EncoderGraph(4, 0.85),
    "jina-bert-v3": EncoderGraph(4, 0.85),
    "nomic-bert": EncoderGraph(2.3, 3.0),
    "modern-bert": EncoderGraph(3.5, 2.9, masks=2),
}
"""Of encoders, by the architecture, whose graph was measured."""


@dataclass(frozen=True)
class Dimensions:
    """What memory depends on, one entry a layer where layers may differ.

    window: cells that a sliding layer looks at; sliding: which layers slide
    experts, used: of a layer, and of those a token's; 0 without
    fitted: the fitted constants hold for it; graph: of an encoder that they hold for
    encoder: it generates nothing and keeps no cache, or is an encoder and a decoder in one: no speed is known
    """

    hidden: int
    widest: int
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    key: int
    value: int
    context: int
    vocab: int
    merges: int
    window: int = 0
    sliding: tuple[bool, ...] = ()
    experts: int = 0
    used: int = 0
    fitted: bool = True
    encoder: bool = False
    graph: EncoderGraph | None = None

    @classmethod
    def of(cls, metadata: dict[str, Any]) -> Dimensions:
        """From the key/values of a file."""
        arch = metadata["general.architecture"]

        def get(key: str, default: Any = None) -> Any:  # noqa: ANN401  as the file has it
            return metadata.get(f"{arch}.{key}", default)

        n_layers = get("block_count")

        def each(key: str, default: int | tuple[int, ...]) -> tuple[int, ...]:
            found = get(key, default)
            values = tuple(found) if isinstance(found, Sequence) else (found,) * n_layers
            if len(values) != n_layers or not all(isinstance(value, int) and value >= 0 for value in values):
                raise ValueError(f"{arch}.{key} is {found}, with {n_layers} layers")
            return values

        fitted = arch in FITTED and not get("expert_count", 0)
        heads = each("attention.head_count", 1)
        hidden = get("embedding_length", None if fitted else 0)
        wide = hidden // (1 if arch in WITHOUT_HEADS else max(*heads, 1))
        window = get("attention.sliding_window", 0) if fitted else 0  # only there it is known what it means
        pattern = get("attention.sliding_window_pattern", GEMMA_PATTERN)
        if isinstance(pattern, int):  # every so manieth layer attends to all
            pattern = [pattern > 0 and (layer + 1) % pattern != 0 for layer in range(n_layers)]
        if fitted and len(pattern) != n_layers:
            raise ValueError(
                f"{arch}.attention.sliding_window_pattern has {len(pattern)} entries for {n_layers} layers"
            )
        used = get("expert_used_count", 0)
        used = used if isinstance(used, Sequence) else (used,)
        return cls(
            hidden=hidden,
            widest=max(each("feed_forward_length", 0)),
            heads=heads,
            kv_heads=each("attention.head_count_kv", heads),
            key=get("attention.key_length", wide),
            value=get("attention.value_length", wide),
            context=get("context_length", 0),
            vocab=len(metadata.get("tokenizer.ggml.tokens", ())),
            merges=len(metadata.get("tokenizer.ggml.merges", ())),
            window=window,
            sliding=tuple(pattern) if window else (False,) * n_layers,
            experts=get("expert_count", 0),
            used=max((count for count in used if isinstance(count, int)), default=0),
            fitted=fitted,
            encoder=arch in (*ENCODERS, *PAIRS),
            graph=ENCODER_GRAPHS.get(arch),
        )


def cells(tokens: int) -> int:
    """The cells of a cache for so many tokens."""
    return -(-tokens // CELLS) * CELLS


@dataclass(frozen=True)
class GgufOutline:
    """See `targets.outline.Outline`."""

    quant: str
    file_bytes: int
    header_bytes: int
    n_params: int
    tensors: Sequence[Placed]
    dimensions: Dimensions
    format: str = "gguf"
    exact: bool = True

    @property
    def encoder(self) -> bool:
        """Whether it reads texts and generates none."""
        return self.dimensions.encoder

    @property
    def data_bytes(self) -> int:
        """Of all tensors."""
        return self.file_bytes - self.header_bytes

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each weight."""
        return 8 * sum(tensor.n_bytes for tensor in self.tensors) / self.n_params

    @property
    def context(self) -> int:
        """Most tokens that the model was trained for."""
        return self.dimensions.context

    def bytes_with(self, context: int) -> int:
        """The same for every context."""
        del context
        return self.file_bytes

    def kv_types(self) -> Sequence[str]:
        """Those whose blocks divide the heads."""
        size = self.dimensions
        whole = size.key % KV_BLOCK == 0 and size.value % KV_BLOCK == 0
        return KV_TYPES if whole else KV_FLOATS

    def footprint(self, options: RunOptions, processor: Processor) -> Footprint | None:
        """What llama.cpp takes on a CPU; None where its graph was not measured."""
        size = self.dimensions
        if not size.fitted and size.graph is None:
            return None
        copies = self._copied(processor)
        # A table that is the head as well is looked up in where it lies.
        copied = {tensor.name for tensor in copies} - {TABLE}
        # Pages that were read for a copy stay resident beside it; what lies before and behind all that is read in
        # place is unmapped. Without mmap the copy is all there is.
        read_in_place = [tensor for tensor in self.tensors if tensor.name not in copied]
        weights = sum(tensor.n_bytes for tensor in copies)
        if not options.mmap:
            weights += sum(tensor.n_bytes for tensor in read_in_place)
        elif read_in_place:
            weights += read_in_place[-1].offset + read_in_place[-1].n_bytes - read_in_place[0].offset
        if size.graph is not None:
            compute = self._of_encoder(size.graph, min(options.context, self.context or options.context))
            other = ENCODER_PROCESS + LAYER_BYTES * len(size.heads) + TOKEN_BYTES * size.vocab
            return Footprint(weights, 0, compute, other)
        return Footprint(
            weights_bytes=weights,
            kv_cache_bytes=self.kv_bytes(options),
            compute_bytes=self.compute_bytes(options),
            other_bytes=self.other_bytes(),
        )

    def _copied(self, processor: Processor) -> list[Placed]:
        """The tensors that ggml copies into another order; a table only where it is multiplied by."""
        rules = {kind: rows for feature in processor.features for kind, rows in REPACKED.get(feature, {}).items()}
        return [
            tensor
            for tensor in self.tensors
            if len(tensor.shape) == 2
            and (tensor.name != TABLE or (self._tied and not self.encoder))
            and tensor.shape[0] % rules.get(tensor.kind.name, tensor.shape[0] + 1) == 0
        ]

    def kv_bytes(self, options: RunOptions) -> int:
        """Of the cache, which llama.cpp fills with zeros when it makes it."""
        size, kind = self.dimensions, TYPES[(options.kv_type or KV_TYPE).upper()]
        all_cells = cells(options.context)
        found = 0
        for kv_heads, slides in zip(size.kv_heads, size.sliding, strict=True):
            n_cells = min(all_cells, cells(size.window + self._batch(options))) if slides else all_cells
            found += n_cells * (kind.row_bytes(kv_heads * size.key) + kind.row_bytes(kv_heads * size.value))
        return found

    def compute_bytes(self, options: RunOptions) -> int:
        """Touched of the compute buffers and heaps, with the context full; fitted, in the shape of llama.cpp's graph.

        A feed-forward holds three of its own values and three of the residual stream's for every token of a batch,
        attention without the flash kernel (a cache of f32) the scores of all heads. The mask has an f16 for every
        token and cell. The rest is what matrices are multiplied through.
        """
        size, tokens = self.dimensions, self._batch(options)
        n_cells, kv_type = cells(options.context), options.kv_type or KV_TYPE
        streams = STREAMS if kv_type in KV_FLOATS else STREAMS - 1
        held = 4 * tokens * (3 * size.widest + streams * size.hidden)
        masks = 2 * tokens * (n_cells + (min(n_cells, cells(size.window + tokens)) if size.window else 0))
        if kv_type == "f32":
            scores = 4 * tokens * n_cells * max(size.heads)
            held = max(held, int(4 * tokens * SCORE_STREAMS * size.hidden) + scores)
            masks *= 2
        return HEAPS + held + masks + int(1.14 * tokens * max(size.widest, size.hidden))

    def _of_encoder(self, graph: EncoderGraph, tokens: int) -> int:
        """Touched of the compute buffers with a text of so many tokens, which goes through in one piece; fitted.

        llama.cpp keeps room for the logits of every token, which an encoder has none of, and touches it.
        """
        size = self.dimensions
        multiplied = (tensor for tensor in self.tensors if len(tensor.shape) == 2 and tensor.name.startswith("blk."))
        made = max((READ_AS.get(tensor.kind.name, 1.14) for tensor in multiplied), default=0.0)
        held = 4 * (graph.streams * size.hidden + graph.neurons * size.widest + size.vocab) + made * size.widest
        return int(tokens * held + 2 * graph.masks * tokens**2)

    def other_bytes(self) -> int:
        """The interpreter, llama.cpp's code, the graph, the vocabulary; fitted."""
        size = self.dimensions
        vocabulary = TOKEN_BYTES * size.vocab + MERGE_BYTES * size.merges
        return PROCESS + LAYER_BYTES * len(size.kv_heads) + vocabulary

    @cached_property
    def _tied(self) -> bool:
        return all(tensor.name != "output.weight" for tensor in self.tensors)

    def _batch(self, options: RunOptions) -> int:
        return min(options.batch, options.context)

    def work(self) -> Work:
        """Every matrix once; a table that is also the head is multiplied by, one that is not is looked up in.

        Of the experts' matrices those that a token uses. An encoder has no head: its table is looked up in.
        """
        head_name = "" if self.encoder else TABLE if self._tied else "output.weight"
        weights: Counter[str] = Counter()
        head: Counter[str] = Counter()
        n_bytes, size = 0, self.dimensions
        for tensor in self.tensors:
            if len(tensor.shape) == 2 and (tensor.name == head_name or tensor.name.startswith("blk.")):
                weights[tensor.kind.name] += tensor.shape[0] * tensor.shape[1]
                n_bytes += tensor.n_bytes
            elif len(tensor.shape) == 3:
                weights[tensor.kind.name] += size.used * tensor.shape[1] * tensor.shape[2]
                n_bytes += tensor.n_bytes * size.used // tensor.shape[0]
            if tensor.name == head_name:
                head[tensor.kind.name] += tensor.shape[0] * tensor.shape[1]
        return Work(
            weights=weights,
            head=head,
            weight_bytes=n_bytes,
            n_layers=len(size.kv_heads),
            kv_elements=sum(size.kv_heads) * (size.key + size.value),
            attention=sum(size.heads) * (size.key + size.value),
        )


def outlines(
    facts: ModelFacts,
    quants: Sequence[str] | None = None,
    engine: str | None = None,
    types: TypeChoice | None = None,
) -> Outlined:
    """As those of targets/onnx/outline.py. The content is read once for all presets. types: beside the preset's

    Raises ModelError for an importance matrix that cannot be read.
    """
    del engine  # llama.cpp reads every type
    own = () if facts.source == "huggingface" else (COPY.name,)
    presets = [find_preset(name) for name in quants or (*PRESETS, *own)]
    refused = {one.name: first_problem(found) for one in presets if (found := packed_for_another(facts, one))}
    presets = [preset for preset in presets if preset.name not in refused]
    content, problems = read_content(facts) if presets else (None, [])
    if content is None or problems:
        return Outlined((), refused | {preset.name: first_problem(problems) for preset in presets})
    wanted, decided = types or TypeChoice(), []
    with damage_in(facts.path):
        importance = importance_of(content, wanted)
        for preset in presets:
            one, problems = expected(preset, content, facts.requested, wanted, importance)
            if problems:
                refused[preset.name] = first_problem(problems)
            else:
                decided.append((preset, one))
        return Outlined(_laid_out(content, decided), refused)


def _laid_out(content: Content, decided: Sequence[tuple[Preset, Decided]]) -> tuple[GgufOutline, ...]:
    if not decided:
        return ()
    # The header is as long for all: same names, shapes, keys. A copy may lack one.
    each = {preset is COPY: (preset, one) for preset, one in reversed(decided)}
    plans = {copied: lay_out(preset, content, one) for copied, (preset, one) in each.items()}
    first = next(iter(plans.values()))
    dimensions = Dimensions.of({entry.key: entry.value for entry in first.metadata})
    made = []
    for preset, one in decided:
        placed = place(content, one.types)
        data = align(placed[-1].offset + placed[-1].n_bytes)
        size, exact = len(plans[preset is COPY].header), not one.assumed
        made.append(GgufOutline(preset.name, size + data, size, first.n_params, placed, dimensions, exact=exact))
    return tuple(made)
