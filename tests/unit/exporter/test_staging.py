"""An output directory appears whole or not at all, and leftovers of the dead are removed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.staging import publish, refuse_occupied, staging
from runtime.artifact import Artifact, FileRecord, record, write_manifest
from runtime.errors import UserError

HOLD = """
import sys, time
from pathlib import Path
from exporter.staging import staging
with staging(Path(sys.argv[1])) as room:
    (room / "half.gguf").write_text("half")
    print(room, flush=True)
    time.sleep(60)
"""


def write_export(out, content="weights"):
    out.mkdir(exist_ok=True)
    (out / "m.gguf").write_text(content)
    files = {"m.gguf": record(out / "m.gguf")}
    write_manifest(Artifact(out, "gguf", "m.gguf", "m", "q8_0", 1, 8.0, 8, "m", files=files))
    (out / "README.md").write_text("edited by hand")


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def test_published_under_its_name(tmp_path):
    out = tmp_path / "deep" / "out"
    with staging(out) as room:
        (room / "m.gguf").write_text("x")
        assert not out.exists()
        publish(room, out)
    assert names(out) == ["m.gguf"]
    assert names(out.parent) == ["out"]


def test_nothing_is_left_of_a_failure(tmp_path):
    def interrupted():
        with staging(tmp_path / "out") as room:
            (room / "half.gguf").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == []


def test_an_empty_directory_is_filled_and_an_export_replaced(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for content in ("old", "new"):
        with staging(out) as room:
            write_export(room, content)
            publish(room, out)
    assert (out / "m.gguf").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_the_leftovers_of_a_killed_process_go_and_a_living_one_keeps_its_own(tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        room = Path(process.stdout.readline().strip())
        with staging(out):
            assert room.exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not out.exists()
        assert room.exists()
        with staging(out):
            assert not room.exists()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_other_hidden_directories_are_left_alone(tmp_path):
    kept = [".out.mine.partial", ".other.1.partial", ".out.1", "out.1.partial"]
    for name in kept:
        (tmp_path / name).mkdir()
    (tmp_path / ".out.1.partial").mkdir()
    with staging(tmp_path / "out"):
        pass
    assert names(tmp_path) == sorted(kept)


def test_what_may_be_written_over(tmp_path):
    out = tmp_path / "out"
    refuse_occupied(out, overwrite=False)
    out.mkdir()
    refuse_occupied(out, overwrite=False)
    write_export(out)
    before = names(out)
    refuse_occupied(out, overwrite=True)
    assert names(out) == before  # asking changes nothing


def refusal(out, *, overwrite):
    with pytest.raises(UserError) as caught:
        refuse_occupied(out, overwrite=overwrite)
    return str(caught.value)


def test_what_may_not_be_written_over(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    assert refusal(file, overwrite=True) == f"{file}: is a file; name a directory for -o"
    out = tmp_path / "out"
    write_export(out)
    assert refusal(out, overwrite=False) == (
        f"{out}: is not empty; name another directory, or add --overwrite to replace an earlier export"
    )
    (out / "thesis.tex").write_text("years of work")
    assert refusal(out, overwrite=True) == (
        f"{out}: holds 'thesis.tex', which packlight did not write; move it away or name another"
    )
    (out / "manifest.json").write_text("{}")
    assert refusal(out, overwrite=True) == (
        f"{out}: holds no packlight export, so --overwrite leaves it alone; name another"
    )


def test_what_a_kill_between_the_renames_took_away_is_put_back(tmp_path):
    earlier = tmp_path / ".out.1.previous.partial"
    write_export(earlier, "earlier")
    with pytest.raises(RuntimeError), staging(tmp_path / "out"):
        raise RuntimeError
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "m.gguf").read_text() == "earlier"


def test_a_foreign_file_inside_a_folder_of_the_export_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "onnx").mkdir(parents=True)
    (out / "onnx" / "model.onnx").write_bytes(b"1")
    artifact = Artifact(out, "onnx", "onnx/model.onnx", "m", "fp32", 1, 8.0, 16, "m",
                        files={"onnx/model.onnx": FileRecord(1, "0")})  # fmt: skip
    write_manifest(artifact)
    refuse_occupied(out, overwrite=True)
    (out / "onnx" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 'onnx/mine\.txt', which packlight did not write"):
        refuse_occupied(out, overwrite=True)
