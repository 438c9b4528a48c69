"""All of an ONNX export that is decided before a weight is read: the graph, the places of the weights, the names."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runtime.errors import UnsupportedError
from runtime.sessions.base import ENCODER_TASKS
from targets.base import Problem
from targets.damage import damage_in
from targets.factors import paired_notes, stored_factors
from targets.factors import problems as factor_problems
from targets.gguf.architectures.base import dimensions, full_config, plan_tensors
from targets.ongrid import ONNX_GRIDS, foreign_grids, other_preset
from targets.onnx.blocks import BlockGrid
from targets.onnx.calibration import Ranges, Recorder
from targets.onnx.decoder import DecoderWeights, decoder_graph
from targets.onnx.decoder_spec import DecoderSpec, architecture_with_graph, decoder_spec, kernel_refusals, refusals
from targets.onnx.encoder import encoder_graph
from targets.onnx.encoder_spec import EncoderSpec, account, encoder_spec
from targets.onnx.linear import BlockScheme, DynamicScheme, StaticScheme
from targets.onnx.ongrid import OnGrid
from targets.onnx.presets import INT8, INT8_ROWS, PRESETS, SMALLEST_BLOCK, TABLES, Preset, table_scheme
from targets.onnx.weights import lay_out
from targets.planned import preset_named
from targets.task import TEXT_GENERATION, infer_task

if TYPE_CHECKING:
    from targets.base import EmitOptions
    from targets.facts import ModelFacts, TensorFact
    from targets.onnx.graph import GraphBuilder
    from targets.onnx.linear import Scheme

LARGEST_DATA_FILE = (1 << 31) - 1
"""Bytes. A browser cannot load a larger file, and a 32-bit process cannot map one."""
KNOWN_TASKS = (TEXT_GENERATION, *ENCODER_TASKS)
ROLES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down")
"""Matrices in a layer of an encoder."""
FOLDER = "onnx"
"""Where transformers.js looks for graphs."""


@dataclass(frozen=True)
class Plan:
    """An export that is ready to be written.

    data_bytes: sizes of the data files, exact; counts: matrices by the label of their scheme
    elements: by the same labels, of the matrices that every token is multiplied by; head: of those the output's
    context: tokens that the file can hold; notes: what a reader has to know
    recorded: of a plan that only runs the model for calibration: the input of each layer, by the layer's name
    fixed: inputs among them that must not be smoothed
    """

    task: str
    preset: Preset
    config: dict[str, Any]
    graph: GraphBuilder
    data_bytes: list[int]
    n_params: int
    context: int
    counts: dict[str, int]
    elements: dict[str, int]
    head: dict[str, int] = field(default_factory=dict)
    decoder: DecoderSpec | None = None
    encoder: EncoderSpec | None = None
    recorded: dict[str, str] = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def file(self) -> str:
        """The graph, relative to the exported directory."""
        return f"{FOLDER}/{self.preset.file}"

    @property
    def data_files(self) -> list[str]:
        """The files of external weights, relative to the exported directory, as transformers.js numbers them."""
        return [f"{self.file}_data{f'_{number}' if number else ''}" for number in range(len(self.data_bytes))]

    @property
    def file_bytes(self) -> int:
        """Of the files of weights; the graph itself is some tens of kilobytes more."""
        return sum(self.data_bytes)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the weights' blobs for each weight; rotary tables are not weights."""
        weights = sum(blob.n_bytes for job in self.graph.jobs if any(job.files()) for blob in job.blobs)
        return 8 * weights / self.n_params


@dataclass(frozen=True)
class Sources:
    """names: of the stored tensors by (role, layer); given: the codes that some of them have already."""

    names: dict[tuple[str, int], str]
    given: OnGrid | None


