from __future__ import annotations

import pytest
from support.doubles import FakeDecoder, FakeEncoderSession

from runtime.sustained import sustain, window_ends
from runtime.worker import SUSTAINED_PROMPT, decoding, reading


class Clock:
    """A clock that goes on when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def after(self, seconds: float, tokens: int = 1):
        def step():
            self.now += seconds
            return tokens, seconds

        return step


def test_windows():
    assert window_ends(300.0)[:2] == [5.0, 10.0]
    assert (len(window_ends(300.0)), len(window_ends(90.0)), len(window_ends(7.5))) == (60, 60, 7)
    assert window_ends(1.0) == [1.0]
    assert window_ends(1000.0)[-1] == 1000.0


def test_speed_by_windows(tmp_path):
    clock, begun = Clock(), []
    found = sustain(4.0, lambda: begun.append(clock.now), clock.after(0.25, 3), sys=tmp_path, clock=clock)
    assert [window.seconds for window in found.windows] == [1.0, 2.0, 3.0, 4.0]
    assert {window.tokens_per_s for window in found.windows} == {12.0}
    assert (found.seconds, found.tokens, begun) == (4.0, 48, [0.0, 1.0, 2.0, 3.0])
    assert (found.energy_j, found.energy_source) == (None, None)
    assert {(window.temperature_c, window.frequency_hz) for window in found.windows} == {(None, None)}


def test_steps_that_are_longer_than_a_window(tmp_path):
    clock = Clock()
    found = sustain(6.0, lambda: None, clock.after(2.5), sys=tmp_path, clock=clock)
    assert [window.seconds for window in found.windows] == [2.5, 5.0, 7.5]
    assert found.tokens == 3


def test_what_begins_a_window_counts_for_no_speed(tmp_path):
    clock = Clock()

    def begin():
        clock.now += 0.5

    found = sustain(2.0, begin, clock.after(0.25), sys=tmp_path, clock=clock)
    assert {window.tokens_per_s for window in found.windows} == {4.0}
    assert found.tokens == 4


def test_what_the_machine_tells_is_read_at_the_end_of_every_window(tmp_path):
    clock = Clock()
    zone = tmp_path / "class/thermal/thermal_zone0"
    core = tmp_path / "devices/system/cpu/cpu0/cpufreq"
    package = tmp_path / "class/powercap/intel-rapl:0"
    for directory in (zone, core, package):
        directory.mkdir(parents=True)
    (zone / "type").write_text("cpu-thermal\n")
    (package / "name").write_text("package-0\n")
    (package / "energy_uj").write_text("0\n")
    run = clock.after(0.5)

    def step():
        done = run()
        (zone / "temp").write_text(f"{40_000 + round(clock.now * 1000)}\n")
        (core / "scaling_cur_freq").write_text(f"{2_000_000 - round(clock.now * 1000)}\n")
        (package / "energy_uj").write_text(f"{round(clock.now * 4_000_000)}\n")
        return done

    found = sustain(2.0, lambda: None, step, sys=tmp_path, clock=clock)
    assert [window.temperature_c for window in found.windows] == [41.0, 42.0]
    assert [window.frequency_hz for window in found.windows] == [1_999_000_000, 1_998_000_000]
    assert (found.energy_j, found.energy_source) == (8.0, "RAPL, processor packages")
    assert found.tokens_per_j == 0.5


def test_a_full_context_begins_anew():
    session = FakeDecoder(64)
    begin, step = decoding(session, 64)
    begin()
    for _ in range(100):
        assert step()[0] == 1
    fresh = ["reset", f"prefill {SUSTAINED_PROMPT}"]
    assert session.done == [*fresh, *["decode"] * 48, *fresh, *["decode"] * 48, *fresh, *["decode"] * 4]
    assert session.longest == 64
    begin()
    assert session.n_past == SUSTAINED_PROMPT


def test_a_context_that_is_smaller_than_the_usual_prompt():
    session = FakeDecoder(16)
    begin, step = decoding(session, 16)
    begin()
    for _ in range(20):
        step()
    assert session.longest == 16


def test_an_encoder_reads_one_text_again_and_again():
    session = FakeEncoderSession()
    begin, step = reading(session, [1, 2, 3])
    begin()
    tokens, seconds = step()
    assert tokens == 3
    assert seconds == pytest.approx(0, abs=10)
    step()
    assert session.timed == [3, 3]
