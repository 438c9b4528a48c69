"""What the page's figures are made of: places in percent, so that a figure takes any width and its text keeps its size.

A builder takes finite numbers only. Every figure carries the same numbers as rows of text, for whoever does not see it.
"""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.report.scale import Scale, exact, linear, number, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

LEFT, WIDTH = 15.0, 79.0
TOP, HEIGHT = 6.0, 78.0
"""The plot's place in its figure, percent; beside and below it stand the ticks' labels."""
POINTS = 120
"""A line of more points is drawn by the highest of neighbours: a phone has no more columns to show them in."""
NARROW = 4.0
"""Percent of the width under which a band's number has no room."""


@dataclass(frozen=True)
class Table:
    """The numbers of a figure as text."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Bar:
    """One bar: how far it goes and where its limit is, percent of the width; None for no limit.

    said: all of it in words; state: "holds", "fails" or ""
    """

    name: str
    said: str
    width: float
    limit: float | None = None
    state: str = ""


@dataclass(frozen=True)
class Line:
    """A line through points, percent of the plot and not of the figure; kind: the class that says how it is drawn."""

    kind: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Mark:
    """A point, with a label beside it where there is room; anchor: start, middle or end of the label's text."""

    x: float
    y: float
    kind: str
    label: str = ""
    label_x: float = 0.0
    label_y: float = 0.0
    anchor: str = "start"


@dataclass(frozen=True)
class Band:
    """A part of the x axis that has a name."""

    x: float
    width: float
    number: str


@dataclass(frozen=True)
class Plot:
    """Two axes and what lies between them.

    id: of the figure in the page; title, description: in words; caption: shown in place of a long description
    x_ticks, y_ticks: (percent, label)
    key: how each kind of line or mark is drawn, (class, words)
    """

    id: str
    title: str
    description: str
    x_label: str
    y_label: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    table: Table
    lines: tuple[Line, ...] = ()
    marks: tuple[Mark, ...] = ()
    bands: tuple[Band, ...] = ()
    band_names: tuple[str, ...] = ()
    key: tuple[tuple[str, str], ...] = ()
    caption: str = ""


@dataclass(frozen=True)
class Strip:
    """All values of one quantity on one axis: dots, the box of the middle half, median and 95th percentile."""

    id: str
    title: str
    description: str
    ticks: tuple[tuple[float, str], ...]
    dots: tuple[float, ...]
    box: tuple[float, float]
    median: float
    p95: float
    table: Table


@dataclass(frozen=True)
class Axes:
    """Two scales, and percent of the figure from values."""

    x: Scale
    y: Scale

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies in the figure."""
        return round(LEFT + WIDTH * self.x.at(x) / 100, 2), round(TOP + HEIGHT * (1 - self.y.at(y) / 100), 2)

    def x_ticks(self) -> tuple[tuple[float, str], ...]:
        """Places and labels along x."""
        return tuple((self.place(tick, self.y.low)[0], shown(tick)) for tick in self.x.ticks)

    def y_ticks(self) -> tuple[tuple[float, str], ...]:
        """Places and labels along y."""
        return tuple((self.place(self.x.low, tick)[1], shown(tick)) for tick in self.y.ticks)

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> Line:
        """Straight pieces through points in order."""
        return Line(kind, tuple((round(self.x.at(x), 2), round(100 - self.y.at(y), 2)) for x, y in points))


@dataclass(frozen=True)
class Chart:
    """A chart of one or more lines over one x axis; y begins at 0.

    series: (class, name, points); phases: (words, from, to) along x; start: where x begins, None for the first point
    """

    id: str
    title: str
    description: str
    x_label: str
    y_label: str
    series: tuple[tuple[str, str, tuple[tuple[float, float], ...]], ...]
    table: Table
    phases: tuple[tuple[str, float, float], ...] = ()
    start: float | None = None

    def plot(self) -> Plot:
        """The figure."""
        points = [point for _, _, line in self.series for point in line]
        ends = [x for _, start, end in self.phases for x in (start, end)]
        x_values = [x for x, _ in points] + ends + ([] if self.start is None else [self.start])
        axes = Axes(exact(x_values), linear([y for _, y in points], zero=True))
        lines = tuple(axes.line(highest(line), kind) for kind, _, line in self.series if len(line) > 1)
        lone = tuple(Mark(*axes.place(*line[0]), kind) for kind, _, line in self.series if len(line) == 1)
        bands = []
        for index, (_, start, end) in enumerate(self.phases):
            left, right = axes.place(start, 0)[0], axes.place(end, 0)[0]
            bands.append(Band(left, round(right - left, 2), str(index + 1) if right - left >= NARROW else ""))
        return Plot(
            self.id, self.title, self.description, self.x_label, self.y_label, axes.x_ticks(), axes.y_ticks(),
            self.table, lines, lone, tuple(bands), tuple(name for name, _, _ in self.phases),
            tuple((kind, name) for kind, name, _ in self.series) if len(self.series) > 1 else (),
        )  # fmt: skip


def highest(points: Sequence[tuple[float, float]], most: int = POINTS) -> list[tuple[float, float]]:
    """At most so many points: of each run of neighbours the highest; the first and the last stay."""
    if len(points) <= most:
        return list(points)
    inner, parts = points[1:-1], most - 2
    cuts = [len(inner) * part // parts for part in range(parts + 1)]
    peaks = [max(inner[start:end], key=lambda point: point[1]) for start, end in itertools.pairwise(cuts)]
    return [points[0], *peaks, points[-1]]


def bar(name: str, said: str, value: object, limit: object = None, state: str = "", full: object = None) -> Bar | None:
    """A bar; None where there is nothing to draw: no finite value, or a limit of zero.

    full: what the whole width stands for; None for somewhat more than the larger of value and limit
    """
    length, end = number(value), number(limit)
    if length is None or length < 0 or (limit is not None and (end is None or end <= 0)):
        return None
    whole = number(full) or max(length, end or 0.0) * 1.1
    if whole <= 0:
        return Bar(name, said, 0.0, None, state)
    share = None if end is None else round(100 * end / whole, 2)
    return Bar(name, said, round(min(100 * length / whole, 100.0), 2), share, state)


def strip(id: str, title: str, unit: str, values: Sequence[float], p95: float, *, form: str = ",.0f") -> Strip:
    """The distribution of at least one value. p95: of the bad side."""
    axis = linear(values)
    median = statistics.median(values)
    quarters = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [median] * 3

    def at(value: float) -> float:
        return round(7 + 86 * axis.at(value) / 100, 2)

    words = {
        "median": median,
        "95th percentile of the bad side": p95,
        "lowest": min(values),
        "highest": max(values),
    }
    said = ", ".join(f"{name} {value:{form}} {unit}" for name, value in words.items())
    trials = "1 trial" if len(values) == 1 else f"{len(values)} trials"
    rows = tuple((f"trial {index}", f"{value:{form}}") for index, value in enumerate(values, 1))
    summary = tuple((name, f"{value:{form}}") for name, value in words.items())
    return Strip(
        id, f"{title}, {unit}", f"{trials}: {said}.", tuple((at(tick), shown(tick)) for tick in axis.ticks),
        tuple(at(value) for value in values), (at(quarters[0]), at(quarters[2])), at(median), at(p95),
        Table(("", f"{title}, {unit}"), rows + summary),
    )  # fmt: skip