class Choice:
    """Which scheme a matrix gets: the preset's, with the ranges of a static one filled in, or noted while unknown."""

    def __init__(self, preset: Preset, ranges: Ranges | None, hidden: int, sources: Sources) -> None:
        self.preset, self.ranges, self.hidden, self.sources = preset, ranges, hidden, sources
        self.seen: dict[str, str] = {}
        self.fixed: set[str] = set()
        self._layers: Scheme | None = None
        given = sources.given
        self._weights_only = self._knowing(INT8_ROWS if given is not None and given.has_rows else INT8)
        if preset.calibrated and ranges is None:
            self._layers = Recorder(self._weights_only, self.seen, given, self.fixed)
        elif ranges is not None and preset.calibrated == "smoothing":
            self._layers = DynamicScheme(ranges.smoothing, given)
        elif ranges is not None:
            self._layers = StaticScheme(ranges.layers, ranges.noisy, self._weights_only, ranges.smoothing, given)

    def __call__(self, role: str, layer: int, n_layers: int) -> Scheme:
        """The scheme for a role in a layer. A matrix that is on a grid already stays there."""
        name = self.sources.names.get((role, layer))
        if self.sources.given is not None and name is not None and name in self.sources.given:
            grid = self.sources.given.grid(name)
            if isinstance(grid, BlockGrid):
                return BlockScheme(grid, self.sources.given)
            if role in TABLES or not self.preset.calibrated:
                return self._whole(self._weights_only, role)
            if self.preset.calibrated == "smoothing":
                return DynamicScheme(given=self.sources.given)  # which needs to know nothing of its inputs
        role = role.removesuffix(".left").removesuffix(".right")  # a factor is stored as its matrix would be
        if role not in TABLES:
            return self._knowing(self._layers or self.preset.scheme(role, layer, n_layers))
        return self._knowing(self._whole(self.preset.scheme(role, layer, n_layers), role))

    def _whole(self, scheme: Scheme, role: str) -> Scheme:
        """The scheme, of a table in blocks that divide its rows."""
        found = table_scheme(scheme, self.hidden) if role in TABLES else scheme
        if found is None:
            raise UnsupportedError(str(self.problems()[0]))
        return found

    def _knowing(self, scheme: Scheme) -> Scheme:
        """The scheme with the given codes: one product may have matrices with codes and others without."""
        given = self.sources.given
        return dataclasses.replace(scheme, given=given) if given and isinstance(scheme, BlockScheme) else scheme

    def problems(self) -> list[Problem]:
        """What this preset cannot do for a model of this width."""
        if self.sources.given is not None and self.preset.name == "fp16":
            what = "holds codes, whose products take 32-bit floats"
            return [Problem(ONNX_GRIDS, what, "use another --quant, such as int4; or delete that file")]
        if table_scheme(self.preset.scheme("token_embd", 0, 1), self.hidden) is not None:
            return []
        what = f"rows of {self.hidden} do not divide into blocks of {SMALLEST_BLOCK} or more"
        return [Problem("config.json: hidden_size", what, "use --quant fp16 or fp32")]

    def notes(self) -> tuple[str, ...]:
        """What a reader has to know of it."""
        if self.ranges is None or self.preset.calibrated != "ranges" or not self.ranges.noisy:
            return ()
        return (
            f"{len(self.ranges.noisy)} of {len(self.ranges.layers)} products keep float inputs and 8-bit weights:"
            " no fixed range holds their activations",
        )


def make_plan(
    facts: ModelFacts, options: EmitOptions, ranges: Ranges | None = None
) -> tuple[Plan | None, list[Problem]]:
    """The plan, or every problem that keeps the model from being written. Raises ModelError and UnsupportedError.

    ranges: of activations; a preset that needs them gets a plan for finding them while they are not there
    """
    preset = preset_named(options.quant, PRESETS, "onnx")
    if facts.source == "gguf":
        fix = "name the Hugging Face directory that it was converted from"
        return None, [Problem(facts.requested, "a .gguf file cannot be exported as ONNX", fix)]
    task = infer_task(facts)
    if foreign := foreign_grids(facts.path, ONNX_GRIDS):
        return None, foreign
    if other := other_preset(facts.path, "onnx", preset.name, "on the grids"):
        return None, other
    if task == TEXT_GENERATION:
        return plan_decoder(facts, preset, ranges)
    if task in ENCODER_TASKS:
        return _plan_encoder(facts, task, preset, ranges)
    raise UnsupportedError(f"{facts.requested}: {task} cannot be written as ONNX yet; known: {', '.join(KNOWN_TASKS)}")


