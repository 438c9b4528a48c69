"""Ranges of activations, from running the model on a text: what the static presets need before their graph is made.

The model runs as its 8-bit weight-only export, a quarter of the floats' size, whose activations are the floats' own to
three digits; every input of a matrix is one more output of that graph.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import EngineError, ModelError, UserError
from runtime.tokenizer_file import load_tokenizer
from targets.onnx.ranges import Histogram, rounding_noise
from targets.text import default_text, load_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from targets.base import Calibration, Progress
    from targets.onnx.graph import GraphBuilder
    from targets.onnx.linear import Layer, Scheme
    from targets.onnx.ongrid import OnGrid

    Floats = npt.NDArray[np.float32]

CHARACTERS_PER_TOKEN = 64
OUTSTANDING = 8.0
"""A layer is smoothed where a feature of its input peaks so many times higher than half of them do."""
LEAST_PEAK = 0.01
"""Of the median peak: features that were hardly seen are not blown up."""
NOISIEST = 2e-3
"""A layer whose input loses more than this share of its squared length to fixed codes keeps its input as floats."""


@dataclass(frozen=True)
class Recorder:
    """A scheme that does what another does, and notes the input of every layer: layer name -> value name.

    given: codes that were chosen before; fixed: the inputs of layers that have some, which must not be smoothed
    """

    scheme: Scheme
    seen: dict[str, str]
    given: OnGrid | None = None
    fixed: set[str] = field(default_factory=set)

    @property
    def label(self) -> str:
        """See `Scheme`."""
        return self.scheme.label

    def bits(self, layer_columns: int) -> float:
        """See `Scheme`."""
        return self.scheme.bits(layer_columns)

    def linear(self, graph: GraphBuilder, layer: Layer, x: str) -> str:
        """See `Scheme`."""
        self.seen[layer.name] = x
        if layer.has_codes(self.given):
            self.fixed.add(x)
        return self.scheme.linear(graph, layer, x)


@dataclass(frozen=True)
class Ranges:
    """What was seen of the inputs of layers, by the layers' names.

    layers: lowest and highest value, after smoothing; noisy: layers that no fixed range serves
    smoothing: what each feature is divided by, shape (features,); layers that need none are not in it
    """

    layers: dict[str, tuple[float, float]]
    noisy: frozenset[str]
    smoothing: dict[str, Floats]


def token_chunks(tokenizer: Path, calibration: Calibration) -> tuple[list[list[int]], str]:
    """Pieces of the calibration text as token ids, and the text's name. Raises UserError for a text without a token."""
    text = default_text("calibration") if calibration.text is None else load_text(calibration.text)
    encoder = load_tokenizer(tokenizer, ModelError, "calibration needs it: save the tokenizer there")
    # Every piece begins and ends as a text of its own does: an encoder's special tokens are its outliers.
    encoder.enable_truncation(calibration.tokens)
    whole = encoder.encode(text.text[: calibration.chunks * calibration.tokens * CHARACTERS_PER_TOKEN])
    pieces = [list(piece.ids) for piece in (whole, *whole.overflowing) if piece.ids]
    if not pieces or not text.text.strip():  # an encoder makes special tokens of nothing
        raise UserError(f"{text.name}: has no token to calibrate on; name another text")
    # From all over the text: its beginning is one subject.
    n = min(calibration.chunks, len(pieces))
    return [pieces[number * len(pieces) // n] for number in range(n)], text.name


def find_ranges(
    model: Path, seen: dict[str, str], chunks: list[list[int]], calibration: Calibration, progress: Progress,
    fixed: frozenset[str] = frozenset(),
) -> Ranges:  # fmt: skip
    """Run `model`, which has every value of `seen` as an output, four times over the chunks. Raises EngineError.

    fixed: values that are not smoothed, because matrices that read them are on their grid already
    """
    values = sorted(set(seen.values()))
    run = _Passes(_session(model), values, chunks, progress)
    peaks: dict[str, Floats] = {}

    def widest(value: str, array: Floats) -> None:
        found = np.abs(array).max(axis=0)
        peaks[value] = np.maximum(peaks[value], found) if value in peaks else found

    run.each(widest)
    factors = {value: None if value in fixed else smoothing_factors(peak) for value, peak in peaks.items()}
    histograms = {value: Histogram() for value in values}
    noise = dict.fromkeys(values, 0.0)

    def smooth(value: str, array: Floats) -> Floats:
        by = factors[value]
        return array if by is None else array / by

    run.each(lambda value, array: histograms[value].widen(smooth(value, array)))
    if calibration.method != "minmax":
        run.each(lambda value, array: histograms[value].count(smooth(value, array)))
    ranges = {value: histogram.range(calibration.method) for value, histogram in histograms.items()}

    def add(value: str, array: Floats) -> None:
        noise[value] += rounding_noise(smooth(value, array), *ranges[value]) / len(chunks)

    run.each(add)
    return Ranges(
        {layer: ranges[value] for layer, value in seen.items()},
        frozenset(layer for layer, value in seen.items() if noise[value] > NOISIEST),
        {layer: by for layer, value in seen.items() if (by := factors[value]) is not None},
    )


def smoothing_factors(peaks: Floats) -> Floats | None:
    """What each feature is divided by so that the largest do not take all codes: the root of its peak.

    peaks: largest magnitude of each feature, shape (features,). None where no feature stands out: a Mul for nothing.
    SmoothQuant (https://arxiv.org/abs/2211.10438) with a strength of one half and weights taken as even.
    """
    usual = float(np.median(peaks))
    if usual <= 0 or float(peaks.max()) < OUTSTANDING * usual:
        return None
    factors: Floats = np.sqrt(np.maximum(peaks, usual * np.float32(LEAST_PEAK)) / np.float32(usual))
    return factors


@dataclass
class _Passes:
    """Runs of the model over all chunks. session: of onnxruntime; values: the outputs that are asked for."""

    session: Any
    values: list[str]
    chunks: list[list[int]]
    progress: Progress
    done: int = 0

    def each(self, take: Callable[[str, Floats], None]) -> None:
        """Hand every value of every chunk, as (tokens, features), to `take`."""
        for outputs in _run(self.session, self.values, self.chunks):
            self.done += 1
            self.progress("calibrate", self.done, 4 * len(self.chunks))
            for value, array in zip(self.values, outputs, strict=True):
                take(value, array.reshape(-1, array.shape[-1]))


def _session(model: Path) -> Any:  # noqa: ANN401 - onnxruntime is untyped
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    try:
        return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EngineError(f"{model}: ONNX Runtime cannot load it for calibration: {error}") from error


def _run(session: Any, values: list[str], chunks: list[list[int]]) -> Iterator[list[npt.NDArray[np.float32]]]:  # noqa: ANN401
    inputs = {value.name: value for value in session.get_inputs()}
    for ids in chunks:
        row = np.array([ids], np.int64)
        feeds: dict[str, npt.NDArray[np.generic]] = {"input_ids": row, "attention_mask": np.ones_like(row)}
        if "token_type_ids" in inputs:
            feeds["token_type_ids"] = np.zeros_like(row)
        for name, value in inputs.items():
            if name.startswith("past_key_values."):
                feeds[name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        try:
            yield session.run(values, feeds)
        except Exception as error:
            raise EngineError(f"ONNX Runtime cannot run the model for calibration: {error}") from error


@contextlib.contextmanager
def scratch(out: Path) -> Iterator[Path]:
    """A directory below `out` that is gone afterwards."""
    import shutil

    room = out / ".calibration"
    room.mkdir()
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)
