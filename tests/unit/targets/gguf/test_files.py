"""One plan in several files: llama-gguf-split's names, keys and cuts, and llama.cpp computes the same."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
from support.command_line import packlight
from support.golden_model import write_golden_model
from support.parity import OPTIONS, TOKENS, no_progress

from exporter.checkpoint import resolve
from runtime.artifact import damage, open_artifact, shards
from runtime.errors import ArtifactError, EngineError, UnsupportedError
from runtime.sessions import open_session
from targets.base import EmitOptions
from targets.gguf.reading import read_gguf_metadata
from targets.gguf.target import GgufTarget
from targets.stored_tensors import stored_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.artifact import Artifact

MOST = 300_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_golden_model(tmp_path_factory.mktemp("model") / "golden")


def written(model: Path, out: Path, most: int | None, quant: str = "q8_0") -> Artifact:
    out.mkdir()
    options = EmitOptions(quant, 2, split_max_bytes=most)
    return GgufTarget().emit(resolve(str(model)), options, out, no_progress)


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return written(model, tmp_path_factory.mktemp("whole") / "out", None)


@pytest.fixture(scope="module")
def parts(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return written(model, tmp_path_factory.mktemp("parts") / "out", MOST)


def test_names_and_what_the_artifact_says(whole: Artifact, parts: Artifact) -> None:
    count = len(parts.files)
    assert count > 2
    stem = whole.entry.removesuffix(".gguf")
    expected = [f"{stem}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
    assert list(parts.files) == shards(parts) == parts.contract["model_files"] == expected
    assert parts.entry == expected[0]
    assert parts.total_bytes == parts.model_bytes == sum((parts.root / name).stat().st_size for name in expected)
    assert damage(parts) == []
    assert (parts.n_params, parts.bits_per_weight) == (whole.n_params, whole.bits_per_weight)
    assert list(whole.files) == [f"{stem}.gguf"]
    assert "model_files" not in whole.contract


def test_the_same_tensors_in_the_same_order_cut_where_gguf_split_cuts(whole: Artifact, parts: Artifact) -> None:
    tensors = gguf.GGUFReader(whole.entry_path).tensors
    expected: list[list[str]] = [[]]
    filled = 0
    for tensor in tensors:
        size = -(-int(tensor.n_bytes) // 32) * 32
        if filled + size > MOST:
            expected.append([])
            filled = 0
        filled += size
        expected[-1].append(tensor.name)
    readers = [gguf.GGUFReader(parts.root / name) for name in parts.files]
    assert [[tensor.name for tensor in reader.tensors] for reader in readers] == expected
    data = {tensor.name: tensor.data.tobytes() for reader in readers for tensor in reader.tensors}
    assert data == {tensor.name: tensor.data.tobytes() for tensor in tensors}


def test_the_first_has_all_metadata_and_the_others_three_keys(whole: Artifact, parts: Artifact) -> None:
    known, n_tensors = read_gguf_metadata(whole.entry_path), len(gguf.GGUFReader(whole.entry_path).tensors)
    for number, name in enumerate(parts.files):
        found = read_gguf_metadata(parts.root / name)
        split = [(entry.key, entry.value, entry.type) for entry in found[-3:]]
        assert split == [
            ("split.no", number, "UINT16"), ("split.tensors.count", n_tensors, "INT32"),
            ("split.count", len(parts.files), "UINT16"),
        ]  # fmt: skip
        assert found[:-3] == (known if number == 0 else [])


def logits(artifact: Artifact) -> np.ndarray:
    session = open_session(artifact, OPTIONS)
    try:
        return session.all_logits([token % 64 for token in TOKENS])
    finally:
        session.close()


def test_llama_cpp_loads_the_first_and_computes_the_same(whole: Artifact, parts: Artifact) -> None:
    assert np.array_equal(logits(parts), logits(whole))
    bare = open_artifact(parts.entry_path)
    assert np.array_equal(logits(bare), logits(whole))
    assert bare.total_bytes == bare.model_bytes == parts.total_bytes


def test_the_types_of_all_parts_are_seen(whole: Artifact, parts: Artifact) -> None:
    assert stored_tensors(parts) == stored_tensors(whole)


def test_parts_are_a_source(whole: Artifact, parts: Artifact, tmp_path: Path) -> None:
    one = written(whole.entry_path, tmp_path / "one", None, "q4_0")
    several = written(parts.entry_path, tmp_path / "several", None, "q4_0")
    assert several.files == one.files
    assert several.entry_path.read_bytes() == one.entry_path.read_bytes()
    keys = {entry.key for entry in read_gguf_metadata(several.entry_path)}
    assert not any(key.startswith("split.") for key in keys)


def test_what_fits_is_not_cut(whole: Artifact, model: Path, tmp_path: Path) -> None:
    assert written(model, tmp_path / "out", 1 << 30).files == whole.files


def test_a_limit_below_the_largest_tensor_is_refused_before_anything_is_written(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as caught:
        written(model, tmp_path / "out", 50_000)
    assert str(caught.value) == (
        "--split-max-size: blk.0.ffn_gate.weight alone has 0.1 MB, and a tensor is not cut; name at least 78336"
    )
    assert list((tmp_path / "out").iterdir()) == []
    assert len(written(model, tmp_path / "again", 78336).files) > 10


def test_another_part_than_the_first(parts: Artifact, tmp_path: Path) -> None:
    second = list(parts.files)[1]
    (tmp_path / second).write_bytes((parts.root / second).read_bytes())
    with pytest.raises(ArtifactError) as caught:
        open_artifact(tmp_path / second)
    assert str(caught.value) == (
        f"{tmp_path / second}: is part 2 of {len(parts.files)} of a model; name the first, {parts.entry}"
    )


def test_a_part_that_is_missing(parts: Artifact, tmp_path: Path) -> None:
    for name in list(parts.files)[:-1]:
        (tmp_path / name).write_bytes((parts.root / name).read_bytes())
    with pytest.raises(EngineError, match=r"llama\.cpp does not load it"):
        open_session(open_artifact(tmp_path / parts.entry), OPTIONS)


GGUF_SPLIT = {
    "golden-1.2M-Q8_0-00001-of-00002.gguf": "dabd803fe6f3c25ab63a75ac651c5424dbe990ca724cbb7460fe6d0a7b2d2312",
    "golden-1.2M-Q8_0-00002-of-00002.gguf": "008ac1b09b941ec04f26f1d62870372d9fb57664326dbde7623deb4b0c28a8fd",
}
"""SHA-256 of what llama-gguf-split --split-max-size 1M (llama.cpp b11434) makes of the golden model's file as Q8_0."""


