"""The distill step: what it changes and what it must not, and that a kill changes nothing in the end."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.forked import killed
from support.recipes import TEXT, opened_subject, recipe, run
from support.removal import logits, opened

from exporter.by_recipe import NamedRecipe
from exporter.checkpoint import resolve
from exporter.compress.job import CompressRequest, compress
from exporter.compress.journal import Journal, work_of, working
from exporter.compress.mapped import MappedReference
from exporter.compress.prune.gradual import Pruning
from exporter.compress.prune.schedule import sparsity_at
from exporter.compress.subject import Subject
from exporter.compress.training import lessons as lessons_module
from exporter.compress.training.lessons import AT_A_TIME, HELD_OUT, lessons
from exporter.compress.training.losses import likeliest
from exporter.compress.training.student import learning
from exporter.compress.training.trainer import COMPLETE, FINISHED
from exporter.pipeline import ExportRequest, export
from exporter.progress import SilentReporter
from exporter.verify import VerifyOptions
from runtime.errors import ModelError, UserError
from targets.ongrid import RECIPE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SHORTER = {"step": "remove", "units": "layers", "count": 1, "scores": "magnitude"}
PRUNE = {"step": "prune", "method": "magnitude", "sparsity": 0.5}
DISTILL = {"step": "distill", "updates": 40, "batch": 4, "learning_rate": 1e-3, "top": 1000, "text": TEXT}
"""Of every token: a model of random weights holds all of them possible."""
SHORT = {**DISTILL, "text": {**TEXT, "chunks": 20}}


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_what_was_lost_comes_back(family: str, tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    shorter, distilled = run(tiny_model_dir(family), tmp_path / "out", SHORTER, DISTILL)
    assert distilled["mean_kl"] < 0.95 * shorter["mean_kl"]  # on text that was not learned from
    assert distilled["n_params"] == shorter["n_params"]
    assert np.isfinite(logits(opened(tmp_path / "out"))).all()
    (note,) = distilled["notes"]
    assert note.startswith("distill: loss on 4 held-out pieces ")
    assert os.listdir(tmp_path) == ["out"]  # noqa: PTH208


@pytest.mark.parametrize(
    ("loss", "more"), [("reverse-kl", {"gradient_checkpointing": True}), ("jsd", {"precision": "bfloat16"})]
)
def test_the_other_losses_teach_too(loss: str, more: dict[str, Any], tiny_llama: Path, tmp_path: Path) -> None:
    step = {**DISTILL, "loss": loss, "temperature": 2.0, "hard": 0.1, **more}
    pruned, distilled = run(tiny_llama, tmp_path / "out", PRUNE, step)
    assert distilled["mean_kl"] < 0.9 * pruned["mean_kl"]


def test_norms_alone(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny_model_dir("qwen2")
    run(source, tmp_path / "before", SHORTER)
    before = opened(tmp_path / "before")
    steps = run(source, tmp_path / "out", SHORTER, {**DISTILL, "train": "norms"})
    after = opened(tmp_path / "out").state_dict()
    assert steps[1]["mean_kl"] < steps[0]["mean_kl"]
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, after[name]) == (tensor.dim() > 1), name


def test_thin_matrices_are_merged(tiny_llama: Path, tmp_path: Path) -> None:
    run(tiny_llama, tmp_path / "before", SHORTER)
    step = {**DISTILL, "train": "lora", "rank": 4}
    steps = run(tiny_llama, tmp_path / "out", SHORTER, step)
    assert steps[1]["mean_kl"] < steps[0]["mean_kl"]
    before, after = (opened(tmp_path / name).state_dict() for name in ("before", "out"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        moved = after[name] - tensor
        if ".layers." in name and tensor.dim() == 2:
            assert 0 < torch.linalg.matrix_rank(moved, rtol=1e-4) <= 4, name
        else:
            assert not moved.any(), name


@pytest.mark.parametrize("pattern", [{"sparsity": 0.5}, {"pattern": "2:4"}])
def test_what_was_pruned_stays_zero(pattern: dict[str, Any], tiny_llama: Path, tmp_path: Path) -> None:
    prune = {"step": "prune", "method": "magnitude", **pattern}
    run(tiny_llama, tmp_path / "before", prune)
    steps = run(tiny_llama, tmp_path / "out", prune, DISTILL)
    before, after = (opened(tmp_path / name).state_dict() for name in ("before", "out"))
    assert steps[1]["mean_kl"] < steps[0]["mean_kl"]
    for name, tensor in before.items():
        if ".layers." in name and tensor.dim() == 2:
            assert torch.equal(tensor == 0, after[name] == 0), name
    with pytest.raises(UserError, match="train: lora would fill the zeros of prune"):
        run(tiny_llama, tmp_path / "other", prune, {**DISTILL, "train": "lora"})
    assert not (tmp_path / "other").exists()


def test_factors_stay_factors(tiny_llama: Path, tmp_path: Path) -> None:
    factorize = {"step": "factorize", "method": "svd", "keep": 0.6}
    first, second = run(tiny_llama, tmp_path / "out", factorize, DISTILL)
    assert second["mean_kl"] < 0.85 * first["mean_kl"]
    assert second["n_params"] == first["n_params"]
    assert (tmp_path / "out" / "packlight_factors.safetensors").is_file()


def test_a_batch_in_parts_is_the_whole_batch(tiny_llama: Path, tmp_path: Path) -> None:
    found = []
    for number, accumulate in enumerate((1, 4)):
        out = tmp_path / str(number)
        run(tiny_llama, out, SHORTER, {**SHORT, "updates": 10, "accumulate": accumulate})
        found.append(opened(out).state_dict())
    run(tiny_llama, tmp_path / "before", SHORTER)
    before = opened(tmp_path / "before").state_dict()
    for name, tensor in found[0].items():
        moved, other = tensor - before[name], found[1][name] - before[name]
        assert moved.any()
        np.testing.assert_allclose(other, moved, rtol=0, atol=0.02 * float(moved.abs().max()))


@pytest.mark.parametrize(("format_name", "preset"), [("gguf", "q8_0"), ("onnx", "int8")])
def test_removed_distilled_quantized_in_one_command(
    format_name: str, preset: str, tiny_llama: Path, tmp_path: Path
) -> None:
    steps = (SHORTER, DISTILL, {"step": "quantize", "preset": preset})
    named = NamedRecipe(recipe(*steps, format=format_name), "mine")
    verify = VerifyOptions(chunks=2, context=64)
    request = ExportRequest(
        str(tiny_llama), tmp_path / "out", format_name, None, verify=verify, measure=False, recipe=named
    )
    report = export(request, SilentReporter())
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    shorter, distilled, quantized = manifest["contract"]["compression"]["steps"]
    assert distilled["mean_kl"] < 0.95 * shorter["mean_kl"]
    assert quantized["mean_kl"] == pytest.approx(distilled["mean_kl"], rel=0.05)
    # The engine computes what was trained: against the source it is off by what torch says, on other pieces of text.
    drift = {line.name: line.value for line in report.lines}["KL divergence"]
    assert drift == pytest.approx(quantized["mean_kl"], rel=0.25)


@pytest.mark.parametrize("train", ["all", "lora"])
def test_a_kill_changes_nothing_in_the_end(
    train: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize = {"step": "quantize", "preset": "q4_0"}
    steps, text = (SHORTER, {**SHORT, "train": train}, quantize), {"format": "gguf"}
    whole = run(tiny_llama, tmp_path / "whole", *steps, **text)
    file, out = tmp_path / "recipe.yaml", tmp_path / "out"
    file.write_text(recipe(*steps, **text).model_dump_json(), encoding="utf-8")
    killed(15, tiny_llama, file, out)
    killed(25, tiny_llama, file, out, "--resume")
    checkpoints = work_of(out) / "work-1"
    assert "checkpoint-24" in [path.name for path in checkpoints.iterdir()]
    shutil.copytree(checkpoints / "checkpoint-24", checkpoints / "checkpoint-26")
    (checkpoints / "checkpoint-26" / COMPLETE).unlink()  # as a kill within the writing leaves it
    (checkpoints / "checkpoint-26" / "optimizer.pt").write_bytes(b"half")
    killed(0, tiny_llama, file, out, "--resume")
    assert (checkpoints / FINISHED).is_file()
    if train == "lora":
        (checkpoints / FINISHED).unlink()  # as a kill just before it leaves it
    # What the teacher said is on the disk: it is not asked again.
    monkeypatch.setattr(Subject, "teacher", lambda _self, _name: pytest.fail("the teacher was opened"))
    resumed = run(tiny_llama, out, *steps, resume=True, **text)
    for one, other in zip(resumed, whole, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    for path in (tmp_path / "whole").iterdir():
        assert path.name == RECIPE or path.read_bytes() == (out / path.name).read_bytes(), path.name
    assert not work_of(out).exists()


def test_lessons_are_what_the_source_predicts(tiny_llama: Path, tmp_path: Path) -> None:
    subject = opened_subject(tiny_llama, tmp_path, {**SHORT, "top": 9, "temperature": 1.5})
    step = subject.recipe.steps[0]
    source = MappedReference(subject.facts, tmp_path, threads=1)
    with working(tmp_path / "out", {}, resume=False) as journal:
        subject.kept = journal
        for module in subject.model.modules():  # what the student is by then does not matter
            if isinstance(module, torch.nn.Linear):
                module.weight.data.zero_()
        learned, held_out = lessons(step, subject)
        again = lessons_module.Lessons([lessons_module.Batch.of(journal.load("lessons-0-learned-0"))])
        assert all(torch.equal(again[0][key], value) for key, value in learned[0].items())
        pieces = [*learned, *held_out]
    assert len({tuple(piece["input_ids"].tolist()) for piece in pieces}) == 20
    assert (len(learned), len(held_out)) == (18, 2)
    for piece in (learned[0], learned[17], held_out[1]):
        tokens, outcomes = likeliest(torch.from_numpy(source.logits(piece["input_ids"].tolist())), 9, 1.5)
        assert torch.equal(piece["tokens"], tokens)
        torch.testing.assert_close(piece["outcomes"], outcomes)
    source.close()
    subject.source.close()


def test_text_alone_asks_no_teacher_for_predictions(tiny_llama: Path, tmp_path: Path) -> None:
    subject = opened_subject(tiny_llama, tmp_path, {**DISTILL, "hard": 1.0, "text": {**TEXT, "chunks": 40}})
    learned, held_out = lessons(subject.recipe.steps[0], subject)
    assert AT_A_TIME == HELD_OUT == 16
    assert (len(learned), len(held_out)) == (37, 3)
    assert learned[36].keys() == held_out[0].keys() == {"input_ids"}
    subject.source.close()


def test_another_text_is_not_gone_on_with(tiny_llama: Path, tmp_path: Path) -> None:
    text, step = tmp_path / "text.txt", {**SHORT, "hard": 1.0}
    text.write_text("one two three four five six seven " * 200, encoding="utf-8")
    subject = opened_subject(tiny_llama, tmp_path, {**step, "text": {"text": str(text), "chunks": 20, "tokens": 32}})
    with working(tmp_path / "out", {}, resume=False) as journal:
        subject.kept = journal
        lessons(subject.recipe.steps[0], subject)
        text.write_text("eight nine ten eleven twelve " * 200, encoding="utf-8")
        lessons(subject.recipe.steps[0], subject)  # all of it is on the disk
        (journal.room / "lessons-0-learned-1.safetensors").unlink()
        with pytest.raises(UserError, match=r"--resume: the text of the training is another .*; put it back, or leave"):
            lessons(subject.recipe.steps[0], subject)
    subject.source.close()


def test_the_short_piece_at_a_texts_end_is_left_out(tiny_llama: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six seven " * 60, encoding="utf-8")
    step = {**SHORT, "text": {"text": str(text), "chunks": 1000, "tokens": 32}}
    subject = opened_subject(tiny_llama, tmp_path, step)
    learned, held_out = lessons(subject.recipe.steps[0], subject)
    assert 4 < len(learned) + len(held_out) < 100
    assert {len(piece["input_ids"]) for piece in [*learned, *held_out]} == {32}
    subject.source.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 50.0}, "training made the loss on held-out text no better, .*; lower learning_rate"),
        ({"text": {**TEXT, "chunks": 1}}, "training needs two pieces of 32 tokens, .*; there are 1; raise text.chunks"),
    ],
)
def test_a_mistake_leaves_nothing(change: dict[str, Any], message: str, tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run(tiny_llama, tmp_path / "out", SHORTER, {**SHORT, "updates": 4, **change})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "train"), [("accelerate", "all"), ("peft", "lora")])
def test_a_library_that_is_not_there_is_named(
    name: str, train: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "peft":
        monkeypatch.setitem(sys.modules, "peft", None)
    else:

        def missing(**_: Any) -> None:
            raise ImportError("Using the `Trainer` requires `accelerate`")

        monkeypatch.setattr("exporter.compress.training.trainer.transformers.TrainingArguments", missing)
    with pytest.raises(UserError, match=rf"the library '{name}'; pip install 'packlight\[train\]'"):
        run(tiny_llama, tmp_path / "out", {**DISTILL, "train": train})


def test_a_full_disk_is_one_line(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("exporter.compress.training.trainer._Distilling._save_checkpoint", full)
    with pytest.raises(ModelError, match=r"cannot be written .*No space left on device.*; free space"):
        run(tiny_llama, tmp_path / "out", SHORTER, DISTILL)


def test_checkpoints_that_cannot_fit_are_foreseen(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        "exporter.compress.training.trainer.shutil.disk_usage", lambda _path: usage._replace(free=2_500_000)
    )
    with pytest.raises(UserError, match=r"training needs 2\.7 MB of disk for its checkpoints beside .*, 2\.5 MB are"):
        run(tiny_llama, tmp_path / "out", SHORTER, DISTILL)


def test_weights_come_home_from_wherever_they_were_moved_to() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)).requires_grad_(False)
    before = [(one, one.data, one.data.clone()) for one in model.parameters()]
    learned = list(model[0].parameters())
    with learning(model, learned):
        assert [one.requires_grad for one in model.parameters()] == [True, True, False, False]
        for one, home, _ in before:
            assert (one.data_ptr() == home.data_ptr()) == (not one.requires_grad)
            one.data = one.data.clone()  # as a move to another device does
        for one in learned:
            one.data.add_(1)
            one.grad = torch.ones_like(one)
    for one, home, value in before:
        assert one.data_ptr() == home.data_ptr()
        assert one.grad is None
        assert not one.requires_grad
        assert torch.equal(one, value + 1 if any(one is other for other in learned) else value)


def test_it_ends_where_nothing_is_gained(tiny_llama: Path, tmp_path: Path) -> None:
    step = {**DISTILL, "updates": 600, "learning_rate": 0.002, "patience": 1, "text": {**TEXT, "chunks": 4}}
    _, distilled = run(tiny_llama, tmp_path / "out", PRUNE, step)
    (note,) = distilled["notes"]
    best, updates = (int(word) for word in note.split() if word.isdecimal() and word != "1")
    assert best < updates < 600


def test_progress_says_loss_and_time(tiny_llama: Path, tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []

    class Heard(SilentReporter):
        def advance(self, what: str, done: int, total: int) -> None:
            said.append((what, done, total))

    made = recipe(SHORTER, DISTILL)
    compress(CompressRequest(str(tiny_llama), tmp_path / "out", made, "test", 1), Heard())
    last = [one for one in said if one[0].startswith("training")][-1]
    assert last[0].startswith("training, loss ")
    assert ", held out " in last[0]
    assert last[0].endswith(", 0 min left")
    assert last[1:] == (40, 40)


def test_each_step_has_lessons_of_its_own(tiny_llama: Path, tmp_path: Path) -> None:
    """Lessons of another step are not taken for this one's."""
    subject = opened_subject(tiny_llama, tmp_path, {**SHORT, "hard": 1.0})
    with working(tmp_path / "out", {}, resume=False) as journal:
        subject.kept = journal
        for subject.number in (0, 2):
            lessons(subject.recipe.steps[0], subject)
        whats = [json.loads(line)["what"] for line in (journal.room / "journal.jsonl").read_text().splitlines()]
    kept = ("", "-learned-0", "-learned-1", "-held-out-0")
    assert whats == ["made of", *(f"lessons-{step}{more}" for step in (0, 2) for more in kept)]
    assert isinstance(subject.kept, Journal)
    subject.source.close()


