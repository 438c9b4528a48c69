from __future__ import annotations

import os
import subprocess
import sys

import pytest

from runtime import timeline as timeline_module
from runtime.series import MemorySample
from runtime.timeline import MOST_SAMPLES, Timeline, parse_statm, thinned

linux = pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc elsewhere")


def samples(*sizes, phase="loading"):
    return [MemorySample(float(number), size, size, phase) for number, size in enumerate(sizes)]


def process(proc, pages=100, shared=40, pss=None):
    directory = proc / "7"
    directory.mkdir(exist_ok=True)
    (directory / "statm").write_text(f"999 {pages} {shared} 5 0 123 0\n")
    if pss is not None:
        (directory / "smaps_rollup").write_text(f"0-ff ---p 0 [rollup]\nRss: 9 kB\nPss: {pss} kB\n")
    return directory


def test_resident_and_anonymous_bytes():
    assert parse_statm("999 100 40 5 0 123 0\n", page=4096) == (409_600, 245_760)
    assert parse_statm("0 0 0 0 0 0 0\n") is None  # of a process that has ended and is not waited for
    assert parse_statm("") is None


def test_thinning_halves_and_keeps_peaks_and_order():
    found = thinned(samples(1, 5, 9, 2, 3, 4, 7))
    assert [sample.rss_bytes for sample in found] == [5, 9, 4, 7]
    assert [sample.seconds for sample in found] == [1.0, 2.0, 5.0, 6.0]


def test_thinning_keeps_short_phases_while_there_is_room():
    short = [*samples(1), *samples(9, phase="warm-up"), *samples(2, 3, phase="trial")]
    assert [sample.phase for sample in thinned(short)] == ["loading", "warm-up", "trial"]
    many = [MemorySample(float(n), n, None, f"trial {n}") for n in range(MOST_SAMPLES + 1)]
    found = thinned(many)
    assert len(found) == MOST_SAMPLES // 2 + 1
    assert max(sample.rss_bytes for sample in found) == MOST_SAMPLES


def test_never_more_than_the_most_and_the_peak_among_them(tmp_path, monkeypatch):
    directory = process(tmp_path)
    line = Timeline(7, tmp_path)
    monkeypatch.setattr(Timeline, "_run", lambda _self: None)
    line.start()
    for number in range(3 * MOST_SAMPLES):
        (directory / "statm").write_text(f"999 {5000 if number == 777 else 100} 40 5 0 123 0\n")
        line.sample(timed=True)
    line.stop()
    assert MOST_SAMPLES // 2 < len(line.samples) <= MOST_SAMPLES
    assert line._interval > timeline_module.FIRST_INTERVAL_S
    assert max(sample.rss_bytes for sample in line.samples) == 5000 * timeline_module.PAGE


def test_many_phases_do_not_slow_the_clock(tmp_path, monkeypatch):
    process(tmp_path)
    line = Timeline(7, tmp_path)
    monkeypatch.setattr(Timeline, "_run", lambda _self: None)
    line.start()
    for number in range(2 * MOST_SAMPLES):
        line.phase(f"turn {number}")
    line.stop()
    assert len(line.samples) <= MOST_SAMPLES
    assert line._interval == timeline_module.FIRST_INTERVAL_S


def test_both_ends_of_a_phase_are_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(Timeline, "_run", lambda _self: None)
    process(tmp_path)
    line = Timeline(7, tmp_path)
    line.start()
    line.phase("loading")
    process(tmp_path, pages=200)
    line.phase("warm-up")
    assert [(sample.phase, sample.rss_bytes // timeline_module.PAGE) for sample in line.samples] == [
        ("starting", 100), ("loading", 100), ("loading", 200), ("warm-up", 200),
    ]  # fmt: skip


def test_pss_is_read_in_quiet_phases_alone(tmp_path, monkeypatch):
    process(tmp_path, pss=50)
    line = Timeline(7, tmp_path)
    ticks = iter([False] * 4 + [True])
    monkeypatch.setattr(line._over, "wait", lambda _seconds: next(ticks))
    read = []
    monkeypatch.setattr(line, "sample_pss", lambda: read.append(line._phase))
    line._run()
    assert read == []
    line.phase("first turn", quiet=True)
    ticks = iter([False] * 4 + [True])
    line._run()
    assert read == ["first turn"]  # the next one would be a second later


def test_the_highest_pss(tmp_path):
    line = Timeline(7, tmp_path)
    line.sample_pss()
    assert line.peak_pss_bytes is None
    for share in (50, 80, 60):
        process(tmp_path, pss=share)
        line.sample_pss()
    assert line.peak_pss_bytes == 80 * 1024


def test_without_proc_and_after_the_end_nothing_is_sampled(tmp_path):
    line = Timeline(7, tmp_path)
    line.start()
    line.phase("loading")
    line.stop()
    assert line.samples == []


@linux
def test_another_process_that_takes_memory():
    code = "import sys; print(flush=True); sys.stdin.readline(); x = bytearray(b'x') * 40_000_000; print(flush=True);"
    with subprocess.Popen(
        [sys.executable, "-c", f"{code} sys.stdin.readline()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        line = Timeline(other.pid)
        line.start()
        other.stdout.readline()
        line.phase("small")
        other.stdin.write(b"\n")
        other.stdin.flush()
        other.stdout.readline()
        line.phase("large")
        line.sample_pss()
        line.stop()
        other.stdin.close()
    first = next(sample for sample in line.samples if sample.phase == "small")
    last = line.samples[-1]
    assert last.phase == "large"
    assert last.rss_bytes - first.rss_bytes > 38_000_000
    assert last.anonymous_bytes - first.anonymous_bytes > 38_000_000
    assert line.peak_pss_bytes > 38_000_000
    line.sample()  # of a process that is gone
    assert line.samples[-1] == last
    assert os.sysconf("SC_PAGE_SIZE") == timeline_module.PAGE
