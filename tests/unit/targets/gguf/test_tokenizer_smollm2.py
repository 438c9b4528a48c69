"""The real SmolLM2: what we write against the metadata of a file that llama.cpp's own converter made."""

from __future__ import annotations

import json

import pytest

from benchmarks.smollm2 import gguf_file, smollm2
from targets.gguf.tokenizer import tokenizer_metadata


@pytest.mark.slow
def test_every_key_is_the_same() -> None:
    import gguf

    model = smollm2()
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    metadata = tokenizer_metadata(model, config, 49152)
    ours = {entry.key: entry.value for entry in metadata.entries}
    fields = gguf.GGUFReader(gguf_file()).fields
    theirs = {key: field.contents() for key, field in fields.items() if key.startswith("tokenizer.")}
    assert len(theirs) == 12
    assert {key: ours.get(key) for key in theirs} == theirs
    assert ours.keys() - theirs.keys() == {"tokenizer.ggml.add_eos_token"}
    assert metadata.notes == []
