"""Faults that llama.cpp runs without a warning, planted into a real export: verify has to catch every one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from gguf import GGUFReader
from support.command_line import packlight
from support.gguf_edit import Edits, edit_gguf, unpermuted, zeroed

from exporter.checkpoint import resolve
from exporter.verify import VerifyOptions, bits_per_weight, verify
from exporter.verify.reference import TransformersReference
from runtime.artifact import Artifact, open_artifact
from targets import get_target
from targets.base import EmitOptions
from targets.drift import judge, thresholds_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np

    from exporter.verify.reference import Reference
    from targets.drift import Drift
    from targets.facts import ModelFacts

pytestmark = pytest.mark.slow

OPTIONS = VerifyOptions(chunks=2, threads=2)
N_LAYERS, N_HEADS, N_KV_HEADS = 30, 9, 3

FAULTS: dict[str, tuple[Edits, set[str]]] = {
    "q and k rows not permuted": (
        Edits(tensors={
            f"blk.{layer}.attn_{which}.weight": unpermuted(heads)
            for layer in range(N_LAYERS) for which, heads in (("q", N_HEADS), ("k", N_KV_HEADS))
        }),
        {"KL divergence", "KL divergence, 99th percentile", "perplexity ratio", "same top-1"},
    ),
    "BOS flag flipped": (Edits(keys={"tokenizer.ggml.add_bos_token": True}), {"BOS"}),
    "one matrix zeroed": (Edits(tensors={"blk.6.attn_v.weight": zeroed}), {"matrices"}),
    "one important matrix zeroed": (
        Edits(tensors={"blk.0.ffn_down.weight": zeroed}), {"matrices", "KL divergence", "perplexity ratio"}
    ),
    "a norm zeroed": (Edits(tensors={"blk.20.ffn_norm.weight": zeroed}), {"KL divergence"}),
    "wrong pre-tokenizer": (Edits(keys={"tokenizer.ggml.pre": "default"}), {"token ids", "chat template"}),
    "chat template dropped": (Edits(drop=("tokenizer.chat_template",)), {"chat template"}),
    "wrong end of turn": (Edits(keys={"tokenizer.chat_template": "{{ messages[0].content }}"}), {"chat template"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def source(smollm2_dir: Path) -> ModelFacts:
    """The real SmolLM2-135M-Instruct."""
    return resolve(str(smollm2_dir))


@pytest.fixture(scope="module")
def exported(source: ModelFacts, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Our own Q4_K_M of it."""
    target, options = get_target("gguf"), EmitOptions("q4_k_m", threads=2)
    assert target.check(source, options) == []
    return target.emit(source, options, tmp_path_factory.mktemp("export"), lambda *_: None)


@pytest.fixture(scope="module")
def open_source(source: ModelFacts) -> Iterator[Reference]:
    """The source in torch, loaded once; its logits are kept, so that each fault costs the artifact's run only."""
    reference = TransformersReference(source.path, threads=2)
    compute, close, kept = reference.logits, reference.close, {}

    def logits(ids: Sequence[int], first: int = 0) -> np.ndarray:
        key = (tuple(ids), first)
        if key not in kept:
            kept[key] = compute(ids, first)
        return kept[key]

    reference.logits, reference.close = logits, lambda: None
    yield reference
    close()


def failing(drift: Drift, artifact: Artifact, source: ModelFacts) -> set[str]:
    thresholds = thresholds_for(bits_per_weight(artifact, source))
    return {line.name for line in judge(drift, thresholds) if line.ok is False}


def test_an_honest_export_passes(exported: Artifact, source: ModelFacts, tmp_path: Path) -> None:
    drift = verify(exported, source, OPTIONS, lambda *_: None)
    assert failing(drift, exported, source) == set()
    # The editing itself must not be what verify catches.
    copy = edit_gguf(exported.entry_path, tmp_path / "copy.gguf", Edits())
    assert [tensor.data.tobytes() for tensor in GGUFReader(copy).tensors] == [
        tensor.data.tobytes() for tensor in GGUFReader(exported.entry_path).tensors
    ]
    assert drift.parity.chat_template is True
    assert drift.parity.n_strings > 40
    assert 0.001 < drift.mean_kl < 0.1


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(
    fault: str,
    exported: Artifact,
    source: ModelFacts,
    open_source: Reference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("exporter.verify.run.open_reference", lambda *_: open_source)
    edits, expected = FAULTS[fault]
    broken = open_artifact(edit_gguf(exported.entry_path, tmp_path / "broken.gguf", edits))
    caught = failing(verify(broken, source, OPTIONS, lambda *_: None), broken, source)
    assert expected <= caught
    if not any("weight" in name for name in edits.tensors):
        assert caught == expected  # metadata only: the logits are on the source's ids and stay the same


def packlight_verify(model: Path, source: Path, *more: str) -> tuple[int, str]:
    """Exit status and what is said."""
    ran = packlight("verify", model, "--against", source, "--chunks", "1", "--threads", "2", *more)
    return ran.returncode, ran.stdout


def failing_lines(said: str) -> set[str]:
    """Names of the lines of a report in JSON that fail."""
    return {line["name"] for line in json.loads(said)["lines"] if line["ok"] is False}


def test_the_command_line_says_which_line_failed(exported: Artifact, smollm2_dir: Path, tmp_path: Path) -> None:
    edits, expected = FAULTS["BOS flag flipped"]
    broken = edit_gguf(exported.entry_path, tmp_path / "broken.gguf", edits)
    status, for_machines = packlight_verify(broken, smollm2_dir, "--json")
    assert (status, failing_lines(for_machines)) == (1, expected)
    status, for_people = packlight_verify(broken, smollm2_dir)
    assert status == 1
    assert "BOS" in for_people.strip().splitlines()[-1]
    status, for_machines = packlight_verify(exported.entry_path, smollm2_dir, "--json")
    assert (status, failing_lines(for_machines)) == (0, set())


def test_a_gguf_source_runs_in_llama_cpp(exported: Artifact, tmp_path: Path) -> None:
    source = resolve(str(exported.entry_path))
    same = verify(exported, source, OPTIONS, lambda *_: None)
    assert (same.mean_kl, same.same_top1, failing(same, exported, source)) == (0.0, 1.0, set())
    edits, expected = FAULTS["BOS flag flipped"]
    broken = open_artifact(edit_gguf(exported.entry_path, tmp_path / "broken.gguf", edits))
    assert failing(verify(broken, source, OPTIONS, lambda *_: None), broken, source) == expected
