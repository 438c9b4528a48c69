from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.atomic import json_text, replacing, write_json, write_text

ROOT = Path(__file__).resolve().parents[3]


def test_success_leaves_only_the_new_content(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    write_text(path, "new ✓")
    assert path.read_text(encoding="utf-8") == "new ✓"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.txt"]


def test_a_name_that_is_not_utf_8_is_written_and_comes_back(tmp_path):
    name = os.fsdecode(b"caf\xe9 \xc3\xa9")
    path = tmp_path / "x.json"
    write_json(path, {"file": name})
    assert json.loads(path.read_bytes().decode("utf-8")) == {"file": name}
    assert json.loads(json_text([name, "✓"], indent=None)) == [name, "✓"]
    assert "✓" in json_text("✓")
    write_text(path, name)
    assert path.read_text(encoding="utf-8") == "caf\\udce9 é"


def test_an_exception_keeps_the_old_content_and_nothing_else(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def interrupted():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        interrupted()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.txt"]


def test_a_kill_leaves_nothing_under_the_final_name(tmp_path):
    path = tmp_path / "x.txt"
    code = (
        "import os, sys, pathlib\nfrom runtime.atomic import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half')\n    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == -signal.SIGKILL
    assert not path.exists()
