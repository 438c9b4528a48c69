"""What the benchmarks make of their runs."""

from __future__ import annotations

import sys

import pytest

from benchmarks import convert_speed, spawn, tables


def _row(model: str, official_s: float | None, ours_s: float, peak: int) -> dict:
    ours = {"wall_s": ours_s, "cpu_s": 2 * ours_s, "peak_rss_bytes": peak, "written_bytes": 1_020_000}
    row = {"model": model, "quant": "q8_0", "file_bytes": {"ours": 1_000_000}, "ours": ours, "written_ratio": 1.02}
    if official_s is not None:
        row["official"] = {
            "wall_s": official_s,
            "cpu_s": 1.5 * official_s,
            "peak_rss_bytes": 10 * peak,
            "written_bytes": 3_000_000,
        }
        row |= {"wall_ratio": ours_s / official_s, "memory_ratio": 0.1, "wall_limit": 0.4}
    return row


def test_limits_are_judged():
    rows = [_row("1B", 10.0, 3.0, 100), _row("3B", None, 9.0, 120)]
    assert convert_speed.failures(rows) == []
    rows = [_row("1B", 10.0, 5.0, 100), _row("3B", None, 9.0, 140)]
    assert convert_speed.failures(rows) == ["1B q8_0: wall_ratio 0.500 over 0.4", "q8_0: peak memory grows by 1.40"]


def test_table_has_the_ratio_beside_its_limit():
    table = convert_speed.table({"rows": [_row("1B", 10.0, 3.0, 100_000_000)]})
    assert "| 10.00 | 3.00 | 0.30 (0.4) | 15.00 | 6.00 | 1000 | 100 | 0.10 (0.4) | 3.0 | 1.0 | 1.0 |" in table


def test_costs_of_two_steps():
    first, second = spawn.Cost(1.0, 1.5, 500, 10), spawn.Cost(2.0, 4.0, 300, 20)
    assert first.then(second) == spawn.Cost(3.0, 5.5, 500, 30)


def test_cost_of_a_process(tmp_path):
    script = "import sys; x = b'x' * 50_000_000; open(sys.argv[1], 'wb').write(x[:2_000_000])"
    cost = spawn.run([sys.executable, "-c", script, str(tmp_path / "file")], 1)
    assert 50_000_000 < cost.peak_rss_bytes < 90_000_000
    assert 2_000_000 <= cost.written_bytes < 2_100_000


def test_failing_process_is_an_error_with_its_last_lines():
    with pytest.raises(RuntimeError, match=r"exit status 3(.|\n)*because"):
        spawn.run(["sh", "-c", "echo because >&2; exit 3"], 1)


def test_only_what_lies_between_the_markers_is_replaced():
    page = "a\n<!-- table: x -->\nold\n<!-- table: end -->\nb\n"
    filled = tables.fill(page, {"x": lambda: "new"}, "page")
    assert filled == "a\n<!-- table: x -->\n\nnew\n\n<!-- table: end -->\nb\n"
    assert tables.fill(filled, {"x": lambda: "new"}, "page") == filled


def test_page_without_its_marker_is_an_error():
    with pytest.raises(SystemExit, match="page: needs a line"):
        tables.fill("no marker", {"x": lambda: "new"}, "page")
