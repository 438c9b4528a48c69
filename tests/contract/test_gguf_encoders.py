"""Every encoder that becomes GGUF: a random tiny model's embeddings or labels in llama.cpp beside torch's."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.nonsense import refused
from support.parity import emit
from support.tiny_encoders import POSITIONS, difference, edit_json, padded, torch_outputs
from support.tiny_gguf_encoders import CASES, CLASSIFIER, make_case

from exporter.checkpoint import resolve
from runtime.artifact import open_artifact
from runtime.errors import ModelError, UnsupportedError
from runtime.measure import measure
from runtime.measurement import RunOptions, Trials
from runtime.sessions import open_session
from targets.gguf.architectures import ARCHITECTURES
from targets.gguf.outline import outlines
from targets.processor import Processor

if TYPE_CHECKING:
    from pathlib import Path

EXACTLY = RunOptions(threads=1, kv_type="f32")
"""Without flash attention, which computes in f16."""
NEAR = 0.05
GENERATOR = np.random.default_rng(0)
TEXTS = [[2, *map(int, GENERATOR.integers(5, 190, length)), 3] for length in (3, 40, POSITIONS - 2)]
"""Longer than ModernBERT's window, and to the last position."""

# Loading and saving torch's models makes it warn of its own future.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def expected(directory: Path, ids: list[int], pooling: str) -> dict[str, np.ndarray]:
    """What an artifact has to give, by torch."""
    found = torch_outputs(directory, *padded([ids], 0))
    if "logits" in found:
        return {"logits": found["logits"][0]}
    states = found["last_hidden_state"][0]
    if not pooling:
        return {"last_hidden_state": states}
    sentence = states.mean(axis=0) if pooling == "mean" else states[0]
    return {"last_hidden_state": states, "sentence_embedding": sentence / np.linalg.norm(sentence)}


def worst_difference(found: list[dict[str, np.ndarray]], wanted: list[dict[str, np.ndarray]], key: str) -> float:
    """The largest difference over all texts, relative to the largest number; shapes have to be equal."""
    assert [outputs[key].shape for outputs in found] == [outputs[key].shape for outputs in wanted]
    ours, theirs = (np.concatenate([outputs[key].ravel() for outputs in side]) for side in (found, wanted))
    return difference(ours, theirs)


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_the_source(name: str, tmp_path: Path) -> None:
    directory = make_case(name, tmp_path / "model")
    (out := tmp_path / "out").mkdir()
    artifact = emit(directory, out)
    session: Any
    with contextlib.closing(open_session(artifact, EXACTLY)) as session:
        assert session.max_tokens == POSITIONS
        wanted = [expected(directory, ids, CASES[name].pooling) for ids in TEXTS]
        found = [session.encode(ids) for ids in TEXTS]
        assert {tuple(outputs) for outputs in (*found, *wanted)} == {session.outputs}
    worst = {key: worst_difference(found, wanted, key) for key in session.outputs}
    assert max(worst.values()) <= CASES[name].limit, worst


@pytest.mark.parametrize("name", CASES)
def test_eight_bits_have_the_planned_size_and_are_near(name: str, tmp_path: Path) -> None:
    directory = make_case(name, tmp_path / "model")
    (out := tmp_path / "out").mkdir()
    artifact = emit(directory, out, preset="q8_0")
    wanted = [expected(directory, ids, CASES[name].pooling) for ids in TEXTS]
    session: Any
    with contextlib.closing(open_session(artifact, RunOptions(threads=1))) as session:
        found = [session.encode(ids) for ids in TEXTS]
    assert max(worst_difference(found, wanted, key) for key in session.outputs) <= NEAR
    (planned,) = outlines(resolve(str(directory)), ["q8_0"]).outlines
    assert planned.file_bytes == artifact.entry_path.stat().st_size
    assert planned.encoder
    footprint = planned.footprint(RunOptions(), Processor.here())
    assert footprint is not None
    assert footprint.kv_cache_bytes == 0
    # Alone in another directory the file says by itself what it is for.
    (bare := tmp_path / "bare").mkdir()
    artifact.entry_path.rename(bare / "m.gguf")
    assert open_artifact(bare / "m.gguf").contract == {"task": CASES[name].task}


