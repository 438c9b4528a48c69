"""The same bytes as llama-quantize, tensor by tensor: against a file and digests that llama-quantize made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.digests import tensor_digests
from support.golden_model import write_golden_model
from support.parity import emit
from support.preset_models import EXPERTS, importance_of, write_importance, write_model

from targets.base import TypeChoice
from targets.gguf.presets import PRESETS
from targets.gguf.reading import read_gguf_facts, read_gguf_metadata

GOLDEN = Path(__file__).parents[3] / "golden"
WEIGHTED = json.loads((GOLDEN / "tensors-imatrix.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_golden_model(tmp_path_factory.mktemp("source") / "golden")


def tensor_bytes(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    raw = path.read_bytes()
    return {
        name: (fact.dtype, fact.shape, raw[fact.offset : fact.offset + fact.n_bytes])
        for name, fact in read_gguf_facts(path, "").tensors.items()
    }


def test_every_tensor_of_q4_k_m_has_the_reference_files_bytes(model: Path, tmp_path: Path) -> None:
    ours = tensor_bytes(emit(model, tmp_path, preset="q4_k_m").entry_path)
    reference = tensor_bytes(GOLDEN / "golden-q4_k_m.gguf")
    assert ours.keys() == reference.keys()
    assert [name for name in reference if ours[name] != reference[name]] == []
    # the reference exercises both the k-quants and what rows of 288 fall back to
    assert {kind for kind, _, _ in reference.values()} >= {"Q4_K", "Q6_K", "Q5_0", "Q8_0", "F32"}


@pytest.mark.parametrize("preset", [name for name, preset in PRESETS.items() if not preset.weighted])
def test_every_preset_has_the_types_and_bytes_of_llama_quantize(preset: str, model: Path, tmp_path: Path) -> None:
    reference = json.loads((GOLDEN / "tensors.json").read_text(encoding="utf-8"))[preset]
    if preset == "q1_0":  # no row of 288 divides into its blocks, and no other type is named for it
        assert reference == "refused"
        return
    assert tensor_digests(emit(model, tmp_path, preset=preset).entry_path) == reference


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_the_same_with_an_importance_matrix(preset: str, model: Path, tmp_path: Path) -> None:
    types = TypeChoice(importance=importance_of(model, tmp_path / "imatrix.gguf"))
    if preset == "q1_0":
        assert WEIGHTED["gguf"][preset] == "refused"
        return
    assert tensor_digests(emit(model, tmp_path, preset=preset, types=types).entry_path) == WEIGHTED["gguf"][preset]


@pytest.mark.parametrize("preset", WEIGHTED["dat"])
def test_the_older_form_of_the_file_gives_the_same_too(preset: str, model: Path, tmp_path: Path) -> None:
    types = TypeChoice(importance=importance_of(model, tmp_path / "imatrix.dat", "dat"))
    assert tensor_digests(emit(model, tmp_path, preset=preset, types=types).entry_path) == WEIGHTED["dat"][preset]


@pytest.mark.parametrize("preset", WEIGHTED["experts"])
def test_each_expert_is_rounded_by_its_own_importance(preset: str, tmp_path: Path) -> None:
    source, importance = tmp_path / "experts.gguf", tmp_path / "experts.imatrix"
    write_model(source, EXPERTS)
    write_importance(importance, EXPERTS.tensors())
    (tmp_path / "out").mkdir()
    written = emit(source, tmp_path / "out", preset=preset, types=TypeChoice(importance=importance)).entry_path
    assert tensor_digests(written) == WEIGHTED["experts"][preset]


def test_the_metadata_names_what_llama_quantize_names(model: Path, tmp_path: Path) -> None:
    ours = {e.key: e.value for e in read_gguf_metadata(emit(model, tmp_path, preset="q4_k_m").entry_path)}
    reference = {e.key: e.value for e in read_gguf_metadata(GOLDEN / "golden-q4_k_m.gguf")}
    assert ours == reference
    assert ours["general.file_type"] == 15
