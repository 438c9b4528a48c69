from __future__ import annotations

import hashlib
import json

import pytest

from runtime.artifact import MANIFEST, Artifact, damage, open_artifact, read_manifest, record, write_manifest
from runtime.errors import ArtifactError


@pytest.fixture
def artifact(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF1234")
    made = Artifact(
        root=tmp_path, format="gguf", entry="m.gguf", name="m", quant="q4_0", n_params=16, bits_per_weight=4.0,
        context_length=128, source="./m", contract={"input": "tokens"}, files={"m.gguf": record(tmp_path / "m.gguf")},
    )  # fmt: skip
    write_manifest(made, {"verdict": "met"})
    return made


def test_the_manifest_gives_the_artifact_back(artifact, tmp_path):
    assert read_manifest(tmp_path) == artifact
    assert artifact.files["m.gguf"].sha256 == hashlib.sha256(b"GGUF1234").hexdigest()
    assert artifact.total_bytes == 8
    assert json.loads((tmp_path / MANIFEST).read_text())["verdict"] == "met"


def test_directory_manifest_and_file_name_the_same_artifact(artifact, tmp_path):
    for path in (tmp_path, tmp_path / MANIFEST, tmp_path / "m.gguf"):
        assert open_artifact(path) == artifact


def test_a_changed_byte_is_damage_and_a_changed_size_is_refused(artifact, tmp_path):
    assert damage(artifact) == []
    (tmp_path / "m.gguf").write_bytes(b"GGUF1235")
    assert damage(open_artifact(tmp_path)) == ["m.gguf"]
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ArtifactError, match=r"has 4 bytes, manifest\.json says 8"):
        open_artifact(tmp_path)
    (tmp_path / "m.gguf").unlink()
    with pytest.raises(ArtifactError, match="missing"):
        open_artifact(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "not a packlight manifest"),
        ('{"packlight_manifest": 2}', "not a packlight manifest of version 1"),
        ('{"packlight_manifest": 1}', "is damaged"),
        ('{"packlight_manifest": 1, "files": {"a": 3}}', "is damaged"),
    ],
)
def test_damaged_manifests_are_told_apart(tmp_path, text, message):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match=message):
        read_manifest(tmp_path)


def test_a_bare_file_is_known_by_its_suffix_only(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    (tmp_path / "x.bin").write_bytes(b"?")
    assert open_artifact(tmp_path / "x.gguf").format == "gguf"
    with pytest.raises(ArtifactError, match=r"not a \.gguf file"):
        open_artifact(tmp_path / "x.bin")
    with pytest.raises(ArtifactError, match="no such file"):
        open_artifact(tmp_path / "y.gguf")


def test_another_programs_manifest_beside_a_bare_file_is_none_of_ours(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    (tmp_path / "manifest.json").write_text('{"version": 1}')
    assert open_artifact(tmp_path / "x.gguf").entry == "x.gguf"
