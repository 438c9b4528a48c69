"""Chunks to their place: order, transforms, errors, and nothing left under the final name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
from support.golden_model import write_golden_model
from support.parity import emit, no_progress

from exporter.checkpoint import resolve
from runtime.errors import ModelError, UnsupportedError, UserError
from targets import few_bits
from targets.base import EmitOptions
from targets.gguf import stream, writing
from targets.gguf.target import GgufTarget

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_golden_model(tmp_path / "golden")


def stored(model: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(model / "model.safetensors")


def rewrite(model: Path, tensors: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    save_file(tensors, model / "model.safetensors")


def test_interleave_order_by_hand() -> None:
    # two heads of four rows: halves (0 1 | 2 3) become pairs (0 2) (1 3)
    assert stream.interleave_order(8, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_interleave_order_is_the_reshape_of_the_formula() -> None:
    rows, heads = 96, 6
    expected = np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)
    assert np.array_equal(stream.interleave_order(rows, heads), expected)


@pytest.mark.parametrize("chunk_elements", [1, 700, 5000, 1 << 19])
def test_any_chunk_size_writes_the_same_file(
    chunk_elements: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = emit(model, tmp_path / "a", preset="q4_k_m").entry_path.read_bytes()
    monkeypatch.setattr(stream, "CHUNK_ELEMENTS", chunk_elements)
    assert emit(model, tmp_path / "b", preset="q4_k_m").entry_path.read_bytes() == whole


def test_any_number_of_threads_and_any_order_of_chunks_writes_the_same_file(model: Path, tmp_path: Path) -> None:
    """What is written depends on the model, the options and packlight, not on which thread comes first."""
    found = []
    for number, (threads, journalled) in enumerate([(1, False), (2, False), (7, False), (1, True), (5, True)]):
        out = tmp_path / str(number)
        out.mkdir()
        options = EmitOptions("q4_k_m", threads, journalled=journalled)
        artifact = GgufTarget().emit(resolve(str(model)), options, out, no_progress)
        found.append((artifact.files, artifact.entry_path.read_bytes()))
    assert all(one == found[0] for one in found)


def test_f32_holds_the_stored_values_with_q_and_k_interleaved(model: Path, tmp_path: Path) -> None:
    source = stored(model)
    written = {t.name: t.data for t in gguf.GGUFReader(emit(model, tmp_path).entry_path).tensors}
    assert np.array_equal(written["blk.1.ffn_down.weight"], source["model.layers.1.mlp.down_proj.weight"])
    q = source["model.layers.2.self_attn.q_proj.weight"]
    assert np.array_equal(written["blk.2.attn_q.weight"], q.reshape(8, 2, 16, 256).swapaxes(1, 2).reshape(256, 256))
    k = source["model.layers.2.self_attn.k_proj.weight"]
    assert np.array_equal(written["blk.2.attn_k.weight"], k.reshape(2, 2, 16, 256).swapaxes(1, 2).reshape(64, 256))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_bad_values_are_named_and_leave_nothing(value: float, model: Path, tmp_path: Path) -> None:
    tensors = stored(model)
    tensors["model.layers.1.mlp.up_proj.weight"][5, 3] = value
    rewrite(model, tensors)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinite.*row 5"):
        emit(model, out, preset="q4_k_m")
    assert list(out.iterdir()) == []


def test_every_missing_extra_and_misshapen_tensor_is_listed_at_once(model: Path, tmp_path: Path) -> None:
    tensors = stored(model)
    del tensors["model.norm.weight"]
    tensors["model.layers.0.self_attn.rotary"] = np.zeros(3, np.float32)
    tensors["model.layers.2.mlp.down_proj.weight"] = np.zeros((256, 100), np.float32)
    rewrite(model, tensors)
    with pytest.raises(UnsupportedError) as caught:
        emit(model, tmp_path)
    message = str(caught.value)
    assert "model.norm.weight: is missing" in message
    assert "model.layers.0.self_attn.rotary: is not part of LlamaForCausalLM" in message
    assert "model.layers.2.mlp.down_proj.weight: has shape [256, 100], config.json says [256, 288]" in message


def test_a_full_disk_is_known_before_the_work(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match=r"no room for a file of \d+ bytes"):
        emit(model, out)
    assert list(out.iterdir()) == []


def test_an_unknown_preset_lists_the_known_ones(model: Path) -> None:
    with pytest.raises(UnsupportedError, match="unknown quantization 'q9_x' for gguf; known: f32"):
        GgufTarget().check(resolve(str(model)), EmitOptions("q9_x"))


def test_progress_ends_at_the_total(model: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    GgufTarget().emit(
        resolve(str(model)),
        EmitOptions("q8_0", 2),
        tmp_path,
        lambda what, done, total: seen.append((what, done, total)),
    )
    assert seen[-1][1] == seen[-1][2] > 0
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_requantizing_a_gguf_keeps_its_metadata_and_equals_the_direct_road(model: Path, tmp_path: Path) -> None:
    for name in ("full", "direct", "twice"):
        (tmp_path / name).mkdir()
    full = emit(model, tmp_path / "full", preset="f32")
    direct = emit(model, tmp_path / "direct", preset="q4_k_m")
    twice = emit(full.entry_path, tmp_path / "twice", preset="q4_k_m")
    assert twice.entry == direct.entry
    assert twice.contract["notes"] == direct.contract["notes"] == []
    ours, reference = (gguf.GGUFReader(a.entry_path) for a in (twice, direct))
    assert {t.name: t.data.tobytes() for t in ours.tensors} == {t.name: t.data.tobytes() for t in reference.tensors}
    assert {k: f.contents() for k, f in ours.fields.items()} == {k: f.contents() for k, f in reference.fields.items()}


def test_requantizing_a_quantized_file_says_what_is_lost(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = emit(model, tmp_path / "a", preset="q5_0")
    again = emit(first.entry_path, tmp_path / "b", preset="q4_0")
    (note,) = again.contract["notes"]
    assert note.startswith("the source is quantized already (Q5_0, Q6_K): what that lost stays lost")


_KILL = """
import sys, pathlib
from exporter.checkpoint import resolve
from targets import get_target
from targets.base import EmitOptions
print("ready", flush=True)
while True:
    get_target("gguf").emit(resolve(sys.argv[1]), EmitOptions("q4_k_m", 2), pathlib.Path(sys.argv[2]), lambda *_: None)
    break
