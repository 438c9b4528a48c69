"""What a model would be in every format and quantization, before it is converted: bytes, memory, speed, what fits.

Reads config.json, the tokenizer and the headers of the weights; no weight, and no torch.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from exporter.checkpoint import without_weights
from exporter.quant import known_quant
from runtime.errors import UnsupportedError, UserError
from runtime.home import home
from runtime.host import default_threads, host_facts
from runtime.measurement import KV_BLOCK, KV_TYPE, KV_TYPES, PROMPT_TOKENS, TEXT_TOKENS, RunOptions
from runtime.units import format_bytes
from targets.base import TYPES_OF_GGUF, TypeChoice
from targets.gguf.tokenizer.files import read_once
from targets.ongrid import recorded_kv_type
from targets.outline import Outlined
from targets.processor import Processor
from targets.speed import KV_BYTES, HostSpeed, decode_bound, load_speed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from runtime.budget import Budget
    from targets.device import Device
    from targets.facts import ModelFacts
    from targets.outline import Footprint, Outline

PLANNED = {
    "gguf": "targets.gguf.outline:outlines", "onnx": "targets.onnx.outline:outlines",
    "torchscript": "targets.torchscript.outline:torchscript", "ptl": "targets.torchscript.outline:ptl",
    "executorch": "targets.executorch.outline:executorch",
}  # fmt: skip
"""Formats of which something is known beforehand, and where."""
USUAL = ("gguf", "onnx")
"""Those that are planned where nobody names any: memory is known of them."""
PLENTY = 8.0
"""Bits for a weight from which on more of them change next to nothing: of those the smallest file is the best."""
CONTEXT = 2048
"""Tokens where nobody names any."""
CALIBRATED, BOUND, UNKNOWN = "calibrated", "bound", "unknown"


@dataclass(frozen=True)
class PlanRequest:
    """What to plan.

    formats, quants: None for all; contexts, kv_types: None for one that is usual
    speed: of this host, where it was measured; it says nothing of another device
    types: of tensors, beside the preset's; gguf alone is planned then
    """

    model: str
    budget: Budget
    device: Device | None = None
    formats: Sequence[str] | None = None
    quants: Sequence[str] | None = None
    contexts: Sequence[int] | None = None
    kv_types: Sequence[str] | None = None
    batch: int = 512
    threads: int | None = None
    mmap: bool = True
    revision: str | None = None
    speed: HostSpeed | None = None
    types: TypeChoice = field(default_factory=TypeChoice)

    @cached_property
    def processor(self) -> Processor:
        """The device's, else this machine's."""
        return self.device.processor if self.device is not None else Processor.here()


@dataclass(frozen=True)
class PlanRow:
    """One way to have the model.

    file_bytes: all that is shipped; exact: whether that is known to the byte
    footprint: with the context full; None: not known yet
    decode_tokens_per_s: behind a prompt of PROMPT_TOKENS, or as many as the context has; None: not known
    over: the limits that it breaks, with the figures; unknown: those of which nobody can say; None without limits
    """

    format: str
    quant: str
    bits_per_weight: float
    context: int
    kv_type: str | None
    file_bytes: int
    exact: bool
    footprint: Footprint | None
    decode_tokens_per_s: float | None
    prefill_tokens_per_s: float | None
    over: tuple[str, ...] | None
    unknown: tuple[str, ...] = ()

    @property
    def peak_bytes(self) -> int | None:
        """Peak resident memory; None where it is not known."""
        return self.footprint.peak_bytes if self.footprint is not None else None

    @property
    def fits(self) -> bool | None:
        """Whether every limit holds; None where there is none, or where one cannot be judged."""
        if self.over is None:
            return None
        return False if self.over else None if self.unknown else True

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        data = dataclasses.asdict(self)
        return {**data, "peak_bytes": self.peak_bytes, "fits": self.fits}


@dataclass(frozen=True)
class PlanReport:
    """Every row, what cannot be written and why, and the best row that fits.

    speeds: "calibrated" on this host, "bound" by a device's bandwidth, or "unknown"
    """

    model: str
    device: Device | None
    rows: tuple[PlanRow, ...]
    refused: dict[str, dict[str, str]]
    best: PlanRow | None
    speeds: str
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def exit_status(self) -> int:
        """1 where no row keeps the limits for all that is known."""
        return 1 if all(row.fits is False for row in self.rows) else 0

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`. Sizes in bytes, speeds in tokens a second."""
        return {
            "packlight_plan": 1,
            "model": self.model,
            "device": self.device.to_json() if self.device else None,
            "speeds": self.speeds,
            "best": self.best.to_json() if self.best else None,
            "rows": [row.to_json() for row in self.rows],
            "refused": self.refused,
            "notes": list(self.notes),
        }


