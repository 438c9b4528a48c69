"""Archives: every file back to the bit, smaller than plain zstd where order helps, nothing hostile unpacked."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from support.parity import emit, no_progress

from exporter.archive import format as layout
from exporter.archive import pack as packing
from exporter.archive.pack import pack
from exporter.archive.planes import from_planes, to_planes
from exporter.archive.unpack import unpack
from runtime.artifact import write_manifest
from runtime.errors import ArtifactError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@given(st.integers(1, 300), st.integers(0, 40), st.randoms())
def test_planes_and_back(stride: int, blocks: int, random: Any) -> None:
    content = random.randbytes(stride * blocks)
    planes = to_planes(content, stride)
    assert sorted(planes) == sorted(content)
    assert from_planes(planes, stride) == content
    assert planes[:blocks] == content[::stride]


def exported(source: Path, out: Path, format_name: str, preset: str) -> Path:
    out.mkdir()
    write_manifest(emit(source, out, format_name, preset))
    return out


def same(a: Path, b: Path) -> bool:
    names = [sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()) for root in (a, b)]
    return names[0] == names[1] and all((a / name).read_bytes() == (b / name).read_bytes() for name in names[0])


@pytest.mark.parametrize(
    ("format_name", "preset"),
    [("gguf", name) for name in ("q4_k_m", "q3_k_m", "q2_k", "q5_1", "iq4_xs", "q6_k", "q8_0", "f16", "bf16", "f32")]
    + [("onnx", "int4"), ("onnx", "fp16")],
)
def test_every_file_comes_back_to_the_bit(
    format_name: str, preset: str, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    artifact = exported(tiny_model_dir("llama", hidden=256), tmp_path / "artifact", format_name, preset)
    report = pack(artifact, tmp_path / "a.pla", 2, no_progress)
    assert unpack(tmp_path / "a.pla", tmp_path / "back", no_progress)
    assert same(artifact, tmp_path / "back")
    assert report.packed_bytes == (tmp_path / "a.pla").stat().st_size
    assert report.n_bytes == sum(path.stat().st_size for path in artifact.rglob("*") if path.is_file())
    assert sum(before for before, _ in report.types.values()) == report.n_bytes
    assert json.loads(json.dumps(report.to_json()))["ratio"] == report.packed_bytes / report.n_bytes


def test_floats_in_planes_are_smaller_than_plain_zstd(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    artifact = exported(tiny_model_dir("llama", hidden=256), tmp_path / "artifact", "gguf", "f16")
    (file,) = artifact.glob("*.gguf")
    report = pack(file, tmp_path / "a.pla", 2, no_progress)
    plain = len(zstandard.ZstdCompressor(level=packing.LEVEL).compress(file.read_bytes()))
    assert report.packed_bytes < 0.97 * plain
    assert set(report.types) == {"F16", "F32", "other"}


def directory(tmp_path: Path, **tensors: np.ndarray) -> Path:
    """A float directory with a manifest of nothing but its weights."""
    from safetensors.numpy import save_file

    from runtime.artifact import Artifact, record

    root = tmp_path / "floats"
    root.mkdir()
    save_file(tensors, root / "model.safetensors")
    files = {"model.safetensors": record(root / "model.safetensors")}
    write_manifest(Artifact(root, "floats", "model.safetensors", "x", "f32", 1, 32.0, 1, "x", {}, files))
    return root


def test_equal_tensors_are_stored_once_and_zeros_hardly(tmp_path: Path) -> None:
    random = np.random.default_rng(0).standard_normal((400, 400)).astype(np.float32)
    root = directory(tmp_path, a=random, b=random.copy(), c=np.where(np.abs(random) > 1.6, random, np.float32(0)))
    report = pack(root, tmp_path / "a.pla", 1, no_progress)
    assert report.packed_bytes < 1.35 * random.nbytes
    unpack(tmp_path / "a.pla", tmp_path / "back", no_progress)
    assert same(root, tmp_path / "back")


def test_segments_and_threads_do_not_change_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = directory(tmp_path, a=np.arange(5000, dtype=np.float32), b=np.zeros(77, np.float16))
    monkeypatch.setattr(packing, "SEGMENT", 1001)
    for threads in (1, 3):
        pack(root, tmp_path / f"{threads}.pla", threads, no_progress)
    assert (tmp_path / "1.pla").read_bytes() == (tmp_path / "3.pla").read_bytes()
    unpack(tmp_path / "1.pla", tmp_path / "back", no_progress)
    assert same(root, tmp_path / "back")


def test_damage_anywhere_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    root = directory(tmp_path, a=np.random.default_rng(0).standard_normal(3000).astype(np.float32))
    pack(root, tmp_path / "a.pla", 1, no_progress)
    whole = (tmp_path / "a.pla").read_bytes()
    broken = tmp_path / "broken.pla"
    places = np.random.default_rng(0).integers(0, len(whole), 150)
    for place in [0, len(whole) - 1, *places.tolist()]:
        broken.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        with pytest.raises(ArtifactError) as caught:
            unpack(broken, tmp_path / "out", no_progress)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(str(broken))
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        broken.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=r"is no packlight archive|is cut off or damaged"):
            unpack(broken, tmp_path / "out", no_progress)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pla", "broken.pla", "floats"]


def forged(path: Path, *files: dict[str, Any], frame: bytes = b"") -> Path:
    """An archive with a right footer and whatever index."""
    index = zstandard.ZstdCompressor().compress(json.dumps({"files": files}).encode())
    start = len(layout.MAGIC) + len(frame)
    footer = layout.FOOTER.pack(start, len(index), hashlib.sha256(index).digest(), layout.MAGIC)
    path.write_bytes(layout.MAGIC + frame + index + footer)
    return path


BOMB = zstandard.ZstdCompressor().compress(bytes(10**8))
FIRST = len(layout.MAGIC)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "../evil"}, "would lie outside of the directory"),
        ({"name": "/evil"}, "would lie outside of the directory"),
        ({"name": "a/../../evil"}, "would lie outside of the directory"),
        ({"name": "a\\evil"}, "would lie outside of the directory"),
        ({"name": ""}, "would lie outside of the directory"),
        ({"bytes": 5}, "is not as long as its segments"),
        ({"bytes": 10**8, "segments": [[10**8, 1, FIRST, len(BOMB)]]}, "has a segment of a senseless size"),
        ({"bytes": 9, "segments": [[9, 1, FIRST, len(BOMB)]]}, "a frame claims 100000000 bytes"),
        ({"bytes": 9, "segments": [[9, 2, FIRST, len(BOMB)]]}, "is no whole number of blocks"),
        ({"bytes": 9, "segments": [[9, 1, FIRST, 10**9]]}, "has a segment outside of the archive"),
        ({"bytes": 9, "segments": [[9, 1, 0, 5]]}, "has a segment outside of the archive"),
        ({"bytes": 9, "segments": [["9", 1, 0, 5]]}, "is not as long as its segments"),
        ({"bytes": 9, "segments": [[9, 1]]}, "its index makes no sense"),
        ({"bytes": "many"}, "its index makes no sense"),
    ],
    ids=str,
)
def test_hostile_archives_are_refused(entry: dict[str, Any], message: str, tmp_path: Path) -> None:
    whole = {"name": "x", "bytes": 0, "sha256": hashlib.sha256().hexdigest(), "segments": [], **entry}
    path = forged(tmp_path / "a.pla", whole, frame=BOMB)
    with pytest.raises(ArtifactError, match=message) as caught:
        unpack(path, tmp_path / "out", no_progress)
    assert "\n" not in str(caught.value)
    assert [one.name for one in tmp_path.iterdir()] == ["a.pla"]


def test_a_name_twice_and_a_file_in_place_of_a_directory(tmp_path: Path) -> None:
    empty = {"bytes": 0, "sha256": hashlib.sha256().hexdigest(), "segments": []}
    path = forged(tmp_path / "a.pla", {"name": "x", **empty}, {"name": "x", **empty})
    with pytest.raises(ArtifactError, match="names a file twice"):
        unpack(path, tmp_path / "out", no_progress)
    path = forged(tmp_path / "a.pla", {"name": "x", **empty}, {"name": "x/y", **empty})
    with pytest.raises(ArtifactError, match="cannot be unpacked"):
        unpack(path, tmp_path / "out", no_progress)
    assert [one.name for one in tmp_path.iterdir()] == ["a.pla"]


def test_what_is_there_already_stays(tmp_path: Path) -> None:
    root = directory(tmp_path, a=np.zeros(9, np.float32))
    pack(root, tmp_path / "a.pla", 1, no_progress)
    with pytest.raises(UserError, match=r"a.pla: is there already; name another file for -o"):
        pack(root, tmp_path / "a.pla", 1, no_progress)
    with pytest.raises(UserError, match="is not empty"):
        unpack(tmp_path / "a.pla", root, no_progress)
    with pytest.raises(ArtifactError, match="No such file"):
        unpack(tmp_path / "none.pla", tmp_path / "out", no_progress)
    with pytest.raises(ArtifactError, match="no such file or directory"):
        pack(tmp_path / "none", tmp_path / "b.pla", 1, no_progress)
