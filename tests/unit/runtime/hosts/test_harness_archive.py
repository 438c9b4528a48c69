"""The harness as one file."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from runtime.hosts.archive import PACKAGE, PHONES, zipapp

GOLDEN = Path(__file__).resolve().parents[3] / "golden" / "golden-q4_k_m.gguf"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    path = tmp_path_factory.mktemp("board") / "harness.pyz"
    path.write_bytes(zipapp())
    return path


def ran(alone, *arguments):
    command = [sys.executable, "-P", alone, GOLDEN, "--trials", "1", "--context", "64", "--threads", "1", *arguments]
    return subprocess.run(command, cwd=alone.parent, env={}, capture_output=True, text=True, check=False)


def test_all_sources_and_nothing_else(alone):
    sources = [path for path in PACKAGE.rglob("*.py") if not path.is_relative_to(PHONES)]
    names = zipfile.ZipFile(io.BytesIO(alone.read_bytes())).namelist()
    assert sorted(names) == sorted(["__main__.py", *(path.relative_to(PACKAGE.parent).as_posix() for path in sources)])
    assert zipapp() == alone.read_bytes()
    assert len(alone.read_bytes()) < 200_000


def test_it_measures(alone):
    done = ran(alone, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["peak_rss_bytes"] > GOLDEN.stat().st_size
    assert [path.name for path in alone.parent.iterdir()] == [alone.name]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is capped on Linux only")
def test_it_caps(alone):
    done = ran(alone, "--max-memory", "12MB")
    assert (done.returncode, done.stderr) == (1, "")
    assert "does not fit: needed " in done.stdout.splitlines()[-1]