@pytest.mark.parametrize("rows", [0, 40])
def test_another_model_teaches(
    rows: int, tiny_model_dir: Callable[..., Path], tiny_llama: Path, tmp_path: Path
) -> None:
    """One of another width and depth; with rows in its table that stand for no token, or in the student's."""
    n_rows = opened(tiny_llama).config.vocab_size
    teacher = tiny_model_dir("llama", hidden=128, layers=3, seed=1, vocab_size=n_rows + rows)
    student = tiny_model_dir("llama", vocab_size=n_rows + 40 - rows) if rows != 40 else tiny_llama
    step = {**DISTILL, "updates": 80, "learning_rate": 3e-3, "teacher": str(teacher)}
    (distilled,) = run(student, tmp_path / "out", step)
    (note,) = distilled["notes"]
    before, after = (float(word) for word in note.split() if "." in word)
    assert after < 0.8 * before
    ids = torch.randint(n_rows, (1, 64), generator=torch.Generator().manual_seed(0))

    def apart(path: Path) -> float:
        with torch.no_grad():
            predicted, taught = (
                torch.log_softmax(opened(one)(input_ids=ids).logits[..., :n_rows], -1) for one in (path, teacher)
            )
        return float((taught.exp() * (taught - predicted)).sum(-1).mean())

    assert apart(tmp_path / "out") < 0.9 * apart(student)  # on tokens by chance, which no text has


