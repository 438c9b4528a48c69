"""Axes and figures: hand-computed places, and numbers that are none."""

from __future__ import annotations

import math

import pytest

from exporter.report.figures import HEIGHT, LEFT, POINTS, TOP, WIDTH, Chart, Table, bar, highest, strip
from exporter.report.scale import Scale, exact, linear, logarithmic, number, shown


@pytest.mark.parametrize(
    ("values", "zero", "ticks"),
    [
        ([0.0, 10.0], False, (0, 2.5, 5, 7.5, 10)),
        ([3.0, 9.0], True, (0, 2.5, 5, 7.5, 10)),
        ([213.0, 298.0], False, (200, 225, 250, 275, 300)),
        ([0.0], True, (0, 0.25, 0.5, 0.75, 1)),
        ([0.04, 0.066], True, (0, 0.02, 0.04, 0.06, 0.08)),
    ],
)
def test_linear_ticks_are_round_and_around_the_values(values, zero, ticks):
    assert linear(values, zero=zero).ticks == pytest.approx(ticks)


@pytest.mark.parametrize("value", [5.0, -5.0, 0.0, 1e-12, 1e12])
def test_one_value_has_an_axis_too(value):
    for scale in (linear([value]), linear([value, value], zero=True), exact([value])):
        assert scale.low <= value <= scale.high
        assert scale.low < scale.high
        assert len(scale.ticks) >= 2


def test_logarithmic_places_equal_ratios_equally_far_apart():
    scale = Scale(0.01, 1.0, (), log=True)
    assert [scale.at(value) for value in (0.01, 0.1, 1.0)] == pytest.approx([0, 50, 100])
    assert (scale.at(0.0), scale.at(-1.0), scale.at(7.0)) == (0.0, 0.0, 100.0)
    assert logarithmic([0.0038, 0.05]).ticks == pytest.approx((0.002, 0.005, 0.01, 0.02, 0.05, 0.1))
    one = logarithmic([0.05])
    assert one.low < 0.05 < one.high


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "7", True, [1], 10**400])
def test_what_is_no_finite_number(value):
    assert number(value) is None
    assert bar("a", "b", value) is None
    assert bar("a", "b", 1.0, value) is None or value is None


def test_numbers_on_an_axis():
    assert [shown(value) for value in (0.0, -0.0, 0.05, 2.5, 10_000.0, 1e-6, 3e8)] == [
        "0", "0", "0.05", "2.5", "10,000", "1e-06", "3e+08"
    ]  # fmt: skip


def test_a_bar_and_its_limit():
    drawn = bar("peak", "words", 220.0, 300.0, "holds")
    assert (drawn.width, drawn.limit) == (pytest.approx(66.67, abs=0.01), pytest.approx(90.91, abs=0.01))
    over = bar("peak", "words", 600.0, 300.0, "fails")
    assert (over.width, over.limit) == (pytest.approx(90.91, abs=0.01), pytest.approx(45.45, abs=0.01))
    assert bar("texts that differ", "words", 0.0, 0.0) is None
    assert bar("less than nothing", "words", -1.0, 2.0) is None
    assert (bar("part", "words", 50.0, full=200.0).width, bar("none of it", "words", 0.0).width) == (25.0, 0.0)


def test_a_long_line_keeps_its_peaks_and_its_ends():
    points = [(float(x), 1.0) for x in range(5000)]
    points[3333] = (3333.0, 9.0)
    kept = highest(points)
    assert len(kept) == POINTS
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert (3333.0, 9.0) in kept
    assert highest(points[:7]) == points[:7]


def test_a_chart_of_one_point_has_a_mark_in_place_of_a_line():
    plot = Chart("id", "t", "d", "x", "y", (("first", "name", ((2.0, 3.0),)),), Table((), ())).plot()
    assert plot.lines == ()
    (mark,) = plot.marks
    assert LEFT <= mark.x <= LEFT + WIDTH
    assert TOP <= mark.y <= TOP + HEIGHT


def test_a_chart_places_points_and_phases():
    line = (("first", "name", ((0.0, 0.0), (5.0, 10.0), (10.0, 5.0))),)
    phases = (("load", 0.0, 0.1), ("run", 0.1, 10.0))
    plot = Chart("id", "t", "d", "x", "y", line, Table((), ()), phases).plot()
    assert plot.lines[0].points == ((0.0, 100.0), (50.0, 0.0), (100.0, 50.0))
    assert [(band.number, round(band.width, 1)) for band in plot.bands] == [("", 0.8), ("2", 78.2)]
    assert plot.band_names == ("load", "run")
    assert plot.key == ()


def test_a_strip_shows_every_value_median_and_p95():
    drawn = strip("id", "first token", "ms", [400.0, 100.0, 200.0, 300.0, 500.0], 480.0)
    assert drawn.description == (
        "5 trials: median 300 ms, 95th percentile of the bad side 480 ms, lowest 100 ms, highest 500 ms."
    )
    assert drawn.dots == (71.5, 7.0, 28.5, 50.0, 93.0)
    assert (drawn.median, drawn.box) == (50.0, (28.5, 71.5))
    assert drawn.table.rows[1] == ("trial 2", "100")


@pytest.mark.parametrize("values", [[7.0], [7.0, 7.0, 7.0], [0.0, 0.0]])
def test_a_strip_of_equal_values(values):
    drawn = strip("id", "t", "ms", values, values[0])
    assert len(set(drawn.dots) | {drawn.median, drawn.p95, *drawn.box}) == 1
    assert 0 < drawn.median < 100
