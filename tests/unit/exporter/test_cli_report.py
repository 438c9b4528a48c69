"""`packlight report` as it is typed: what it writes and says, and its mistakes in one line."""

from __future__ import annotations

import json

import pytest
from support.reports import document, encoder_document, exported
from typer.testing import CliRunner

from exporter.cli.app import app


def report(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_one_and_several(tmp_path):
    out, page = exported(tmp_path / "out"), tmp_path / "page.html"
    done = report(out, "-o", page)
    assert (done.exit_code, done.output) == (0, f"written: {page}\n")
    assert page.read_text().startswith("<!doctype html>")
    done = report(out, out / "report.json", "-o", page, "--json")
    assert json.loads(done.stdout) == {"out": str(page), "bytes": page.stat().st_size}
    assert "2 artifacts compared" in page.read_text()
    assert report(out, "-o", page, "--quiet").output == ""


def test_a_failed_verdict_is_shown_and_not_judged_again(tmp_path):
    failed = tmp_path / "failed.json"
    failed.write_text(json.dumps(document(tmp_path)))
    assert report(failed, "-o", tmp_path / "page.html").exit_code == 0
    assert "Failed" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere: no such file or directory; name an exported directory or a report's .json file"),
        ("bare", "bare: no report.json of an export there; run 'packlight measure "),
        ("notes.json", "notes.json: is not JSON"),
        ("encoder.json", "encoder.json is an encoder and "),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(tmp_path, name, message):
    out, page = exported(tmp_path / "out"), tmp_path / "page.html"
    (tmp_path / "bare").mkdir()
    (tmp_path / "notes.json").write_text("to do")
    (tmp_path / "encoder.json").write_text(json.dumps(encoder_document(tmp_path)))
    done = report(out, tmp_path / name, "-o", page)
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "encoder.json", "notes.json", "out"]


def test_a_model_is_not_written_over(tmp_path):
    out = exported(tmp_path / "out")
    done = report(out, "-o", out / "golden-q4_k_m.gguf")
    assert done.exit_code == 2
    assert "is there and no page of packlight's" in done.stderr
    assert (out / "golden-q4_k_m.gguf").stat().st_size == 733600
