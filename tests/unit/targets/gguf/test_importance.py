"""An importance matrix on the way into a file: what is rounded by it, what is refused without it, what is recorded."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.golden_model import write_golden_model
from support.parity import emit
from support.preset_models import EXPERTS, importance_of, write_model

from runtime.errors import ModelError, UnsupportedError
from targets.base import TypeChoice
from targets.gguf import stream
from targets.gguf.imatrix import Sums, read_imatrix, write_imatrix
from targets.gguf.kernels import quantize_rows
from targets.gguf.reading import read_gguf_metadata
from targets.gguf.types import IMPORTANCE_TYPES, TYPES

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_golden_model(tmp_path / "golden")


@pytest.fixture
def importance(model: Path, tmp_path: Path) -> Path:
    return importance_of(model, tmp_path / "imatrix.gguf")


def written(model: Path, out: Path, preset: str, importance: Path | None, **more: object) -> Path:
    out.mkdir()
    types = TypeChoice(importance=importance, **more)  # type: ignore[arg-type]
    return emit(model, out, preset=preset, types=types).entry_path


def changed(path: Path, change: object) -> Path:
    """The file with other sums."""
    found = read_imatrix(path)
    write_imatrix(path, dataclasses.replace(found, sums=change(dict(found.sums))))  # type: ignore[operator]
    return path


@pytest.mark.parametrize("preset", ["iq2_xs", "iq3_xs", "q2_k_s"])
def test_what_needs_one_is_refused_without_and_told_how_to_make_it(preset: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as caught:
        written(model, tmp_path / "out", preset, None)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"--quant {preset}: blk.0.attn_")
    assert f"make one with 'packlight imatrix {model} -o imatrix.gguf', and add --imatrix imatrix.gguf" in line
    assert list((tmp_path / "out").iterdir()) == []


def test_of_a_gguf_file_llama_imatrix_makes_it(tmp_path: Path) -> None:
    write_model(tmp_path / "model.gguf", EXPERTS)
    with pytest.raises(UnsupportedError, match=r"make one with 'llama-imatrix -m .*model\.gguf -f TEXT -o"):
        written(tmp_path / "model.gguf", tmp_path / "out", "iq2_xs", None)


def test_a_tensor_without_one_is_named_where_its_type_needs_it(model: Path, importance: Path, tmp_path: Path) -> None:
    def without(sums: dict[str, Sums]) -> dict[str, Sums]:
        return {name: own for name, own in sums.items() if name != "blk.1.attn_k.weight"}

    changed(importance, without)
    with pytest.raises(UnsupportedError, match=r"has nothing for blk\.1\.attn_k\.weight, which would be iq2_xs"):
        written(model, tmp_path / "out", "iq2_xs", importance)
    with pytest.raises(UnsupportedError, match=r"nothing for token_embd\.weight.*add --embedding-type q4_k"):
        written(model, tmp_path / "pure", "iq2_xxs", importance, rules=(("attn_k", "q4_k"),), pure=True)


def test_a_tensor_without_one_is_noted_where_its_type_does_not(model: Path, importance: Path, tmp_path: Path) -> None:
    changed(importance, lambda sums: {name: own for name, own in sums.items() if "ffn_up" not in name})
    artifact = emit(model, tmp_path, preset="q4_k_m", types=TypeChoice(importance=importance))
    (note,) = artifact.contract["notes"]
    assert note.startswith("the importance matrix has nothing for blk.0.ffn_up.weight, blk.1.ffn_up.weight")


def test_one_of_another_model_is_refused(model: Path, importance: Path, tmp_path: Path) -> None:
    changed(importance, lambda sums: {"blk.9.attn_q.weight": sums["blk.0.attn_q.weight"]})
    with pytest.raises(UnsupportedError, match=r"is of another model: it knows blk\.9\.attn_q\.weight"):
        written(model, tmp_path / "a", "q4_k_m", importance)
    short = Sums(np.ones((1, 128), np.float32), np.array([1]))
    changed(importance, lambda _: {"blk.0.attn_q.weight": short, "token_embd.weight": short})
    with pytest.raises(UnsupportedError) as caught:
        written(model, tmp_path / "b", "q4_k_m", importance)
    # a table is looked up, not multiplied: its importance is passed over, as llama-quantize does
    (line,) = str(caught.value).splitlines()
    assert "has 128 values for blk.0.attn_q.weight, which is [256, 256]" in line


def test_a_file_that_is_none_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        written(model, tmp_path / "out", "q4_k_m", tmp_path / "nothing.gguf")


def test_the_record_is_llama_quantizes(model: Path, importance: Path, tmp_path: Path) -> None:
    path = written(model, tmp_path / "out", "q4_k_m", importance)
    found = {e.key: (e.type, e.value) for e in read_gguf_metadata(path) if e.key.startswith("quantize.")}
    assert found == {
        "quantize.imatrix.file": ("STRING", str(importance)), "quantize.imatrix.dataset": ("STRING", "golden.txt"),
        "quantize.imatrix.entries_count": ("UINT32", 21), "quantize.imatrix.chunks_count": ("UINT32", 5),
    }  # fmt: skip


@pytest.mark.parametrize("chunk_elements", [1, 700, 1500])
def test_chunks_may_be_cut_anywhere_between_experts(
    chunk_elements: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from support.preset_models import write_importance

    write_model(tmp_path / "model.gguf", EXPERTS)
    write_importance(tmp_path / "imatrix.gguf", EXPERTS.tensors())
    whole = written(tmp_path / "model.gguf", tmp_path / "a", "q4_0", tmp_path / "imatrix.gguf").read_bytes()
    monkeypatch.setattr(stream, "CHUNK_ELEMENTS", chunk_elements)
    assert written(tmp_path / "model.gguf", tmp_path / "b", "q4_0", tmp_path / "imatrix.gguf").read_bytes() == whole


@pytest.mark.parametrize("name", sorted(IMPORTANCE_TYPES))
def test_the_kernel_refuses_what_would_end_the_process(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be written without an importance matrix"):
        quantize_rows(np.ones((1, 256), np.float32), TYPES[name])


def test_importance_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"importance of shape \(128,\) is not for rows of 256"):
        quantize_rows(np.ones((1, 256), np.float32), TYPES["Q4_K"], np.ones(128, np.float32))


def test_what_counts_more_is_kept_closer() -> None:
    import gguf

    values = np.random.default_rng(3).standard_normal((16, 512)).astype(np.float32)
    counts = np.ones(512, np.float32)
    counts[::8] = 1000
    for name in ("IQ2_XXS", "IQ3_S", "Q2_K", "Q4_0"):
        errors = []
        for importance in (np.ones(512, np.float32), counts):
            found = gguf.quants.dequantize(
                quantize_rows(values, TYPES[name], importance), gguf.GGMLQuantizationType[name]
            )
            errors.append(float(((found - values)[:, ::8] ** 2).mean()))
        assert errors[1] < errors[0], name