def plan(request: PlanRequest) -> PlanReport:
    """Every format and preset of the request. Raises UserError and its kin for a model that cannot be read."""
    formats = _formats(request)
    for kv_type in request.kv_types or ():
        if kv_type not in KV_TYPES:
            raise UserError(f"'{kv_type}' is not a type of KV cache; known: {', '.join(KV_TYPES)}")
    with without_weights(request.model, revision=request.revision) as facts:
        return _planned(request, facts, formats)


def _planned(request: PlanRequest, facts: ModelFacts, formats: Sequence[str]) -> PlanReport:
    rows: list[PlanRow] = []
    refused: dict[str, dict[str, str]] = {}
    with read_once():
        outlined = {name: _outlined(name, facts, request) for name in formats}
    for name, found in outlined.items():
        said = dict(found.refused)
        for outline in found.outlines:
            try:
                rows += _rows(outline, facts, request)
            except UnsupportedError as error:
                said[outline.quant] = str(error)
        if said:
            refused[name] = said
    if not rows:
        reasons = [f"{name}: {Counter(by.values()).most_common(1)[0][0]}" for name, by in refused.items()]
        raise UserError(f"{request.model}: nothing to plan; {'; '.join(reasons) or 'no format runs there'}")
    speeds = _speeds(request)
    return PlanReport(
        model=request.model,
        device=request.device,
        rows=tuple(rows),
        refused=refused,
        best=best_of(rows, min(PLENTY, _bits_of(facts))),
        speeds=speeds,
        notes=_notes(request, speeds, formats),
    )


def _bits_of(facts: ModelFacts) -> float:
    """Stored bits of a weight of the source: more of them give nothing back."""
    return 8 * sum(tensor.n_bytes for tensor in facts.tensors.values()) / max(facts.n_stored_params, 1)


def _formats(request: PlanRequest) -> list[str]:
    """The formats that are wanted, known beforehand, and run on the device."""
    from targets import TARGETS

    typed = request.types != TypeChoice()
    wanted = request.formats or (["gguf"] if typed else list(USUAL))
    for name in wanted:
        if name not in TARGETS:
            raise UserError(f"unknown format '{name}'; known: {', '.join(TARGETS)}")
        if name not in PLANNED:
            raise UserError(f"{name} is not planned yet, only {', '.join(PLANNED)}; 'packlight export' measures it")
        if typed and name != "gguf":
            raise UserError(f"--format {name}: {TYPES_OF_GGUF}; leave them out")
        if request.formats and request.device is not None and name not in request.device.formats:
            runs = ", ".join(request.device.formats)
            raise UserError(f"{request.device.id} runs no {name}; its profile names {runs}")
    return [name for name in wanted if request.device is None or name in request.device.formats]


def _outlined(name: str, facts: ModelFacts, request: PlanRequest) -> Outlined:
    """The outlines of one format; where a preset of another format is named as well, of those that it knows."""
    from targets import get_target

    presets = get_target(name).presets()
    quants = None
    if request.quants is not None:
        every = {preset: None for one in (request.formats or USUAL) for preset in get_target(one).presets()}
        quants = [quant for quant in (known_quant(named, every) for named in request.quants) if quant in presets]
        if not quants:
            return Outlined(())
    if name == "onnx" and not request.mmap:
        return Outlined((), dict.fromkeys(quants or presets, "ONNX Runtime maps its weights always, also --no-mmap"))
    engine = request.device.onnxruntime if request.device is not None and name == "onnx" else None
    named = {"types": request.types} if request.types != TypeChoice() else {}
    try:
        module, function = PLANNED[name].split(":")
        found: Outlined = getattr(importlib.import_module(module), function)(facts, quants, engine, **named)
    except UnsupportedError as error:  # this format, of this kind of model
        return Outlined((), dict.fromkeys(quants or presets, str(error)))
    return found


def _rows(outline: Outline, facts: ModelFacts, request: PlanRequest) -> list[PlanRow]:
    """One row a context and type of cache. Raises UnsupportedError for one that it cannot have."""
    longest = outline.context
    contexts = request.contexts or [min(CONTEXT, longest) if longest else CONTEXT]
    if outline.encoder:
        contexts = [longest]
    for context in contexts:
        if longest and context > longest:
            raise UnsupportedError(f"holds {longest} tokens, --context says {context}")
    kv_types = _kv_types(outline, facts, request)
    return [_row(outline, context, kv_type, request) for context in contexts for kv_type in kv_types]


def _kv_types(outline: Outline, facts: ModelFacts, request: PlanRequest) -> list[str | None]:
    """Those that are asked for, else what its recipe names; its own one where it fixes that."""
    if outline.encoder:
        return [None]
    possible = outline.kv_types()
    if len(possible) == 1:
        return [possible[0]]
    wanted = request.kv_types or [recorded_kv_type(facts.path) or KV_TYPE]
    if missing := [name for name in wanted if name not in possible]:
        raise UnsupportedError(f"its heads are no whole blocks of {KV_BLOCK}, which a KV cache of {missing[0]} needs")
    return list(wanted)