def test_a_teacher_says_nothing_of_rows_that_it_has_not(
    tiny_model_dir: Callable[..., Path], tiny_llama: Path, tmp_path: Path
) -> None:
    n_rows = opened(tiny_llama).config.vocab_size
    step = {**SHORT, "top": 1000, "teacher": str(tiny_llama)}
    subject = opened_subject(tiny_model_dir("llama", vocab_size=n_rows + 40), tmp_path, step)
    subject.teachers = {str(tiny_llama): resolve(str(tiny_llama))}
    learned, _ = lessons(subject.recipe.steps[0], subject)
    piece = learned[0]
    assert piece["tokens"].shape[-1] == n_rows + 40
    assert (piece["outcomes"][piece["tokens"] >= n_rows] < -1000).all()
    assert (piece["outcomes"][piece["tokens"] < n_rows] > -1000).all()
    subject.source.close()


def test_a_teacher_with_other_tokens_is_refused(
    tiny_model_dir: Callable[..., Path], tiny_llama: Path, tmp_path: Path
) -> None:
    other = tiny_model_dir("qwen2")
    for teacher, message in (
        (str(other), "has other tokens than .*; name a model with the same tokenizer"),
        (str(tmp_path / "none"), "none"),
    ):
        with pytest.raises(UserError, match=message):
            run(tiny_llama, tmp_path / "out", SHORTER, {**SHORT, "teacher": teacher})
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValidationError, match="nothing is asked of teacher where hard is 1 and the text is given"):
        recipe({**SHORT, "teacher": str(other), "hard": 1.0})