print("done", flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.2])
def test_a_kill_leaves_no_half_file_under_the_final_name(delay: float, model: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    out.mkdir()
    whole.mkdir()
    expected = emit(model, whole, preset="q4_k_m")
    child = subprocess.Popen(
        [sys.executable, "-c", _KILL, str(model), str(out)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[4]
    )
    try:
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(delay)
        os.kill(child.pid, signal.SIGKILL)
    finally:
        child.communicate()
    for path in out.glob("*.gguf"):
        if not path.name.startswith("."):
            assert path.read_bytes() == expected.entry_path.read_bytes()


def test_emit_options_reach_the_threads(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real: Callable[..., None] = writing.write_tensors

    def spy(*arguments: object) -> None:
        seen.append(arguments[1])  # type: ignore[arg-type]  # threads
        real(*arguments)

    monkeypatch.setattr(writing, "write_tensors", spy)
    GgufTarget().emit(resolve(str(model)), EmitOptions("q8_0", 3), tmp_path, no_progress)
    assert seen == [3]


def test_a_value_too_large_for_the_type_names_the_tensor(model: Path, tmp_path: Path) -> None:
    tensors = stored(model)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = 7e4
    rewrite(model, tensors)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ModelError, match=r"blk\.0\.ffn_up\.weight: a value is too large for F16"):
        emit(model, out, preset="f16")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("preset", ["q3_k_s", "q6_k", "q4_0"])
def test_tensors_that_have_their_type_already_are_copied(preset: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = emit(model, tmp_path / "a", preset=preset).entry_path
    again = emit(first, tmp_path / "b", preset=preset).entry_path
    assert again.read_bytes() == first.read_bytes()


def test_a_type_that_nobody_decodes_is_no_source(
    monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    source = emit(tiny_model_dir("llama", hidden=256), tmp_path / "a", preset="q1_0").entry_path
    monkeypatch.setattr(few_bits, "LEVELS", {})
    with pytest.raises(UnsupportedError, match=r"blk\.0\.attn_k\.weight: has type Q1_0, which cannot be decoded"):
        emit(source, tmp_path / "b", preset="q4_0")


def test_a_name_in_a_gguf_is_never_a_path(tiny_llama: Path, tmp_path: Path) -> None:
    from support.gguf_edit import Edits, edit_gguf

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    source = emit(tiny_llama, tmp_path / "a").entry_path
    odd = edit_gguf(
        source, tmp_path / "odd.gguf", Edits(keys={"general.basename": "x", "general.finetune": "../../up"})
    )
    assert emit(odd, tmp_path / "b", preset="q8_0").entry_path.parent == tmp_path / "b"
    assert len(list((tmp_path / "b").iterdir())) == 1
