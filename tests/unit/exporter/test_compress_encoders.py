"""Encoders through a recipe: layers out, zeros in, and what was lost learned back."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import sys
import types
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from support.forked import killed
from support.parity import emit
from support.recipes import opened_subject, recipe, run
from support.removal import kept_rows
from support.tiny_encoders import FAMILIES, edit_json, make_tiny_encoder, write_pooling

from exporter.by_recipe import NamedRecipe
from exporter.calibration import encoder_texts
from exporter.checkpoint import resolve
from exporter.compress.mapped import open_mapped
from exporter.compress.stack import find_attention, find_layers, layers_of, name_of_layers
from exporter.compress.training import lessons as lessons_module
from exporter.compress.training.features import followed
from exporter.compress.training.lessons import lessons
from exporter.compress.training.losses import label_divergence
from exporter.compress.training.predictions import arguments, pooled, predictions
from exporter.compress.training.student import nothing_dropped
from exporter.compress.walk import skipped
from exporter.pipeline import ExportRequest, export
from exporter.progress import SilentReporter
from exporter.steps import Text
from exporter.verify import VerifyOptions
from exporter.verify.encoder import cut_texts
from runtime.errors import ModelError, UserError
from runtime.measurement import RunOptions
from runtime.sessions import open_session
from targets.ongrid import RECIPE
from targets.pooling import Pooling
from targets.text import default_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from exporter.compress.subject import Subject

EMBEDDINGS, LABELS, TOKENS = "feature-extraction", "text-classification", "token-classification"
SPACED = {"step": "remove", "units": "layers", "share": 0.5, "scores": "spaced"}
"""Of four layers, counted from 0: 0 and 3 stay."""
TEXT = {"source": "help", "chunks": 64, "tokens": 24}
SHAPE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
"""Of families that support.tiny_encoders does not make."""
DISTILL = {"step": "distill", "updates": 60, "batch": 8, "learning_rate": 2e-3, "text": TEXT}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Four layers of a family for a task, made once; embeddings are means of length one."""
    made: dict[str, Path] = {}

    def make(family: str = "Bert", task: str = EMBEDDINGS, **more: Any) -> Path:
        key = json.dumps([family, task, more], sort_keys=True)
        if key not in made:
            layers = {"n_layers" if family == "DistilBert" else "num_hidden_layers": 4}
            # as small as trained ones begin: what deep random networks give is as good as noise
            shape = {"initializer_range": 0.1, **layers, **more}
            made[key] = make_tiny_encoder(tmp_path_factory.mktemp("encoder") / "model", family, task, **shape)
            if task == EMBEDDINGS:
                write_pooling(made[key], "mean")
        return made[key]

    return make


@pytest.fixture
def subject(encoder: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[..., Subject]]:
    """Opened subjects of a task whose one step is a distill step."""
    found: list[Subject] = []

    def make(task: str = EMBEDDINGS, family: str = "Bert", **step: Any) -> Subject:
        found.append(opened_subject(encoder(family, task), tmp_path, {**DISTILL, **step}))
        return found[-1]

    yield make
    for one in found:
        one.source.close()


