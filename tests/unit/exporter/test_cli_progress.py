"""Plain progress: few lines, at the right times."""

from __future__ import annotations

import io

from rich.console import Console
from rich.progress import Progress

from exporter.cli.terminal import RichReporter
from exporter.progress import LineReporter


def test_lines_are_few():
    now = [0.0]
    stream = io.StringIO()
    reporter = LineReporter(stream, clock=lambda: now[0])
    reporter.step("writing")
    for second, done in ((1, 10), (4, 40), (6, 60), (7, 70), (12, 100)):
        now[0] = second
        reporter.advance("quantizing", done, 100)
    reporter.note("done")
    assert stream.getvalue() == "writing\n  quantizing: 60 %\n  quantizing: 100 %\n  done\n"


def test_a_total_of_nothing():
    stream = io.StringIO()
    times = iter((0.0, 100.0))
    LineReporter(stream, clock=lambda: next(times)).advance("quantizing", 0, 0)
    assert stream.getvalue() == ""


def test_bars_are_not_drawn_while_another_program_may_ask():
    with Progress(console=Console(file=io.StringIO(), force_terminal=True)) as bars:
        reporter = RichReporter(bars)
        reporter.step("connecting")
        with reporter.pause():
            assert not bars.live.is_started
        assert bars.live.is_started
