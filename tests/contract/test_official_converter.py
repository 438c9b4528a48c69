"""Our file of a checkpoint beside that of llama.cpp's own converter: the same metadata, and a source as any other."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support.digests import tensor_digests
from support.llama_quantize import quantized
from support.parity import emit

from targets.gguf.packed import Packed
from targets.gguf.reading import read_gguf_metadata

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CARD = """---
license: other
license_name: tiny-licence-1.0
license_link: https://example.com/LICENCE
base_model:
- Some-Org/Base-Model-7B-v2
- https://huggingface.co/other/Model
datasets: [wiki/text-103, local]
tags: [chat, tiny]
pipeline_tag: text-generation
language: [en, "no"]
model_creator: Somebody
---
# A model
"""
ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}  # fmt: skip
GENERATION = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "penalty_repeat": 1.05}

OF_THE_TOKENIZER = {"tokenizer.ggml.add_sep_token", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"}
"""Where the vocabulary is described in another way; token ids are what test_tokenizer_parity compares."""


@pytest.fixture(scope="module")
def checkpoint(tiny_model_dir: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a model card, and rope factors that become a tensor."""
    directory = tmp_path_factory.mktemp("checkpoint") / "Tiny-Llama-2M-Instruct-v0.1"
    shutil.copytree(tiny_model_dir("llama2", hidden=256, rope_parameters=ROPE, public_config=True), directory)
    (directory / "README.md").write_text(CARD, encoding="utf-8")
    path = directory / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | GENERATION), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def official(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The converter's file, in half precision."""
    from benchmarks.tools import converter

    script, environment = converter()
    out = tmp_path_factory.mktemp("official") / "model.gguf"
    command = [sys.executable, str(script), str(checkpoint), "--outtype", "f16", "--outfile", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def said(path: Path) -> dict[str, tuple[Any, ...]]:
    """Value and type of every key."""
    entries = read_gguf_metadata(path)
    return {
        entry.key: (list(entry.value) if isinstance(entry.value, Packed) else entry.value, entry.type, entry.subtype)
        for entry in entries
    }


def test_the_metadata_are_those_of_the_converter(checkpoint: Path, official: Path, tmp_path: Path) -> None:
    ours, theirs = said(emit(checkpoint, tmp_path, preset="f16").entry_path), said(official)
    assert "general.base_model.1.name" in theirs
    assert {key for key, value in theirs.items() if ours.get(key) != value} == OF_THE_TOKENIZER
    assert [key for key in ours if key not in theirs and not key.startswith("tokenizer.")] == []


@pytest.mark.parametrize("preset", ["q4_k_m", "q8_0"])
def test_the_converters_file_is_requantized_as_by_llama_quantize(preset: str, official: Path, tmp_path: Path) -> None:
    theirs = tensor_digests(quantized(official, preset, tmp_path / "theirs.gguf"))
    assert "rope_freqs.weight" in theirs
    assert tensor_digests(emit(official, tmp_path, preset=preset).entry_path) == theirs
