"""What the benchmarks make of their runs."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from benchmarks import convert_speed, kl_parity, record, small_files, spawn, startup, tables, tools


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
    assert "| 10.00 | 3.00 | 0.30 (0.4) | 15.00 | 6.00 | 1000 | 100 | 0.10 (0.3) | 3.0 | 1.0 | 1.0 |" in table


def test_table_marks_what_is_over_its_limit():
    row = {**_row("1B", 10.0, 5.0, 100_000_000), "written_ratio": 1.06}
    table = convert_speed.table({"rows": [row, _row("3B", None, 9.0, 140_000_000)]})
    assert (
        "| 10.00 | 5.00 | **✗ 0.50 (0.4)** | 15.00 | 10.00 | 1000 | 100 | 0.10 (0.3) | 3.0 | **✗ 1.0** | 1.0 |" in table
    )
    assert "Q8_0: **✗ 1.40 times (limit 1.3)**." in table
    figures = {"mean_kl": 0.1, "p99_kl": 1.0, "perplexity": 9.0, "same_top1": 0.9}
    rows = [
        {"quant": "q4_0", "llama_perplexity": figures, "packlight": figures, "difference": d} for d in (-0.06, 0.04)
    ]
    table = kl_parity.table({"rows": rows})
    assert "| **✗ -6.00 % (5 %)** |" in table
    assert "| +4.00 % (5 %) |" in table


def test_startup_is_judged_by_its_median():
    def cost(wall_s):
        return spawn.Cost(wall_s, 0.1, 30_000_000, 0)

    def rows(*walls):
        return startup.summary({startup.HELP: [cost(w) for w in walls], startup.BARE: [cost(0.02)]})

    assert startup.failures(rows(0.25, 0.9, 0.2)) == []
    assert startup.failures(rows(0.35, 0.9, 0.2)) == ["packlight --help: 0.350 s over 0.3 s"]
    assert "| `packlight --help` | 0.250 (0.3) | 0.200 | 0.900 | 0.100 | 30 |" in startup.table(
        {"rows": rows(0.25, 0.9, 0.2)}
    )
    assert "| **✗ 0.350 (0.3)** |" in startup.table({"rows": rows(0.35, 0.9, 0.2)})


def test_uncommitted_changes_are_recorded(tmp_path, monkeypatch):
    def git(*arguments):
        who = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    if shutil.which("git") is None:
        assert record.dirty() is None
        return
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert record.dirty(tmp_path) is None  # not a checkout
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    for path in (tmp_path / "code.py", results / "one.json"):
        path.write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    assert record.dirty(tmp_path) is False
    (results / "one.json").write_text("2")  # a benchmark before this one wrote it
    (tmp_path / "untracked").write_text("2")
    assert record.dirty(tmp_path) is False
    (tmp_path / "code.py").write_text("2")
    assert record.dirty(tmp_path) is True
    named = record.commit(tmp_path)
    assert len(named) == 40
    git("worktree", "add", "-q", "-b", "other", str(tmp_path / "beside"))
    assert record.commit(tmp_path / "beside") == named
    git("pack-refs", "--all")
    assert record.commit(tmp_path) == record.commit(tmp_path / "beside") == named


def test_cmake_beside_the_interpreter_is_found(tmp_path, monkeypatch):
    cmake = tmp_path / "cmake"
    cmake.write_text("#!/bin/sh\nexit 3\n")
    cmake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(tools, "HOME", tmp_path)
    monkeypatch.setattr(tools, "source", lambda: tmp_path)
    monkeypatch.setattr(tools.sys, "executable", str(tmp_path / "nowhere" / "python"))
    with pytest.raises(SystemExit, match="cmake: not found"):
        tools.build()
    monkeypatch.setattr(tools.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(SystemExit, match=rf"{cmake} -S: failed"):
        tools.build()


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


def test_a_file_that_a_smaller_one_outdoes_is_not_on_the_curve(monkeypatch):
    def files(*known):
        return [small_files.File(name, n_bytes, kept, "0123456789abcdef") for name, n_bytes, kept in known]

    known = [("whole", 50, 0.99), ("worse", 40, 0.90), ("half", 30, 0.98), ("tenth", 10, 0.8), ("other", 30, 0.7)]
    assert [one.what for one in small_files.best(files(*known))] == ["whole", "half", "tenth"]
    monkeypatch.setattr(small_files, "decoders", lambda: files(*known))
    judged = ((["onnx", "int4"], 9, 0.98), (["gguf", "q8_0", "--pure"], 20, 0.99))
    rows = [{"kind": kind, "n_bytes": n_bytes, "rank correlation": kept} for kind, n_bytes, kept in judged]
    monkeypatch.setattr(record, "load", lambda _name: None)
    table = small_files.table({"decoder_bytes": 100, "encoder_bytes": 90, "commit": "fedcba9876543210", "rows": rows})
    assert "| half | 0.0 | 1/3.3 | 98.0% | `0123456789ab` |" in table
    assert "worse" not in table
    assert "**✗ Not both: the smallest that keeps 97% is 1/3.3, one of 1/10 keeps 80.0%.**" in table
    assert "| GGUF Q8_0 --pure | 0.0 | 1/4.5 | 99.0% | `fedcba987654` |\n" in table
    assert "| ONNX int4 | 0.0 | 1/10.0 | 98.0% | `fedcba987654` |\n\nA file of 1/10.0 keeps 97%." in table