def test_the_bytes_of_llama_gguf_split(model: Path, tmp_path: Path) -> None:
    parts = written(model, tmp_path / "out", 1_000_000)
    found = {name: hashlib.sha256((parts.root / name).read_bytes()).hexdigest() for name in parts.files}
    assert found == GGUF_SPLIT


@pytest.mark.slow
def test_every_verb_takes_an_artifact_of_several_files(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    little = ("--trials", "1", "--context", "128", "--prompt-tokens", "32", "--decode-tokens", "4")
    ran = packlight(
        "export", tiny_llama, "--quant", "q8_0", "--split-max-size", "100kB", "--chunks", "1", *little, "-o", out
    )
    assert ran.returncode in (0, 1), ran.stderr
    artifact = open_artifact(out)
    assert len(artifact.files) == 2
    assert not (out / "Modelfile").exists()
    assert "the first is named, the others have to lie beside it" in (out / "README.md").read_text()
    for verb in (
        ("measure", out, *little),
        ("verify", out, "--against", tiny_llama, "--chunks", "1"),
        ("report", out, "-o", tmp_path / "page.html"),
        ("pack", out, "-o", tmp_path / "model.pla"),
        ("unpack", tmp_path / "model.pla", "-o", tmp_path / "unpacked"),
        ("export", out / artifact.entry, "--quant", "q4_0", "--no-measure", "--chunks", "1", "-o", tmp_path / "again"),
    ):  # fmt: skip
        done = packlight(*verb, "--quiet")
        assert done.returncode in (0, 1), (verb, done.stderr)
        assert "Traceback" not in done.stderr
    assert damage(open_artifact(tmp_path / "unpacked")) == []
    (tmp_path / "bare").mkdir()
    for name in artifact.files:  # without a manifest
        (tmp_path / "bare" / name).hardlink_to(out / name)
    bare = packlight("measure", tmp_path / "bare" / artifact.entry, *little, "--json")
    sizes = {line["name"]: line["value"] for line in json.loads(bare.stdout)["lines"]}
    assert sizes["size"] == artifact.total_bytes == sum(one.bytes for one in artifact.files.values())