@pytest.mark.parametrize("context", [16, POSITIONS])
@pytest.mark.parametrize("name", ["bert", "roberta-classifier", "distilbert", "modernbert", "nomic", "jina"])
def test_the_peak_of_memory_is_as_planned(name: str, context: int, tmp_path: Path) -> None:
    """Of a process of its own. benchmarks/estimate_accuracy.py has larger models, and asks for less."""
    directory, options = make_case(name, tmp_path / "model"), RunOptions(threads=1, context=context)
    (out := tmp_path / "out").mkdir()
    artifact = emit(directory, out, preset="f16")
    (planned,) = outlines(resolve(str(directory)), ["f16"]).outlines
    footprint = planned.footprint(options, Processor.here())
    assert footprint is not None
    found = measure(artifact, options, Trials(None, 1, 1))
    assert footprint.peak_bytes == pytest.approx(found.peak_rss_bytes, rel=0.1)


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_of_the_tiny_model_matters(name: str, tmp_path: Path) -> None:
    """A tensor that changes nothing could be forgotten, and the parity test would not see it."""
    import torch
    import transformers

    directory = make_case(name, tmp_path)
    kind = getattr(transformers, class_of(name))
    model = kind.from_pretrained(directory, dtype=torch.float32).eval()
    ids, generator = torch.tensor([TEXTS[1]]), torch.Generator().manual_seed(1)
    silent = []

    def output() -> torch.Tensor:
        found = model(ids)
        return found.logits if CASES[name].task == CLASSIFIER else found.last_hidden_state

    with torch.no_grad():
        before = output()
        for parameter_name, parameter in model.named_parameters():
            if "pooler." in parameter_name and CASES[name].task != CLASSIFIER:
                continue  # no embedding reads it
            kept = parameter.clone()
            parameter.add_(torch.randn(parameter.shape, generator=generator) * kept.abs().mean())
            moved = float((output() - before).abs().max() / before.abs().max())
            parameter.copy_(kept)
            if moved <= 2 * CASES[name].limit:
                silent.append(f"{parameter_name}: {moved:.1e}")
    # What is added to every key changes no attention.
    assert [line for line in silent if not line.split(":")[0].endswith(("key.bias", "k_lin.bias", "k_proj.bias"))] == []


@pytest.mark.parametrize("name", CASES)
def test_nonsense_in_config_json_is_one_error(name: str, tmp_path: Path) -> None:
    directory = make_case(name, tmp_path)
    architecture = ARCHITECTURES[class_of(name)]
    plain = json.loads((directory / "config.json").read_text())
    assert refused(architecture, plain, tmp_path) > len(plain)


def test_every_encoder_has_a_tiny_model() -> None:
    assert {class_of(name) for name in CASES} == {name for name, entry in ARCHITECTURES.items() if entry.encoder}


def class_of(name: str) -> str:
    """The model class of a case."""
    case = CASES[name]
    return case.family + ("ForSequenceClassification" if case.task == CLASSIFIER else "Model")


@pytest.mark.parametrize(
    ("case", "change", "says"),
    [
        ("bert", {"hidden_act": "relu"}, "'relu' is not 'gelu'"),
        ("distilbert", {"activation": "relu"}, "'relu' is not 'gelu'"),
        ("bert", {"position_embedding_type": "relative_key"}, "computes only 'absolute'"),
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("roberta", {"pad_token_id": 65}, "'pad_token_id' is 65, with 66 positions"),
        ("roberta", {"pad_token_id": None}, "'pad_token_id' is None"),
        ("modernbert-classifier", {"classifier_bias": True}, "classifier_bias"),
        ("modernbert-hub", {"layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 2}, "every so manieth"),
        ("nomic", {"n_embd": 32}, "of the code that the model brings along"),
        ("jina", {"lora_adaptations": ["a"]}, "are part of the weights"),
        ("nomic", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e3}}, "'linear'"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(
    case: str, change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    directory = make_case(case, tmp_path / "model")
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises((ModelError, UnsupportedError), match=says):
        emit(directory, tmp_path)


def test_a_pooling_that_is_not_known_is_left_to_the_user(tmp_path: Path) -> None:
    directory = make_case("bert", tmp_path / "model")
    edit_json(directory / "1_Pooling" / "config.json", pooling_mode_mean_tokens=False, pooling_mode_max_tokens=True)
    (out := tmp_path / "out").mkdir()
    artifact = emit(directory, out)
    assert any("names no pooling" in note for note in artifact.contract["notes"])
    session: Any
    with contextlib.closing(open_session(artifact, EXACTLY)) as session:
        assert session.outputs == ("last_hidden_state",)


def test_lengths_of_embeddings_are_the_models_own(tmp_path: Path) -> None:
    from support.tiny_encoders import write_pooling

    directory = make_case("bert", tmp_path / "model")
    write_pooling(directory, "mean", normalize=False)
    (out := tmp_path / "out").mkdir()
    artifact = emit(directory, out)
    assert any("--embd-normalize" in note for note in artifact.contract["notes"])
    states = torch_outputs(directory, *padded([TEXTS[0]], 0))["last_hidden_state"][0]
    session: Any
    with contextlib.closing(open_session(artifact, EXACTLY)) as session:
        found = session.encode(TEXTS[0])["sentence_embedding"]
    assert abs(np.linalg.norm(found) - 1) > 0.1
    assert difference(found, states.mean(axis=0)) <= CASES["bert"].limit


def test_another_task_is_refused(tmp_path: Path) -> None:
    from support.tiny_encoders import make_tiny_encoder

    directory = make_tiny_encoder(tmp_path / "model", "Bert", "token-classification")
    with pytest.raises(UnsupportedError, match=r"BertForTokenClassification.* none for each of its tokens"):
        emit(directory, tmp_path)
