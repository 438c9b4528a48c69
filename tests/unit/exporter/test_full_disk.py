"""A disk that is too full is an error before the work, in one line, and nothing is left of the attempt."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.command_line import packlight
from support.golden_model import write_golden_model
from support.parity import no_progress

from exporter.checkpoint import resolve
from exporter.pipeline import ExportRequest, export
from exporter.progress import SilentReporter
from runtime.errors import UserError
from targets import stream as streams
from targets.base import EmitOptions
from targets.gguf import stream
from targets.gguf.target import GgufTarget

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
BARE = ("--format", "gguf", "--quant", "f32", "--no-verify", "--no-measure")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_golden_model(tmp_path_factory.mktemp("model") / "golden")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("only root may mount a file system; the limit of a file's size is tested without")
    yield disk
    with contextlib.suppress(OSError):
        subprocess.run(["umount", str(disk)], check=True)


def nothing_left(directory: Path) -> bool:
    return list(directory.iterdir()) == []


def larger(model: Path, directory: Path) -> Path:
    """The same model with a table that makes it 10 MB as F32."""
    import json

    import numpy as np
    from safetensors.numpy import load_file, save_file

    shutil.copytree(model, directory)
    config = json.loads((directory / "config.json").read_text())
    config["vocab_size"] = 8192
    (directory / "config.json").write_text(json.dumps(config))
    tensors = load_file(directory / "model.safetensors")
    tensors["model.embed_tokens.weight"] = np.full((8192, 256), 0.5, np.float32)
    save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize("more", [(), ("--split-max-size", "9MB"), ("--resume",)])
def test_a_disk_that_is_too_small(more: tuple[str, ...], small_disk: Path, model: Path, tmp_path: Path) -> None:
    wide = larger(model, tmp_path / "wide")
    ran = packlight("export", wide, *BARE, *more, "-o", small_disk / "deep" / "out")
    assert ran.returncode == 2
    assert "no room for a file of" in ran.stderr
    assert "(No space left on device); free space or choose another -o" in ran.stderr
    assert ran.stderr.count("\n") == ran.stderr.count("reading") + ran.stderr.count("writing") + 1
    assert nothing_left(small_disk)


def test_a_disk_that_the_weights_alone_fill(small_disk: Path, model: Path) -> None:
    ran = packlight("export", model, *BARE, "-o", small_disk / "out")
    assert ran.returncode == 2
    assert "the weights fill the disk, and nothing is left for the report and the manifest; free 4.2 MB" in ran.stderr
    assert nothing_left(small_disk)


def test_a_file_larger_than_the_system_allows(model: Path, tmp_path: Path) -> None:
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)); "
    code = f"{limited} from exporter.cli import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", code, "export", model, *BARE, "-o", tmp_path / "deep" / "out"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 2, ran.stderr
    assert "no room for a file of" in ran.stderr
    assert "(File too large); free space or choose another -o" in ran.stderr
    assert nothing_left(tmp_path)


def test_the_room_of_every_part_is_claimed_before_a_weight_is_read(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed: list[int] = []
    real = os.posix_fallocate

    def third_is_too_much(descriptor: int, offset: int, n_bytes: int) -> None:
        claimed.append(n_bytes)
        if len(claimed) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor, offset, n_bytes)

    def never(*_: object) -> None:
        raise AssertionError("a weight is read")

    monkeypatch.setattr(os, "posix_fallocate", third_is_too_much)
    monkeypatch.setattr(stream, "_encode", never)
    options = EmitOptions("f32", 1, split_max_bytes=1 << 20)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match=r"no room for a file of \d+ bytes \(No space left on device\)"):
        GgufTarget().emit(resolve(str(model)), options, out, no_progress)
    assert len(claimed) == 3
    assert nothing_left(out)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_cannot_claim_room_is_asked_for_what_is_free(
    number: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", unknown)
    artifact = GgufTarget().emit(resolve(str(model)), EmitOptions("f32", 1), tmp_path, no_progress)
    assert artifact.entry_path.stat().st_size == artifact.total_bytes
    with (tmp_path / "x").open("wb") as file, pytest.raises(UserError, match="No space left on device"):
        streams.reserve(file.fileno(), tmp_path / "x", 1 << 60)


def test_a_disk_that_fails_while_it_is_written_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("targets.chunk_journal._sync", full)
    monkeypatch.setattr("targets.chunk_journal.LEAST_SECONDS", 0.0)
    monkeypatch.setattr(stream, "CHUNK_ELEMENTS", 4096)
    request = ExportRequest(str(model), tmp_path / "deep" / "out", "gguf", "q8_0", measure=False)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); free space"):
        export(request, SilentReporter())
    assert nothing_left(tmp_path)
