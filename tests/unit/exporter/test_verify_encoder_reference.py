"""Encoders' sources in torch, and the sentence embedding against transformers' own outputs pooled by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.tiny_encoders import make_tiny_bert, write_pooling

from exporter.verify.encoder_reference import TransformersEncoder
from runtime.errors import ModelError
from targets.pooling import Pooling, read_pooling

MINILM = Path(__file__).parents[3] / ".cache" / "models" / "all-MiniLM-L6-v2"
IDS = [2, 10, 40, 60, 61, 62, 3]


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_outputs_are_those_of_transformers(tmp_path: Path, mode: str) -> None:
    import torch
    from transformers import AutoModel

    directory = make_tiny_bert(tmp_path / "m", pooling=mode)
    reference = TransformersEncoder(directory, "feature-extraction", threads=1)
    found = reference.encode(IDS)
    reference.close()
    with torch.no_grad():
        states = AutoModel.from_pretrained(directory)(torch.tensor([IDS])).last_hidden_state[0].numpy()
    np.testing.assert_allclose(found["last_hidden_state"], states, atol=1e-5)
    pooled = sum(states) / len(states) if mode == "mean" else states[0]
    np.testing.assert_allclose(found["sentence_embedding"], pooled / np.sqrt((pooled**2).sum()), atol=1e-5)
    assert (reference.max_tokens, reference.n_vocab) == (64, 193)
    assert reference.tokenize("ab", add_special=True)[0] == 2


@pytest.mark.parametrize(
    ("task", "shape"), [("text-classification", (3,)), ("token-classification", (len(IDS), 3))]
)  # fmt: skip
def test_classifiers_give_logits(tmp_path: Path, task: str, shape: tuple[int, ...]) -> None:
    reference = TransformersEncoder(make_tiny_bert(tmp_path / "m", task), task)
    found = reference.encode(IDS)
    reference.close()
    assert list(found) == ["logits"]
    assert found["logits"].shape == shape


def test_missing_weights_are_refused_unless_nothing_reads_them(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    def without(directory: Path, part: str) -> Path:
        kept = {name: tensor for name, tensor in load_file(directory / "model.safetensors").items() if part not in name}
        save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})
        return directory

    embedding = without(make_tiny_bert(tmp_path / "a"), "pooler.")
    TransformersEncoder(embedding, "feature-extraction").close()
    with pytest.raises(ModelError, match=r"4 weights are missing, the first is bert\.pooler"):
        TransformersEncoder(embedding, "text-classification")
    # the classifier reads the pooler
    with pytest.raises(ModelError, match=r"2 weights are missing, the first is bert\.pooler\.dense\.bias"):
        TransformersEncoder(
            without(make_tiny_bert(tmp_path / "b", "text-classification"), "pooler."), "text-classification"
        )
    with pytest.raises(ModelError, match="weights are missing"):
        TransformersEncoder(without(make_tiny_bert(tmp_path / "c"), "layer.1.output.dense"), "feature-extraction")


def test_roberta_counts_positions_from_behind_its_padding(tmp_path: Path) -> None:
    import transformers

    directory = make_tiny_bert(tmp_path / "m")
    config = transformers.RobertaConfig(
        vocab_size=193, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=66, pad_token_id=1,
    )  # fmt: skip
    transformers.RobertaModel(config).save_pretrained(directory)
    reference = TransformersEncoder(directory, "feature-extraction")
    assert reference.max_tokens == 64
    assert np.isfinite(reference.encode([5] * 64)["last_hidden_state"]).all()
    reference.close()


def test_pooling_is_read_as_sentence_transformers_writes_it(tmp_path: Path) -> None:
    assert read_pooling(tmp_path) is None
    write_pooling(tmp_path, "mean")
    assert read_pooling(tmp_path) == Pooling("mean", normalize=True)
    write_pooling(tmp_path, "cls", normalize=False)
    assert read_pooling(tmp_path) == Pooling("cls", normalize=False)
    write_pooling(tmp_path, "max")
    assert read_pooling(tmp_path) is None
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    assert read_pooling(tmp_path) == Pooling("cls", normalize=True)
    both = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(both))
    assert read_pooling(tmp_path) is None
    write_pooling(tmp_path, "mean")
    (tmp_path / "modules.json").unlink()
    assert read_pooling(tmp_path) == Pooling("mean", normalize=False)
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]')
    assert read_pooling(tmp_path) is None
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(ModelError, match=r"modules\.json: cannot be read as JSON"):
        read_pooling(tmp_path)


def test_pooling_by_hand() -> None:
    states = np.array([[3.0, 0.0], [0.0, 8.0], [3.0, 4.0]], np.float32)
    np.testing.assert_allclose(Pooling("mean", normalize=False)(states), [2.0, 4.0])
    np.testing.assert_allclose(Pooling("mean", normalize=True)(states), np.array([1.0, 2.0]) / np.sqrt(5), rtol=1e-6)
    np.testing.assert_allclose(Pooling("cls", normalize=False)(states), [3.0, 0.0])
    np.testing.assert_array_equal(Pooling("cls", normalize=True)(0 * states), [0.0, 0.0])


@pytest.mark.slow
@pytest.mark.skipif(not MINILM.is_dir(), reason="python -m benchmarks.models minilm writes it")
def test_minilm_ranks_sentences_by_meaning() -> None:
    reference = TransformersEncoder(MINILM, "feature-extraction", threads=2)
    texts = ("A cat sits on the sofa.", "A kitten lies on the couch.", "The bank raised its interest rates.")
    vectors = [reference.encode(reference.tokenize(text, add_special=True))["sentence_embedding"] for text in texts]
    reference.close()
    assert [float(vector @ vector) for vector in vectors] == pytest.approx([1.0] * 3, abs=1e-5)
    assert vectors[0] @ vectors[1] > 0.5 > 0.2 > vectors[0] @ vectors[2]