def _row(outline: Outline, context: int, kv_type: str | None, request: PlanRequest) -> PlanRow:
    options = RunOptions(request.threads, context, min(request.batch, context), request.mmap, kv_type)
    footprint = outline.footprint(options, request.processor)
    tokens = min(TEXT_TOKENS if outline.encoder else PROMPT_TOKENS, context)
    decode = prefill = None
    if request.device is None and request.speed is not None:
        # An encoder has no cache; its attention is that of floats.
        cache = kv_type or "f32"
        decode, prefill = request.speed.decode(outline, tokens, cache), request.speed.prefill(outline, tokens, cache)
    elif request.device is not None and not outline.encoder:
        decode = decode_bound(outline.work(), request.device.bandwidth_bytes_per_s, tokens, kv_type or KV_TYPE)
    row = PlanRow(
        format=outline.format,
        quant=outline.quant,
        bits_per_weight=outline.bits_per_weight,
        context=context,
        kv_type=kv_type,
        file_bytes=outline.bytes_with(context),
        exact=outline.exact,
        footprint=footprint,
        decode_tokens_per_s=decode,
        prefill_tokens_per_s=prefill,
        over=None,
    )
    return _judged(row, request)


def _judged(row: PlanRow, request: PlanRequest) -> PlanRow:
    """The row with the limits that it breaks, and those that cannot be judged."""
    budget = request.budget
    usable = request.device.usable_bytes if request.device is not None else None
    at_most = (
        ("memory", row.peak_bytes, budget.max_memory_bytes),
        ("usable memory", row.peak_bytes, usable),
        ("size", row.file_bytes, budget.max_artifact_bytes),
    )
    at_least = (
        ("decode", row.decode_tokens_per_s, budget.min_decode_tokens_per_s),
        ("prefill", row.prefill_tokens_per_s, budget.min_prefill_tokens_per_s),
    )
    asked = [one for one in (*at_most, *at_least) if one[2] is not None]
    if not asked:
        return row
    over = [
        f"{name} {format_bytes(value)} > {format_bytes(limit)}"
        for name, value, limit in at_most
        if limit is not None and value is not None and value > limit
    ]
    over += [
        f"{name} {value:.1f} < {limit:g} tokens/s"
        for name, value, limit in at_least
        if limit is not None and value is not None and value < limit
    ]
    unknown = tuple(name for name, value, _ in asked if value is None)
    return dataclasses.replace(row, over=tuple(over), unknown=unknown)


def best_of(rows: Sequence[PlanRow], plenty: float = PLENTY) -> PlanRow | None:
    """Of those that fit the first by: memory known, longest context, most bits to `plenty`, widest cache, least memory.

    None where nothing fits, or nothing is known to.
    """
    limited = any(row.over is not None for row in rows)
    fitting = [row for row in rows if row.fits or not limited]
    return max(
        fitting,
        key=lambda row: (
            row.peak_bytes is not None,
            row.context,
            min(row.bits_per_weight, plenty),
            min(KV_BYTES[row.kv_type or KV_TYPE], KV_BYTES[KV_TYPE]),
            -(row.peak_bytes or row.file_bytes),
        ),
        default=None,
    )


def _speeds(request: PlanRequest) -> str:
    if request.device is not None:
        return BOUND
    return CALIBRATED if request.speed is not None else UNKNOWN


def _notes(request: PlanRequest, speeds: str, formats: Sequence[str]) -> tuple[str, ...]:
    notes = []
    if speeds == BOUND and request.device is not None:
        rate = f"{request.device.bandwidth_bytes_per_s / 1e9:.1f} GB/s"
        notes.append(f"decode is what a bandwidth of {rate} allows at most, not a forecast; prefill is not known")
    elif speeds == CALIBRATED and request.speed is not None:
        notes.append(f"speeds by the calibration of {request.speed.created}, {request.speed.threads} threads")
    else:
        threads = f" --threads {request.threads}" if request.threads else ""
        notes.append(f"speeds are not known here: 'packlight calibrate-host{threads}' measures this machine once")
    if by_name := [name for name in PLANNED if name not in (*USUAL, *formats)]:
        notes.append(f"--format {' --format '.join(by_name)}: bytes only; ort: not planned")
    notes.append("'packlight export' measures memory and speed, and how far the model has moved")
    return tuple(notes)


def this_host(speed: HostSpeed | None, threads: int | None) -> HostSpeed | None:
    """The calibration where it is of this processor and of so many threads, else None."""
    if speed is None or speed.cpu != host_facts()["cpu"] or speed.threads != (threads or default_threads()):
        return None
    return speed


def calibration_path(threads: int | None) -> Path:
    """What `packlight calibrate-host` writes for so many threads, None for this machine's own number."""
    return home() / f"host-speed-{threads or default_threads()}-threads.json"


def known_speed(threads: int | None) -> HostSpeed | None:
    """This machine's calibration, where there is one. Raises UserError for a damaged one."""
    return this_host(load_speed(calibration_path(threads)), threads)