def outputs(directory: Path, ids: list[int]) -> np.ndarray:
    """What transformers gives for a text: logits, or the last hidden states."""
    import transformers

    name = json.loads((directory / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, name).from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        found = model(torch.tensor([ids]))
    return (found.logits if "logits" in found else found.last_hidden_state)[0].numpy()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", [EMBEDDINGS, LABELS])
def test_layers_are_taken_out(family: str, task: str, encoder: Callable[..., Path], tmp_path: Path) -> None:
    source, out = encoder(family, task), tmp_path / "out"
    (report,) = run(source, out, SPACED)
    ids = [2, 30, 40, 50, 60, 3]
    room = tmp_path / "room"
    room.mkdir()
    model = open_mapped(resolve(str(source)), room, task).model
    layers = layers_of(model)
    assert name_of_layers(model).endswith(("encoder.layer.", "transformer.layer."))
    for number in (1, 2):  # as if they were not there
        layers[number].forward = lambda hidden, *_, **__: hidden
    with torch.no_grad():
        expected = model(torch.tensor([ids]))
    expected = (expected.logits if task == LABELS else expected.last_hidden_state)[0].numpy()
    np.testing.assert_allclose(outputs(out, ids), expected, atol=1e-5)
    key = "n_layers" if family == "DistilBert" else "num_hidden_layers"  # other readers know one name alone
    assert json.loads((out / "config.json").read_text())[key] == 2
    assert report["mean_kl"] is report["perplexity_ratio"] is report["same_top1"] is None
    assert (report["label_agreement"] is None) == (task == EMBEDDINGS)
    assert (report["mean_cosine"] is None) == (task == LABELS)
    assert report["notes"] == ("removed layers, counted from 0: 1, 2",)
    files = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == files | {RECIPE}


@pytest.mark.parametrize("family", ["Bert", "DistilBert", "ModernBert"])
@pytest.mark.parametrize("task", [EMBEDDINGS, LABELS, TOKENS])
def test_layers_that_are_missed_least_go(task: str, family: str, encoder: Callable[..., Path], tmp_path: Path) -> None:
    """Of four the one without which the outputs are nearest to before; looked at here by hand."""
    source = encoder(family, task)
    step = {"step": "remove", "units": "layers", "count": 1, "scores": "greedy"}
    (report,) = run(source, tmp_path / "out", step, calibration=TEXT)
    room = tmp_path / "room"
    room.mkdir()
    with contextlib.closing(open_mapped(resolve(str(source)), room, task)) as opened:
        texts = encoder_texts(opened, Text.model_validate(TEXT), 0)
        layers = layers_of(opened.model)

        def found() -> list[np.ndarray]:
            if task == EMBEDDINGS:
                return [opened.encode(ids)["sentence_embedding"] for ids in texts]
            logits = [opened.encode(ids)["logits"].astype(np.float64) for ids in texts]
            inner = [one[1:-1] if task == TOKENS else one for one in logits]  # a special token's label means nothing
            return [one - np.log(np.exp(one).sum(-1, keepdims=True)) for one in inner]

        whole, far = found(), []
        for layer in layers:
            with skipped([layer]):
                pairs = zip(whole, found(), strict=True)
                far.append(
                    sum(
                        np.square(a - b).sum() if task == EMBEDDINGS else (np.exp(a) * (a - b)).sum(-1).mean()
                        for a, b in pairs
                    )
                )
    assert report["notes"] == (f"removed layers, counted from 0: {np.argmin(far)}",)
    with pytest.raises(UserError, match=r"calibration: .* writes no text itself; name a text, a jsonl file"):
        run(source, tmp_path / "again", step, calibration={})


def forward_of(layer: Any) -> tuple[Any, Any]:
    """The two matrices of a feed-forward."""
    return (layer.ffn.lin1, layer.ffn.lin2) if hasattr(layer, "ffn") else (layer.intermediate.dense, layer.output.dense)


@pytest.mark.parametrize("scores", ["magnitude", "activation"])
@pytest.mark.parametrize(("family", "task"), [*((one, EMBEDDINGS) for one in FAMILIES), ("DistilBert", TOKENS)])
def test_neurons_removed_are_neurons_masked(
    family: str, task: str, scores: str, encoder: Callable[..., Path], tmp_path: Path
) -> None:
    size = {"hidden_dim" if family == "DistilBert" else "intermediate_size": 64}
    source, out = encoder(family, task, **size), tmp_path / "out"
    # The weights alone say which they are where nothing is repaired: no text is asked for.
    text = {} if scores == "magnitude" else {"calibration": TEXT}
    (report,) = run(source, out, {**NEURONS, "scores": scores, "repair": False}, **text)
    assert report["notes"] == ("32 of 64 neurons are left in every layer",)
    assert json.loads((out / "config.json").read_text())[next(iter(size))] == 32
    room = tmp_path / "room"
    room.mkdir()
    whole, small = (open_mapped(resolve(str(one)), room, task).model for one in (source, out))
    for before, after in zip(layers_of(whole), layers_of(small), strict=True):
        (made, read), (kept, _) = forward_of(before), forward_of(after)
        gone = torch.ones(64, dtype=torch.bool)
        gone[kept_rows(made.weight, kept.weight)] = False
        assert int(gone.sum()) == 32
        if scores == "magnitude":
            sizes = made.weight.square().sum(1) + read.weight.square().sum(0)
            assert sizes[gone].max() < sizes[~gone].min()
        read.weight.data[:, gone] = 0
    ids = torch.tensor([[2, 30, 40, 50, 60, 3]])
    with torch.no_grad():
        ours, theirs = (next(iter(model(ids).values())).numpy() for model in (small, whole))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert report["n_params"] == resolve(str(out)).n_stored_params


@pytest.mark.parametrize(
    ("family", "format_name", "preset"),
    [*((family, *kind) for family in ("Bert", "DistilBert") for kind in (("onnx", "fp32"), ("torchscript", "fp32"))),
     *((family, "gguf", "f32") for family in ("Bert", "DistilBert", "NomicBert", "JinaEmbeddingsV3"))],
)  # fmt: skip
def test_an_encoder_with_fewer_neurons_is_exported(
    family: str, format_name: str, preset: str, encoder: Callable[..., Path], tmp_path: Path
) -> None:
    size: dict[str, Any] = {"hidden_dim" if family == "DistilBert" else "intermediate_size": 64}
    if family == "JinaEmbeddingsV3":
        size |= {"type_vocab_size": 1, "max_position_embeddings": 64}
    named_anew = family in ("NomicBert", "JinaEmbeddingsV3")  # as transformers names weights
    source = encoder(family, **size, **({"original": False} if named_anew else {}))
    out, ids = tmp_path / "out", [2, 30, 40, 50, 60, 3]
    run(source, out, NEURONS, calibration=TEXT)
    (there := tmp_path / "artifact").mkdir()
    session: Any
    with contextlib.closing(open_session(emit(out, there, format_name, preset), RunOptions(threads=1))) as session:
        found = session.encode(ids)["last_hidden_state"]
    np.testing.assert_allclose(found, outputs(out, ids), atol=5e-3)  # llama.cpp's GELU is a table of halves


def test_a_forward_that_is_built_otherwise(encoder: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="ModernBertEncoderLayer: its feed-forward is of another kind; neurons"):
        run(encoder("ModernBert"), tmp_path / "out", NEURONS, calibration=TEXT)
    assert sorted(path.name for path in tmp_path.iterdir()) == []


def test_neurons_left_make_up_for_those_that_are_gone(encoder: Callable[..., Path], tmp_path: Path) -> None:
    away = {}
    for repair in (False, True):
        step = {**NEURONS, "repair": repair}
        (report,) = run(encoder(intermediate_size=64), tmp_path / str(repair), step, calibration=TEXT)
        away[repair] = 1 - report["mean_cosine"]
    assert away[True] < 0.9 * away[False]


@pytest.mark.parametrize("scores", [None, "activation"])
@pytest.mark.parametrize("family", ["Bert", "ModernBert"])
def test_layers_that_change_the_hidden_state_least_go(
    family: str, scores: str | None, encoder: Callable[..., Path], tmp_path: Path
) -> None:
    """One that adds nothing, as its output matrices are zero."""
    source = tmp_path / "source"
    shutil.copytree(encoder(family), source)
    tensors, places = load_file(source / "model.safetensors"), ("layer.2.", "layers.2.")
    ends = ("output.dense.weight", "output.dense.bias", "Wo.weight")
    for name, tensor in tensors.items():
        if any(place in name for place in places) and name.endswith(ends):
            tensor[:] = 0
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    step = {"step": "remove", "units": "layers", "count": 1} | ({"scores": scores} if scores else {})
    (report,) = run(source, tmp_path / "out", step, calibration=TEXT)
    assert report["notes"] == ("removed layers, counted from 0: 2",)


@pytest.mark.parametrize(
    ("task", "family", "more"),
    [
        (EMBEDDINGS, "Bert", {}),
        (EMBEDDINGS, "Roberta", {"loss": "cosine", "features": {"hidden": 0.5}}),
        (EMBEDDINGS, "DistilBert", {"train": "lora", "rank": 4, "learning_rate": 1e-2}),
        (LABELS, "Bert", {"loss": "reverse-kl", "features": {"attention": 1.0}}),
        (LABELS, "DistilBert", {"accumulate": 2, "temperature": 2.0}),
        (TOKENS, "XLMRoberta", {"loss": "jsd", "gradient_checkpointing": True}),
    ],
)
def test_what_was_lost_comes_back(
    task: str, family: str, more: dict[str, Any], encoder: Callable[..., Path], tmp_path: Path
) -> None:
    removed, distilled = run(encoder(family, task), tmp_path / "out", SPACED, {**DISTILL, **more})
    (note,) = distilled["notes"]
    before, after = (float(word) for word in note.split() if "." in word)
    assert after < 0.8 * before  # on text that was not learned from
    if task == EMBEDDINGS:
        assert 1 - distilled["mean_cosine"] < 0.9 * (1 - removed["mean_cosine"])
    else:
        assert distilled["label_agreement"] is not None
    assert distilled["n_params"] == removed["n_params"]


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("loss", ["forward-kl", "reverse-kl", "jsd"])
def test_divergence_of_labels_by_hand(loss: str, several: bool) -> None:
    teacher, student = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[0.0, 0.0]])
    # of the two labels 1/4 and 3/4 where they exclude each other; else the first is 1/2 in both, the second 3/4 and 1/2
    p, q = (0.25, 0.75), (0.5, 0.5)
    mean = [(a + b) / 2 for a, b in zip(p, q, strict=True)]

    def kl(a: Any, b: Any) -> float:
        return sum(one * math.log(one / other) for one, other in zip(a, b, strict=True))

    by_hand = {"forward-kl": kl(p, q), "reverse-kl": kl(q, p), "jsd": (kl(p, mean) + kl(q, mean)) / 2}[loss]
    found = label_divergence(teacher, student, loss, 1.0, several=several)
    assert found.tolist() == pytest.approx([by_hand], rel=1e-5)
    # Logits that a temperature of two halves, and the square of it
    warm = label_divergence(2 * teacher, 2 * student, loss, 2.0, several=several)
    assert warm.tolist() == pytest.approx([4 * by_hand], rel=1e-5)