def plan_decoder(facts: ModelFacts, preset: Preset, ranges: Ranges | None) -> tuple[Plan | None, list[Problem]]:
    """`make_plan` for a decoder and whatever preset."""
    architecture = architecture_with_graph(facts.architecture)
    config = full_config(architecture, facts)
    with damage_in(facts.path / "config.json"):
        tensors, problems = plan_tensors(architecture, config, facts)
        given = OnGrid.of(facts.path)
        names = {role_of(tensor.name): tensor.source.name for tensor in tensors if tensor.source is not None}
        factors = stored_factors(facts.path)
        names |= {
            (f"{role}.{side}", layer): f"{name.removesuffix('.weight')}.{side}.weight"
            for (role, layer), name in names.items()
            if name in factors
            for side in ("left", "right")
        }
        choice = Choice(preset, ranges, dimensions(config)["hidden"], Sources(names, given))
        problems += refusals(config) + kernel_refusals(config) + choice.problems()
        stored_facts = {**facts.tensors, **{part.name: part for pair in factors.values() for part in pair.both}}
        problems += given.problems(stored_facts) if given else []
        problems += factor_problems(facts, factors)
        if problems:
            return None, problems
        spec = decoder_spec(architecture, config)
        stored = {tensor.name: tensor for tensor in tensors if tensor.source is not None}
        counts: Counter[str] = Counter()
        elements: Counter[str] = Counter()
        head_name = "token_embd.weight" if spec.tied else "output.weight"
        head: dict[str, int] = {}
        for name, tensor in stored.items():
            label = _scheme_of_tensor(choice, name, spec.n_layers)
            counts[label] += 1
            pair = factors.get(tensor.source.name) if tensor.source is not None else None
            if pair is not None:
                role, layer = role_of(name)
                for side, part in (("left", pair.left), ("right", pair.right)):
                    elements[choice(f"{role}.{side}", layer, spec.n_layers).label] += part.n_elements
            elif len(tensor.shape) == 2 and (name == head_name or name.startswith("blk.")):
                elements[label] += tensor.shape[0] * tensor.shape[1]
            if name == head_name:
                head = {label: tensor.shape[0] * tensor.shape[1]}
        graph = decoder_graph(
            spec, config, DecoderWeights(stored, factors), lambda role, layer: choice(role, layer, spec.n_layers)
        )
    return Plan(
        task=TEXT_GENERATION,
        preset=choice.preset,
        recorded=choice.seen,
        fixed=frozenset(choice.fixed),
        config=facts.config,
        graph=graph,
        data_bytes=_places(facts, graph),
        n_params=sum(
            factors.get(fact.name, fact).n_elements for tensor in stored.values() if (fact := tensor.source) is not None
        ),
        context=spec.context,
        counts=dict(counts),
        elements=dict(elements),
        head=head,
        decoder=spec,
        notes=(*spec.context_notes, *choice.notes(), *paired_notes(factors)),
    ), []


def _plan_encoder(
    facts: ModelFacts, task: str, preset: Preset, ranges: Ranges | None
) -> tuple[Plan | None, list[Problem]]:
    with damage_in(facts.path / "config.json"):
        tensors, problems = account(facts, task)
        if problems:
            return None, problems
        spec = encoder_spec(facts, task, tensors)
        given = OnGrid.of(facts.path)
        choice = Choice(preset, ranges, spec.hidden, Sources(encoder_names(spec, tensors), given))
        if problems := choice.problems() + (given.problems(facts.tensors) if given else []):
            return None, problems
        graph = encoder_graph(spec, tensors, lambda role, layer: choice(role, layer, spec.n_layers))
    labels = [choice(role, layer, spec.n_layers).label for role in ROLES for layer in range(spec.n_layers)]
    sizes = {"ffn_up": spec.hidden * spec.ffn, "ffn_down": spec.hidden * spec.ffn}
    elements: Counter[str] = Counter()
    for label, role in zip(labels, (role for role in ROLES for _ in range(spec.n_layers)), strict=True):
        elements[label] += sizes.get(role, spec.hidden**2)
    return Plan(
        task=task,
        preset=choice.preset,
        recorded=choice.seen,
        fixed=frozenset(choice.fixed),
        config=facts.config,
        graph=graph,
        data_bytes=_places(facts, graph),
        n_params=sum(fact.n_elements for fact in tensors.values()),
        context=spec.max_tokens,
        counts=dict(Counter(labels)),
        elements=dict(elements),
        encoder=spec,
        notes=choice.notes(),
    ), []


def encoder_names(spec: EncoderSpec, tensors: dict[str, TensorFact]) -> dict[tuple[str, int], str]:
    """Names of the stored matrices of an encoder by role and layer."""
    family = spec.family
    names = {
        (role, layer): tensors[f"{family.layers.format(i=layer)}{family.modules[role]}.weight"].name
        for role in ROLES
        for layer in range(spec.n_layers)
    }
    return names | {("token_embd", 0): tensors[f"{family.embeddings['word']}.weight"].name}


def _places(facts: ModelFacts, graph: GraphBuilder) -> list[int]:
    """Sizes of the data files. Raises UnsupportedError for a matrix that is larger than a file may be."""
    try:
        return lay_out(graph.jobs, LARGEST_DATA_FILE)
    except ValueError as error:
        raise UnsupportedError(f"{facts.requested}: {error}; use a smaller --quant, such as int8 or int4") from error


def _scheme_of_tensor(choice: Choice, name: str, n_layers: int) -> str:
    """The label of the scheme that a tensor of the architecture table gets."""
    role, layer = role_of(name)
    if name.endswith("bias") or role.endswith("norm"):
        return "float32"
    return choice(role, layer, n_layers).label


def role_of(name: str) -> tuple[str, int]:
    """(role, layer) of a tensor of the architecture table: "blk.3.attn_q.weight" is ("attn_q", 3)."""
    parts = name.split(".")
    return (parts[2], int(parts[1])) if parts[0] == "blk" else (parts[0], 0)