def test_work_is_not_gone_on_with_when_the_teacher_has_changed(tiny_llama: Path, tmp_path: Path) -> None:
    teacher, file, out = tmp_path / "teacher", tmp_path / "recipe.yaml", tmp_path / "out"
    shutil.copytree(tiny_llama, teacher)
    step = {**SHORT, "updates": 20, "teacher": str(teacher)}
    file.write_text(recipe(SHORTER, step).model_dump_json(), encoding="utf-8")
    killed(10, tiny_llama, file, out)
    weights = teacher / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=f"teacher {re.escape(str(teacher))}"):
        run(tiny_llama, out, SHORTER, step, resume=True)


LEARNED = {key: value for key, value in DISTILL.items() if key != "step"}
GRADUAL = {**PRUNE, "sparsity": 0.6, "training": {**LEARNED, "updates": 60}}


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_zeros_come_little_by_little(scope: str, tiny_llama: Path, tmp_path: Path) -> None:
    at_once = {key: value for key, value in GRADUAL.items() if key != "training"}
    _, then_trained = run(tiny_llama, tmp_path / "once", {**at_once, "scope": scope}, {**DISTILL, "updates": 60})
    (gradual,) = run(tiny_llama, tmp_path / "out", {**GRADUAL, "scope": scope})
    assert gradual["sparsity"] == pytest.approx(0.6, abs=0.001)
    assert gradual["mean_kl"] < 1.1 * then_trained["mean_kl"]
    shares = [
        float((tensor == 0).float().mean())
        for name, tensor in opened(tmp_path / "out").state_dict().items()
        if ".layers." in name and tensor.dim() == 2
    ]
    assert (max(shares) - min(shares) < 0.01) == (scope == "layer")
    (note,) = gradual["notes"]
    assert int(note.split()[-3]) >= 36  # what is best is asked once all zeros are there


