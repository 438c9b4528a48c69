"""The Pareto plot: what artifacts weigh against what they lose, each labelled, and the front of those nothing beats."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.report.figures import HEIGHT, LEFT, TOP, WIDTH, Axes, Mark, Plot, Table
from exporter.report.scale import linear, logarithmic

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Box = tuple[float, float, float, float]
"""left, top, right, bottom, percent of the figure"""

LETTER_WIDTH, LINE_HEIGHT = 2.3, 7.0
"""Room of a label's letter and line, percent of a figure on a narrow phone: labels that are free there are free."""
EDGE = 2.0
"""A drift of 0 has no place on a logarithmic axis: it is drawn at its lower edge, so many times below the others."""


@dataclass(frozen=True)
class Point:
    """One artifact in a plot. name: its label; x: MB; drift: of the axis below, 0 or more; front: nothing beats it."""

    name: str
    x: float
    drift: float
    front: bool = False


def pareto(points: Iterable[Point]) -> list[Point]:
    """By x; on the front are those that no other beats in one of the two without losing in the other."""
    ordered = sorted(points, key=lambda point: (point.x, point.drift))
    best, at, found = float("inf"), None, []
    for point in ordered:
        front = point.drift < best or (point.x, point.drift) == at
        if front:
            best, at = point.drift, (point.x, point.drift)
        found.append(Point(point.name, point.x, point.drift, front))
    return found


def steps(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners of a line that stays level up to the next point's x."""
    corners = list(points[:1])
    for (_, before), (x, y) in itertools.pairwise(points):
        corners += [(x, before), (x, y)]
    return corners


def plot(id: str, what: str, points: Sequence[Point], measure: str) -> Plot:
    """The figure of at least one point, in the order of `pareto`."""
    positive = [point.drift for point in points if point.drift > 0]
    floor = min(positive) / EDGE if positive else 1e-6
    heights = [max(point.drift, floor) for point in points]
    xs = [point.x for point in points]
    room = 0.08 * (max(xs) - min(xs))  # for marks and labels at the ends
    axes = Axes(linear([max(min(xs) - room, 0.0), max(xs) + room]), logarithmic(heights))
    front = steps([(point.x, height) for point, height in zip(points, heights, strict=True) if point.front])
    groups: dict[tuple[float, float], list[Point]] = {}
    for point, height in zip(points, heights, strict=True):
        groups.setdefault(axes.place(point.x, height), []).append(point)
    marks = _labelled(groups, [axes.place(*corner) for corner in front])
    said = "; ".join(f"{p.name}: {p.x:,.1f} MB, {p.drift:.4g}{', on the front' if p.front else ''}" for p in points)
    caption = "Smaller is better on both axes."
    if len(positive) < len(points):
        caption += " What has no drift at all is drawn below the others: 0 has no place on a logarithmic axis."
    rows = tuple((p.name, f"{p.x:,.1f}", f"{p.drift:.4g}", "yes" if p.front else "no") for p in points)
    return Plot(
        id=f"compare-{id}",
        title=f"Drift against {what}",
        caption=caption,
        description=f"{caption} {said}.",
        x_label=f"{what}, MB",
        y_label=f"{measure} (logarithmic)",
        x_ticks=axes.x_ticks(),
        y_ticks=axes.y_ticks(),
        table=Table(("artifact", f"{what}, MB", measure, "on the Pareto front"), rows),
        lines=(axes.line(front, "front"),),
        marks=marks,
        key=(("front", "the Pareto front: no other is better in one without being worse in the other"),
             ("on", "on the front"), ("off", "not on it")),
    )  # fmt: skip


def _labelled(
    groups: dict[tuple[float, float], list[Point]], corners: Sequence[tuple[float, float]]
) -> tuple[Mark, ...]:
    """A mark for each place with its label; where that covers anything its letter, and all letters where that does."""
    drawn = [
        (min(x1, x2), min(y1, y2) - 0.5, max(x1, x2), max(y1, y2) + 0.5)
        for (x1, y1), (x2, y2) in itertools.pairwise(corners)
    ]
    names = [", ".join(point.name for point in points) for points in groups.values()]
    letters = [", ".join(point.name.split()[0] for point in points) for points in groups.values()]
    kinds = ["on" if any(point.front for point in points) else "off" for points in groups.values()]
    places = _placed(list(groups), names, letters, drawn) or _placed(list(groups), letters, letters, drawn)
    if not places:  # a crowd: every letter beside its mark, whatever it covers
        places = [next(_places(text, *place)) for text, place in zip(letters, groups, strict=True)]
    return tuple(_mark(at, kind, place) for at, kind, place in zip(groups, kinds, places, strict=True))


def _mark(at: tuple[float, float], kind: str, place: tuple[str, Box, str]) -> Mark:
    text, (left, _, right, bottom), anchor = place
    x = {"start": left, "end": right}.get(anchor, (left + right) / 2)
    return Mark(*at, kind, text, round(x, 2), round(bottom - 2, 2), anchor)


def _placed(
    marks: Sequence[tuple[float, float]], names: Sequence[str], letters: Sequence[str], drawn: Sequence[Box]
) -> list[tuple[str, Box, str]]:
    """A free place for the label of every mark; empty where one has none. Letters may cover a line, at worst."""
    taken = [(x - 2, y - 3, x + 2, y + 3) for x, y in marks]
    found = []
    for (x, y), name, short in zip(marks, names, letters, strict=True):
        tries: tuple[tuple[str, Sequence[Box]], ...] = ((name, drawn), (short, drawn), (short, ()))
        free = (p for text, lines in tries for p in _places(text, x, y) if _free(p[1], (*taken, *lines)))
        place = next(free, None)
        if place is None:
            return []
        taken.append(place[1])
        found.append(place)
    return found


def _places(text: str, x: float, y: float) -> Iterator[tuple[str, Box, str]]:
    """Where a label may stand: beside the mark, above it, below it, and to the sides of those."""
    width, height = LETTER_WIDTH * len(text), LINE_HEIGHT
    for top in (y - height / 2, y - 3 - height, y + 3):
        beside = 2.5 if top < y < top + height else -2.0
        yield text, (x + beside, top, x + beside + width, top + height), "start"
        yield text, (x - beside - width, top, x - beside, top + height), "end"
        if beside < 0:
            yield text, (x - width / 2, top, x + width / 2, top + height), "middle"


def _free(box: Box, taken: Iterable[Box]) -> bool:
    inside = box[0] >= LEFT and box[2] <= LEFT + WIDTH + 5 and box[1] >= 0 and box[3] <= TOP + HEIGHT
    return inside and not any(
        box[0] < right and left < box[2] and box[1] < bottom and top < box[3] for left, top, right, bottom in taken
    )
