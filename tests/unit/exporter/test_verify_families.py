"""Verify on tiny random models of every family: an honest export passes, tokenizer faults of one do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.gguf_edit import Edits, edit_gguf

from exporter.checkpoint import resolve
from exporter.verify import VerifyOptions, verify
from runtime.artifact import Artifact, open_artifact
from targets import get_target
from targets.base import EmitOptions
from targets.drift import judge, thresholds_for

if TYPE_CHECKING:
    from pathlib import Path

    from targets.facts import ModelFacts


def export(model: Path, out: Path) -> tuple[ModelFacts, Artifact]:
    facts, target, options = resolve(str(model)), get_target("gguf"), EmitOptions("q8_0", threads=1)
    assert target.check(facts, options) == []
    return facts, target.emit(facts, options, out, lambda *_: None)


def failing(artifact: Artifact, facts: ModelFacts) -> set[str]:
    drift = verify(artifact, facts, VerifyOptions(chunks=1, context=128, threads=1), lambda *_: None)
    return {line.name for line in judge(drift, thresholds_for(8.5)) if line.ok is False}


def test_an_honest_export_of_every_family_passes(tiny_any: Path, tmp_path: Path) -> None:
    facts, artifact = export(tiny_any, tmp_path)
    assert failing(artifact, facts) == set()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("tokenizer.ggml.add_space_prefix", False, "token ids"),
        ("tokenizer.ggml.add_bos_token", False, "BOS"),
        ("tokenizer.ggml.eos_token_id", 0, "chat template"),
    ],
)
def test_a_wrong_sentencepiece_key_is_caught(
    key: str, value: object, expected: str, tiny_llama2: Path, tmp_path: Path
) -> None:
    facts, artifact = export(tiny_llama2, tmp_path)
    broken = edit_gguf(artifact.entry_path, tmp_path / "broken.gguf", Edits(keys={key: value}))
    assert expected in failing(open_artifact(broken), facts)