def test_a_single_label_is_a_score() -> None:
    found = label_divergence(
        torch.tensor([[1.0], [2.0]]), torch.tensor([[4.0], [2.0]]), "forward-kl", 3.0, several=False
    )
    assert found.tolist() == [9.0, 0.0]


@pytest.mark.parametrize("mode", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_texts_are_pooled_as_one_by_one(mode: str, normalize: bool) -> None:
    pooling, lengths = Pooling(mode, normalize), (3, 7, 1)
    states = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * length + [0] * (7 - length) for length in lengths])
    found = pooled(states, mask, pooling).numpy()
    expected = [pooling(one[:length].numpy()) for one, length in zip(states, lengths, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    if mode == "mean" and not normalize:
        np.testing.assert_allclose(pooled(states, mask, None).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
@pytest.mark.parametrize("task", [EMBEDDINGS, LABELS, TOKENS])
def test_texts_of_a_batch_do_not_see_each_other(task: str, family: str, subject: Callable[..., Subject]) -> None:
    """The loss of texts of unlike lengths is that of each alone, and so is that of what is followed."""
    one = subject(task, family, features={"hidden": 1.0, "attention": 1.0})
    step = one.recipe.steps[0]
    learned, held_out = lessons(step, one)
    with torch.no_grad():
        for parameter in layers_of(one.model)[1].parameters():
            parameter.mul_(1.3)
    predicted = predictions(step, one)
    pieces = sorted(learned, key=lambda piece: len(piece["input_ids"]))[::10]
    assert len({len(piece["input_ids"]) for piece in pieces}) > 2

    def losses(batch: dict[str, torch.Tensor], features: Any) -> tuple[float, float]:
        with torch.no_grad(), features.watching():
            output = one.model(**arguments(batch))
            said = predicted.said(features.teach(batch), batch)
            return float(predicted.loss(output, {**batch, **said})), float(features.loss(batch))

    with followed(step, one, held_out.collate([held_out[0]])) as features:
        together = losses(learned.collate(pieces), features)
        alone = np.array([losses(learned.collate([piece]), features) for piece in pieces])
    tokens = np.array([len(piece["input_ids"]) for piece in pieces])
    of_each = tokens - 2 if task == TOKENS else np.ones(6)  # without special ones
    assert together[0] > 0
    assert together[0] == pytest.approx(np.average(alone[:, 0], weights=of_each), rel=1e-4)
    assert together[1] == pytest.approx(np.average(alone[:, 1], weights=tokens), rel=1e-4)


def test_decoders_that_classify_see_where_a_text_ends(encoder: Callable[..., Path], tmp_path: Path) -> None:
    """Its label is that of a text's last token, which is found by what texts are filled up with."""
    import transformers

    source = changed(encoder("Bert", LABELS), tmp_path / "source")
    config = transformers.LlamaConfig(
        vocab_size=200, num_labels=3, pad_token_id=1, initializer_range=0.05, num_hidden_layers=3, **SHAPE
    )
    torch.manual_seed(0)
    transformers.LlamaForSequenceClassification(config).save_pretrained(source)
    room = tmp_path / "room"
    room.mkdir()
    one = opened_subject(source, room, DISTILL)
    learned, _ = lessons(one.recipe.steps[0], one)
    batch = learned.collate([learned[number] for number in range(8)])
    assert batch["attention_mask"].min() == 0
    with torch.no_grad():
        found = predictions(one.recipe.steps[0], one).loss(one.model(**arguments(batch)), batch)
    one.source.close()
    assert float(found) == pytest.approx(0, abs=1e-6)
    removed, distilled = run(source, tmp_path / "out", {**SPACED, "count": 1, "share": None}, DISTILL)
    assert distilled["label_agreement"] > removed["label_agreement"]


@pytest.mark.parametrize("task", [EMBEDDINGS, LABELS, TOKENS])
def test_lessons_are_what_the_source_says(
    task: str, encoder: Callable[..., Path], subject: Callable[..., Subject]
) -> None:
    one = subject(task)
    learned, held_out = lessons(one.recipe.steps[0], one)
    assert (len(learned), len(held_out)) == (60, 4)
    assert max(len(piece["input_ids"]) for piece in held_out) == 24  # it judges more than the shortest
    for piece in (learned[0], learned[59], held_out[3]):
        ids = piece["input_ids"].tolist()
        assert (ids[0], ids[-1]) == (2, 3)  # [CLS] and [SEP]
        assert len(ids) <= 24
        expected = outputs(encoder("Bert", task), ids)
        if task == EMBEDDINGS:
            expected = Pooling("mean", normalize=True)(expected)
        np.testing.assert_allclose(piece["outcomes"].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("task", [EMBEDDINGS, LABELS, TOKENS])
def test_a_teacher_that_is_followed_says_there_what_it_predicts(task: str, subject: Callable[..., Subject]) -> None:
    one = subject(task, features={"hidden": 1.0})
    step = one.recipe.steps[0]
    learned, held_out = lessons(step, one)
    expected, _ = lessons(step.model_copy(update={"features": None}), one)
    assert learned[0].keys() == {"input_ids"}
    assert "outcomes" in held_out[0]
    batch, of_before = (which.collate([which[number] for number in range(6)]) for which in (learned, expected))
    assert batch["attention_mask"].min() == 0
    with followed(step, one, held_out.collate([held_out[0]])) as features:
        said = predictions(step, one).said(features.teach(batch), batch)
    torch.testing.assert_close(said["outcomes"], of_before["outcomes"], rtol=1e-4, atol=1e-5)


def test_lessons_come_back_from_the_disk(subject: Callable[..., Subject]) -> None:
    one = subject(TOKENS)
    teacher = lessons_module._Teacher(one.recipe.steps[0], one)
    with teacher:
        batch = teacher.batch(range(16), asked=True)
    again = lessons_module.Batch.of(batch.bytes())
    assert again.tokens is None
    for number in range(16):
        first, second = (lessons_module.Lessons([which])[number] for which in (batch, again))
        assert all(torch.equal(first[key], second[key]) for key in ("input_ids", "outcomes"))
        assert len(first["outcomes"]) == len(first["input_ids"])


def test_dropout_is_off_while_a_student_learns(subject: Callable[..., Subject]) -> None:
    one = subject()
    ids = torch.tensor([[2, 30, 40, 3]])
    one.model.train()
    with torch.no_grad():
        noisy = [one.model(ids).last_hidden_state for _ in range(2)]
        with nothing_dropped(one.model):
            quiet = [one.model(ids).last_hidden_state for _ in range(2)]
        noisy.append(one.model(ids).last_hidden_state)
    assert torch.equal(*quiet)
    assert not torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy[1], noisy[2])


def test_a_kill_changes_nothing_in_the_end(encoder: Callable[..., Path], tmp_path: Path) -> None:
    source, steps = encoder(), (SPACED, {**DISTILL, "updates": 20, "features": {"hidden": 1.0}})
    whole = run(source, tmp_path / "whole", *steps)
    file, out = tmp_path / "recipe.yaml", tmp_path / "out"
    file.write_text(recipe(*steps).model_dump_json(), encoding="utf-8")
    killed(7, source, file, out)
    killed(12, source, file, out, "--resume")
    resumed = run(source, out, *steps, resume=True)
    assert [{**one, "seconds": 0} for one in resumed] == [{**one, "seconds": 0} for one in whole]
    weights = "model.safetensors"
    assert (out / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def test_zeros_by_magnitude_stay_zeros(encoder: Callable[..., Path], tmp_path: Path) -> None:
    prune = {"step": "prune", "method": "magnitude", "sparsity": 0.5}
    (at_once,) = run(encoder(), tmp_path / "at-once", prune)
    training = {key: value for key, value in DISTILL.items() if key != "step"}
    (gradual,) = run(encoder(), tmp_path / "gradual", {**prune, "training": training})
    assert at_once["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert gradual["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert gradual["mean_cosine"] > at_once["mean_cosine"]


def test_another_encoder_teaches(encoder: Callable[..., Path], tmp_path: Path) -> None:
    """One of other weights and depth; and none that gives other numbers, or is for something else."""
    teacher = encoder("Bert", EMBEDDINGS, seed=1, num_hidden_layers=2)
    step = {**DISTILL, "teacher": str(teacher)}
    (distilled,) = run(encoder(), tmp_path / "out", step)
    before, after = (float(word) for word in distilled["notes"][0].split() if "." in word)
    assert after < 0.8 * before
    wide = encoder("Bert", EMBEDDINGS, hidden_size=64)
    message = (
        r"teacher .*: gives embeddings of 64 numbers, the model embeddings of 32 numbers; name one that gives these"
    )
    with pytest.raises(UserError, match=message):
        run(encoder(), tmp_path / "wide", SPACED, {**DISTILL, "teacher": str(wide)})
    assert not (tmp_path / ".wide.work").exists()  # nothing was begun
    short = encoder("Bert", EMBEDDINGS, max_position_embeddings=16)
    with pytest.raises(UserError, match=r"teacher .*: takes 16 tokens; say text.tokens: 16"):
        run(encoder(), tmp_path / "short", {**DISTILL, "teacher": str(short)})
    with pytest.raises(
        UserError, match=r"teacher .*: is for text-classification, not feature-extraction; name a model"
    ):
        run(encoder(), tmp_path / "labels", {**DISTILL, "teacher": str(encoder("Bert", LABELS))})


def test_distilled_exported_and_verified(encoder: Callable[..., Path], tmp_path: Path) -> None:
    made = recipe(SPACED, DISTILL)
    request = ExportRequest(
        str(encoder()), tmp_path / "out", "onnx", "dynamic-int8", verify=VerifyOptions(chunks=1), measure=False,
        recipe=NamedRecipe(made, "mine"),
    )  # fmt: skip
    report = export(request, SilentReporter())
    steps = report.artifact.contract["compression"]["steps"]
    assert [step["step"] for step in steps] == ["remove", "distill"]
    assert report.drift is not None
    cosine = next(line for line in report.lines if line.name == "cosine")  # of the file to the whole model
    assert cosine.value == pytest.approx(steps[1]["mean_cosine"], abs=0.02)
    tensors = resolve(str(encoder())).tensors
    of_two = sum(
        fact.n_elements for name, fact in tensors.items() if name.startswith(("encoder.layer.1.", "encoder.layer.2."))
    )
    whole = sum(fact.n_elements for name, fact in tensors.items() if "pooler" not in name)
    assert report.artifact.n_params == whole - of_two


@pytest.mark.parametrize("task", [EMBEDDINGS, LABELS])
def test_a_pooler_that_is_missing(task: str, encoder: Callable[..., Path], tmp_path: Path) -> None:
    """An embedding does not read it; a classifier does."""
    source = tmp_path / "source"
    shutil.copytree(encoder("Bert", task), source)
    tensors = load_file(source / "model.safetensors")
    kept = {name: one for name, one in tensors.items() if "pooler" not in name}
    assert len(kept) == len(tensors) - 2
    save_file(kept, source / "model.safetensors", {"format": "pt"})
    if task == LABELS:
        with pytest.raises(ModelError, match=r"2 weights are missing, the first is bert.pooler.dense"):
            run(source, tmp_path / "out", SPACED)
        return
    run(source, tmp_path / "out", SPACED, {**DISTILL, "updates": 2})
    assert not [name for name in load_file(tmp_path / "out" / "model.safetensors") if "pooler" in name]


def test_positions_that_older_files_have(encoder: Callable[..., Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(encoder(), source)
    tensors = load_file(source / "model.safetensors")
    save_file(
        {**tensors, "embeddings.position_ids": np.arange(64)[None]}, source / "model.safetensors", {"format": "pt"}
    )
    run(source, tmp_path / "out", SPACED)
    assert "embeddings.position_ids" not in load_file(tmp_path / "out" / "model.safetensors")


OTHERS = (
    "say remove layers or neurons but not by gradient, prune by magnitude, initialize, distill, quantize, or export"
)
NEURONS = {"step": "remove", "units": "neurons", "share": 0.5}


@pytest.mark.parametrize(
    ("task", "step", "message"),
    [
        (EMBEDDINGS, {**SPACED, "scores": "gradient"}, f"remove with scores gradient is for decoders, .*; {OTHERS}"),
        (EMBEDDINGS, {**SPACED, "scores": "influence"}, "calibration: .* writes no text itself; name a text"),
        (EMBEDDINGS, {**SPACED, "scores": None, "units": "heads"}, "remove heads is for decoders"),
        (LABELS, {**NEURONS, "widths": "uneven"}, "remove with widths uneven is for decoders"),
        (TOKENS, NEURONS, "calibration: .* writes no text itself; name a text"),
        (LABELS, {"step": "prune", "method": "wanda", "sparsity": 0.5}, "prune with method wanda is for decoders"),
        (TOKENS, {"step": "rotate"}, "rotate is for decoders, .* is for token-classification"),
        (EMBEDDINGS, {"step": "quantize", "preset": "dynamic-int8"}, "calibration: .* writes no text itself; name a"),
        (EMBEDDINGS, {**DISTILL, "text": {}}, "text: .* writes no text itself; name a text, a jsonl file"),
        (EMBEDDINGS, {**DISTILL, "hard": 0.5}, "hard: says nothing to a model that is for feature-extraction; leave"),
        (EMBEDDINGS, {**DISTILL, "temperature": 2.0}, "temperature: says nothing to a model"),
        (LABELS, {**DISTILL, "top": 8}, "top: says nothing to a model that is for text-classification; leave it out"),
        (EMBEDDINGS, {**DISTILL, "loss": "jsd"}, "loss jsd is not for feature-extraction; say nmse or cosine"),
        (LABELS, {**DISTILL, "loss": "nmse"}, "loss nmse is not for text-classification; say forward-kl or"),
    ],
)
def test_what_encoders_have_not_is_said_before(
    task: str, step: dict[str, Any], message: str, encoder: Callable[..., Path], tmp_path: Path
) -> None:
    step = {key: value for key, value in step.items() if value is not None}
    with pytest.raises(UserError, match=f"^--recipe: {message}"):
        run(encoder("Bert", task), tmp_path / "out", SPACED, step, format="onnx", calibration={})
    assert sorted(path.name for path in tmp_path.iterdir()) == []


def test_a_cache_of_keys_and_values(encoder: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"kv_cache: .* is for feature-extraction and has none; leave it out"):
        run(encoder(), tmp_path / "out", SPACED, format="gguf", kv_cache="q8_0")


def test_losses_of_embeddings_are_not_for_decoders(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="loss cosine is not for text-generation; say forward-kl or reverse-kl or jsd"):
        run(tiny_llama, tmp_path / "out", {**DISTILL, "loss": "cosine"})


def test_texts_of_files_are_texts_of_their_own(
    subject: Callable[..., Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source: Any = subject().source
    file = tmp_path / "texts.jsonl"
    rows = [{"text": "one text"}, {"text": "a much longer text than so many tokens"}, {"text": ""}, {"text": "last"}]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = encoder_texts(source, Text(jsonl=file, chunks=3, tokens=16), 0)
    assert [len(ids) for ids in found] == [9, 16, 6]
    assert all((ids[0], ids[-1]) == (2, 3) for ids in found)
    assert found[0][1:-1] == source.tokenize("one text", add_special=False)
    assert len(encoder_texts(source, Text(jsonl=file, chunks=1, tokens=16), 0)) == 1
    stub = types.ModuleType("datasets")
    stub.load_dataset = lambda *_, **__: rows  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", stub)
    assert encoder_texts(source, Text(dataset="some/set", chunks=3, tokens=16), 0) == found
    file.write_text('{"text": ""}\n', encoding="utf-8")
    with pytest.raises(UserError, match="has no text; name another"):
        encoder_texts(source, Text(jsonl=file, chunks=3, tokens=16), 0)
    file.write_text('{"text": [{"role": "user"}]}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"texts.jsonl:1: text is no text, as an encoder reads it; name another"):
        encoder_texts(source, Text(jsonl=file, chunks=3, tokens=16), 0)


def test_rounds_of_texts_come_from_all_over(subject: Callable[..., Subject]) -> None:
    source: Any = subject().source
    text = default_text("calibration")
    begun, spread, all_of_it = (
        cut_texts(source, text, rounds, 64, spread=on) for rounds, on in ((3, False), (3, True), (100_000, True))
    )
    assert spread[:8] == begun[:8]
    assert [len(one) for one in spread[:8]] == [len(one) for one in begun[:8]]
    assert spread[8:] != begun[8:]
    every = cut_texts(source, text, 100_000, 64)
    assert all_of_it == every  # where the text is shorter than all rounds, they follow each other
    assert every.index(begun[-1]) < every.index(every[-1]) / 100
    whole = source.tokenize(text.text, add_special=False)
    at = "".join(map(chr, whole)).index("".join(map(chr, spread[15][1:-1])))
    assert at / len(whole) == pytest.approx(1 / 3, abs=0.02)


def test_a_model_that_is_two_in_one_is_refused(encoder: Callable[..., Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(encoder(), source)
    (source / "modules.json").unlink()
    shutil.rmtree(source / "1_Pooling")
    edit_json(source / "config.json", architectures=["T5ForConditionalGeneration"])
    with pytest.raises(
        UserError, match=r"is an encoder and a decoder in one, which cannot be compressed; name a model"
    ):
        run(source, tmp_path / "out", SPACED)


def test_labels_of_special_tokens_are_not_learned(subject: Callable[..., Subject]) -> None:
    one = subject(TOKENS)
    learned, _ = lessons(one.recipe.steps[0], one)
    batch = learned.collate([learned[number] for number in range(6)])
    predicted, output = predictions(one.recipe.steps[0], one), types.SimpleNamespace()
    output.logits = batch["outcomes"].clone()
    lengths = batch["attention_mask"].sum(1)
    rows = torch.arange(len(lengths))
    for place in (torch.zeros_like(lengths), lengths - 1):
        output.logits[rows, place, 0] += 5.0
    assert float(predicted.loss(output, batch)) == pytest.approx(0, abs=1e-6)
    output.logits[rows, lengths - 2, 0] += 5.0
    assert float(predicted.loss(output, batch)) > 0.01


def test_a_teacher_of_other_labels_is_refused(encoder: Callable[..., Path], tmp_path: Path) -> None:
    """As many, in another order: what is learned would be the opposite."""
    names = {"id2label": {0: "bad", 1: "good", 2: "so so"}}
    ours, theirs = (encoder("Bert", LABELS, **one) for one in (names, {"id2label": {0: "good", 1: "bad", 2: "so so"}}))
    with pytest.raises(
        UserError, match=r"teacher .*: gives labels good, bad, so so, the model labels bad, good, so so"
    ):
        run(ours, tmp_path / "out", {**DISTILL, "teacher": str(theirs)})


def changed(source: Path, to: Path, **changes: Any) -> Path:
    """A copy with other keys of config.json."""
    shutil.copytree(source, to)
    edit_json(to / "config.json", **changes)
    return to


def test_what_texts_are_filled_up_with_has_to_be_known(encoder: Callable[..., Path], tmp_path: Path) -> None:
    source = encoder("DistilBert", LABELS)
    nameless = changed(source, tmp_path / "source")
    content = json.loads((nameless / "config.json").read_text())
    (nameless / "config.json").write_text(json.dumps({**content, "pad_token_id": None}))
    with pytest.raises(UserError, match=r"config.json names no pad_token_id, without which .*; write it there"):
        run(nameless, tmp_path / "out", DISTILL)


@pytest.mark.parametrize("mode", ["pooling_mode_lasttoken", "pooling_mode_max_tokens"])
def test_another_pooling_is_not_trained(mode: str, encoder: Callable[..., Path], tmp_path: Path) -> None:
    source = changed(encoder(), tmp_path / "source")
    (source / "1_Pooling" / "config.json").write_text(json.dumps({mode: True}))
    with pytest.raises(UserError, match="makes its embeddings in a way that packlight does not know, and cannot train"):
        run(source, tmp_path / "out", DISTILL)
    with pytest.raises(UserError, match=f"{source}: makes its embeddings in a way that .*; name another model"):
        run(encoder(), tmp_path / "out", {**DISTILL, "teacher": str(source)})
    run(source, tmp_path / "out", SPACED)  # the mean is compared


@pytest.mark.parametrize(
    "rename", [lambda name: f"bert.{name}", lambda name: name.replace("Norm.weight", "Norm.gamma")]
)
def test_names_that_transformers_would_change(
    rename: Callable[[str], str], encoder: Callable[..., Path], tmp_path: Path
) -> None:
    source = changed(encoder(), tmp_path / "source")
    tensors = {rename(name): one for name, one in load_file(source / "model.safetensors").items()}
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    message = r"calls a weight (bert\..*|.*gamma) that transformers calls .*; load it with AutoModel and save it anew"
    with pytest.raises(UserError, match=message):
        run(source, tmp_path / "out", SPACED)


def test_a_layer_that_is_built_otherwise_stays_first(encoder: Callable[..., Path], tmp_path: Path) -> None:
    """ModernBERT's first layer has no norm before its attention: another one cannot stand there."""
    import transformers

    source = changed(encoder(), tmp_path / "source")
    config = transformers.ModernBertConfig(
        vocab_size=200, pad_token_id=0, max_position_embeddings=64, num_hidden_layers=4, **SHAPE
    )
    torch.manual_seed(0)
    model = transformers.ModernBertModel(config)
    with torch.no_grad():
        for number, layer in enumerate(model.layers):
            for parameter in layer.parameters():
                parameter.mul_(5 if number else 0.01)
    model.save_pretrained(source)
    removed, distilled = run(
        source, tmp_path / "out", SPACED, {**DISTILL, "features": {"hidden": 1.0, "attention": 1.0}}
    )
    assert distilled["mean_cosine"] > removed["mean_cosine"]
    with pytest.raises(UserError, match=r"scores magnitude would put a layer where transformers builds another kind"):
        run(source, tmp_path / "magnitude", {**SPACED, "count": 1, "share": None, "scores": "magnitude"})


@pytest.mark.parametrize(
    ("family", "more", "maps"),
    [
        ("Bert", {}, True), ("Electra", {"embedding_size": 32}, True), ("MPNet", {}, False), ("Deberta", {}, False),
        ("DistilBert", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}, True), ("ModernBert", {}, True),
        ("Albert", {"embedding_size": 16}, None),
    ],
)  # fmt: skip
def test_where_families_keep_what_is_looked_for(family: str, more: dict[str, Any], maps: bool | None) -> None:
    """maps: whether attention gives one beside its output; None where the layers are not found."""
    import transformers

    config = getattr(transformers, f"{family}Config")(
        vocab_size=99, pad_token_id=0, **(SHAPE | {"num_hidden_layers": 2} if "dim" not in more else {}), **more
    )
    model = getattr(transformers, f"{family}Model")(config).eval()
    layers = find_layers(model)
    if maps is None:
        assert layers is None
        return
    assert len(layers) == 2
    seen: list[Any] = []
    find_attention(layers[1]).register_forward_hook(lambda _module, _args, output: seen.append(output))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        model(torch.tensor([[1, 5, 6, 7, 2]]))
    given = isinstance(seen[0], tuple) and len(seen[0]) > 1 and seen[0][1] is not None
    assert given == maps
    if maps:
        torch.testing.assert_close(seen[0][1].sum(-1), torch.ones(1, 4, 5))


def test_maps_that_a_family_does_not_give(tmp_path: Path, encoder: Callable[..., Path]) -> None:
    import transformers

    source = changed(encoder(), tmp_path / "source")
    config = transformers.MPNetConfig(
        vocab_size=200, pad_token_id=0, max_position_embeddings=66, num_hidden_layers=2, **SHAPE
    )
    transformers.MPNetModel(config).save_pretrained(source)
    with pytest.raises(UserError, match="this model gives no attention maps; leave attention out"):
        run(source, tmp_path / "maps", {**DISTILL, "features": {"attention": 1.0}})
    with pytest.raises(UserError, match="gradient_checkpointing: transformers computes no activations of MPNetModel"):
        run(source, tmp_path / "again", {**DISTILL, "gradient_checkpointing": True})


def test_layers_that_are_not_found_are_said_before(tmp_path: Path, encoder: Callable[..., Path]) -> None:
    import transformers

    source = changed(encoder(), tmp_path / "source")
    transformers.AlbertModel(
        transformers.AlbertConfig(vocab_size=200, pad_token_id=0, embedding_size=16, **SHAPE)
    ).save_pretrained(source)
    with pytest.raises(ModelError, match="AlbertModel keeps its layers where packlight does not look for them"):
        run(source, tmp_path / "out", DISTILL)


def test_a_single_text_is_too_few(encoder: Callable[..., Path], tmp_path: Path) -> None:
    file = tmp_path / "one.jsonl"
    file.write_text('{"text": "one"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"training needs two texts, one to judge by; there are 1; raise text.chunks"):
        run(encoder(), tmp_path / "out", {**DISTILL, "text": {"jsonl": str(file)}})


@pytest.mark.parametrize(
    ("family", "task", "change"),
    [
        ("Bert", EMBEDDINGS, {"num_hidden_layers": 2, "intermediate_size": 40}),
        ("DistilBert", EMBEDDINGS, {"n_layers": 2, "n_heads": 2}),
        ("Roberta", LABELS, {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2}),
        ("Bert", TOKENS, {"hidden_size": 24, "num_attention_heads": 4}),
    ],
)
def test_a_student_of_another_shape(
    family: str, task: str, change: dict[str, Any], encoder: Callable[..., Path], tmp_path: Path
) -> None:
    source = encoder(family, task)
    student = {"step": "initialize", "change": change}
    features = {"features": {"hidden": 0.1}}  # of other widths too, and of the layers that TinyBERT's map names
    fresh, taught = run(source, tmp_path / "out", student, {**DISTILL, "updates": 100, **features})
    (of,) = [note for note in fresh["notes"] if note.startswith("initialize: ")]
    assert of.endswith(" weights are new")
    assert taught["n_params"] == fresh["n_params"]
    if task == EMBEDDINGS:
        assert taught["mean_cosine"] > fresh["mean_cosine"] + 0.05
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert change.items() <= config.items()
    assert config.get("id2label") == json.loads((source / "config.json").read_text()).get("id2label")
    assert np.isfinite(outputs(tmp_path / "out", [2, 30, 40, 3])).all()


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        (EMBEDDINGS, {"hidden_size": 16}, "gives 16 numbers a text or token, the model "),
        (EMBEDDINGS, {"max_position_embeddings": 40}, "takes 40 tokens, the model "),
        (LABELS, {"id2label": {"0": "yes"}}, "change: id2label stays the teacher's; leave it out"),
        (LABELS, {"hidden_size": 30}, "no model has this configuration"),
    ],
)
def test_a_student_that_would_answer_otherwise(
    task: str, change: dict[str, Any], message: str, encoder: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"--recipe: initialize: {message}"):
        run(encoder("Bert", task), tmp_path / "out", {"step": "initialize", "change": change}, DISTILL)
    assert not (tmp_path / "out").exists()