def test_a_pruning_that_is_killed_goes_on_to_the_same_weights(tiny_llama: Path, tmp_path: Path) -> None:
    gradual = {**GRADUAL, "training": {**GRADUAL["training"], "text": SHORT["text"]}}
    whole = run(tiny_llama, tmp_path / "whole", gradual)
    file, out = tmp_path / "recipe.yaml", tmp_path / "out"
    file.write_text(recipe(gradual).model_dump_json(), encoding="utf-8")
    killed(20, tiny_llama, file, out)
    killed(45, tiny_llama, file, out, "--resume")
    resumed = run(tiny_llama, out, gradual, resume=True)
    assert [{**one, "seconds": 0} for one in resumed] == [{**one, "seconds": 0} for one in whole]
    weights = "model.safetensors"
    assert (out / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def test_more_is_pruned_on_the_schedule_and_never_less() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(40, 50, generator=generator))
    optimizer = torch.optim.AdamW([weight], lr=0.05, weight_decay=0.0)
    pruning = Pruning({"w": weight}, 0.8, 100, over_all=False)
    assert pruning.end == 60
    gone = torch.zeros(40, 50, dtype=torch.bool)
    for update in range(1, 101):
        weight.grad = torch.randn(40, 50, generator=generator).masked_fill(weight.detach() == 0, 0)
        optimizer.step()
        pruning.advance(update, optimizer)
        zero = weight.detach() == 0
        assert (zero | ~gone).all()
        assert int(zero.sum()) == round(sparsity_at(update, 0, 60, 0.0, 0.8) * 2000)
        gone = zero
    with pruning.at_once():
        assert int((weight == 0).sum()) == 1600


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{**GRADUAL, "method": "wanda"}], "training goes with method magnitude and sparsity only"),
        ([{**GRADUAL, "sparsity": None, "pattern": "2:4"}], "training goes with method magnitude and sparsity only"),
        ([{"step": "share", "method": "codebook"}, GRADUAL], "prune with training has to stand before share"),
    ],
)
def test_what_does_not_go_with_gradual_pruning(steps: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(*steps)
