"""What every target promises, on a tiny random model of every family: one suite, run over all targets."""

from __future__ import annotations

import dataclasses
import shutil
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.parity import LOSSLESS, OPTIONS, TOKENS, emit, no_progress, worst_difference
from support.preset_models import importance_of
from support.tiny_models import FAMILIES

from exporter.checkpoint import resolve
from runtime.artifact import damage, open_artifact, write_manifest
from runtime.sessions import open_session
from targets import TARGETS, get_target
from targets.base import EmitOptions, TypeChoice
from targets.gguf.presets import COPY, PRESETS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from runtime.artifact import Artifact

# ONNX Runtime lists the names of an operator's types in another order in every process, and torch counts the classes
# that a process has scripted and writes the number into their names: the same model, other bytes.
SHUFFLED = ("ort", "ptl", "torchscript")
# An export takes 5 to 80 seconds, all of it the library's, more the more layers there are: twice for one family only,
# and of models as small as the question allows.
SLOW = ("executorch", "ort")
SHORTEST = {"layers": 1, "hidden": 256}
BOTH_KINDS = {"layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
"""Of Gemma's layers, which only llama.cpp counts on its own."""


@pytest.fixture(scope="module")
def smallest(
    tiny_model_dir: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Artifact]:
    """A model of one layer in a format that loses nothing, made once each, with two threads: only to be read."""

    @cache
    def make(format_name: str) -> Artifact:
        return emit(tiny_model_dir("llama", **SHORTEST), tmp_path_factory.mktemp(format_name), format_name)

    return make


def files_below(root: Path) -> list[str]:
    """Names relative to `root`, folders left out."""
    return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("format_name", TARGETS)
def test_logits_are_those_of_the_source_and_nothing_is_left_over(
    format_name: str, family: str, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    source = tiny_model_dir(family, **(BOTH_KINDS if family == "gemma3" and format_name in SLOW else {}))
    artifact = emit(source, tmp_path, format_name)
    assert artifact.entry in artifact.files
    assert sorted(files_below(tmp_path)) == sorted(artifact.files)
    # ggml computes Gemma's GELU from a half-precision table
    limit = 1e-3 if family == "gemma3" and format_name == "gguf" else 1e-5
    assert worst_difference(source, artifact) <= limit


@pytest.mark.parametrize(("format_name", "family"), [
    (name, family) for name in TARGETS for family in (FAMILIES[:1] if name in SLOW else FAMILIES)
])  # fmt: skip
def test_same_input_gives_the_same_bytes(
    format_name: str, family: str, smallest: Callable[[str], Artifact], tiny_model_dir: Callable[..., Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    facts = resolve(str(tiny_model_dir(family, **(SHORTEST if format_name in SLOW else {}))))
    records = []
    for name, threads in (("one", 1), ("two", 2)):
        out = tmp_path / name
        out.mkdir()
        if format_name in SLOW and threads == 2:
            artifact = smallest(format_name)
        else:
            options = EmitOptions(LOSSLESS[format_name], threads)
            artifact = get_target(format_name).emit(facts, options, out, no_progress)
        records.append(dict(artifact.files))
        if format_name in SHUFFLED:
            session = open_session(artifact, OPTIONS)
            records[-1][artifact.entry] = session.all_logits(TOKENS).tobytes()  # type: ignore[assignment]
            session.close()
    assert records[0] == records[1]


@pytest.mark.parametrize("format_name", TARGETS)
def test_the_manifest_finds_the_artifact_again(
    format_name: str, smallest: Callable[[str], Artifact], tmp_path: Path
) -> None:
    room = tmp_path / "copy"
    shutil.copytree(smallest(format_name).root, room)
    artifact = dataclasses.replace(smallest(format_name), root=room)
    write_manifest(artifact)
    found = open_artifact(room)
    assert found == artifact
    assert damage(found) == []
    for name in artifact.files:  # weights may lie beside the entry
        with (room / name).open("r+b") as file:
            file.seek(-1, 2)
            last = file.read(1)
            file.seek(-1, 2)
            file.write(bytes([last[0] ^ 1]))
    assert sorted(damage(found)) == sorted(artifact.files)


@pytest.mark.parametrize("format_name", TARGETS)
def test_every_preset_is_listed_and_emitted(
    format_name: str, smallest: Callable[[str], Artifact], tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    options = SHORTEST if format_name in SLOW else {"hidden": 256}
    directory = tiny_model_dir("llama", **options)
    facts, importance = resolve(str(directory)), importance_of(directory, tmp_path / "imatrix.gguf")
    sizes: dict[str, int] = {}
    for preset in get_target(format_name).presets():
        if preset == COPY.name:  # which is of .gguf files
            continue
        out = tmp_path / preset
        out.mkdir()
        if format_name in SLOW and preset == LOSSLESS[format_name]:
            artifact = smallest(format_name)
        else:
            types = TypeChoice(importance=importance if format_name == "gguf" and PRESETS[preset].weighted else None)
            artifact = get_target(format_name).emit(facts, EmitOptions(preset, 2, types=types), out, no_progress)
        session = open_session(artifact, OPTIONS)
        try:
            assert np.isfinite(session.all_logits([1, 2, 3])).all()
        finally:
            session.close()
        sizes[preset] = artifact.total_bytes
        # XNNPACK keeps a copy of its own of a table that is the head too.
        assert artifact.bits_per_weight <= (64 if format_name == "executorch" else 32)
    assert len(set(sizes.values())) > len(sizes) // 2
