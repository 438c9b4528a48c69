"""What lies within a teacher and is followed: which layers, how far, and that training brings them nearer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.forked import killed
from support.recipes import TEXT, opened_subject, recipe, run
from support.removal import opened

from exporter.compress.remove.step import run as remove
from exporter.compress.training.features import Followed, followed, pairs
from exporter.compress.training.lessons import lessons
from exporter.compress.training.losses import DISTANCES
from exporter.compress.training.predictions import predictions
from exporter.compress.training.student import nothing_dropped
from exporter.steps import Features
from runtime.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from exporter.compress.subject import Subject

SPACED = {"step": "remove", "units": "layers", "count": 1, "scores": "spaced"}
"""Of four layers, counted from 0: 0, 2 and 3 stay."""
BOTH = {"hidden": 1.0, "attention": 1.0}
DISTILL = {
    "step": "distill", "updates": 40, "batch": 4, "learning_rate": 1e-3, "top": 1000, "text": TEXT, "features": BOTH
}  # fmt: skip
IDS = torch.randint(500, (2, 24), generator=torch.Generator().manual_seed(0))
EXAMPLE = {"input_ids": IDS[:1]}


@pytest.fixture
def four_layers(tiny_model_dir: Callable[..., Path]) -> Path:
    return tiny_model_dir("llama", layers=4)


@pytest.fixture
def shorter(four_layers: Path, tmp_path: Path) -> Iterator[Subject]:
    """The model without its second layer, whose distill step follows outputs and maps."""
    subject = opened_subject(four_layers, tmp_path, SPACED, DISTILL)
    remove(subject.recipe.steps[0], subject)
    yield subject
    subject.source.close()


def within(model: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Outputs of the layers, the last one's before the final norm, and attention maps, as transformers gives them."""
    model.set_attn_implementation("eager")
    last: list[torch.Tensor] = []
    handle = model.base_model.norm.register_forward_pre_hook(lambda _module, args: last.append(args[0]))
    with torch.no_grad():
        output = model(input_ids=IDS, output_hidden_states=True, output_attentions=True)
    handle.remove()
    hidden = [*output.hidden_states[1:-1], last[0]]
    return [one.numpy() for one in hidden], [one.numpy() for one in output.attentions]


def test_the_loss_is_that_of_transformers_own_outputs(shorter: Subject, four_layers: Path) -> None:
    step = shorter.recipe.steps[1].model_copy(update={"features": Features(hidden=2.0, attention=3.0)})
    with followed(step, shorter, EXAMPLE) as features, torch.no_grad():
        with features.watching():
            shorter.model(input_ids=IDS)
        features.teach({"input_ids": IDS})
        found = float(features.loss({"input_ids": IDS}))
    assert shorter.model.config._attn_implementation == "sdpa"
    (hidden, maps), (of_teacher, teachers_maps) = within(shorter.model), within(opened(four_layers))
    squares = [
        ((hidden[n] - of_teacher[t]) ** 2).sum(-1) / (of_teacher[t] ** 2).sum(-1) for n, t in enumerate((1, 2, 3))
    ]
    expected = 2 * np.mean(squares)
    for number, of in enumerate((0, 2, 3)):
        p, q = teachers_maps[of], maps[number]
        rows = np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / np.where(q > 0, q, 1)), 0).sum(-1)
        expected += 3 * rows.mean() / 3
    assert found == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("said", "sizes", "own", "hidden", "maps"),
    [
        # outputs are what the next layer used to read, maps the layer's own
        ({}, (3, 4), [0, 2, 3], [(0, 1), (1, 2), (2, 3)], [(0, 0), (1, 2), (2, 3)]),
        ({}, (2, 5), [1, 2], [(0, 1), (1, 4)], [(0, 1), (1, 2)]),
        ({}, (2, 2), [0, 1], [(0, 0), (1, 1)], [(0, 0), (1, 1)]),
        ({}, (4, 12), None, [(0, 2), (1, 5), (2, 8), (3, 11)], [(0, 2), (1, 5), (2, 8), (3, 11)]),
        ({}, (3, 4), None, [(0, 0), (1, 2), (2, 3)], [(0, 0), (1, 2), (2, 3)]),
        ({}, (3, 1), None, [(0, 0), (1, 0), (2, 0)], [(0, 0), (1, 0), (2, 0)]),
        ({"layers": [3, None, 0]}, (3, 4), [0, 2, 3], [(0, 3), (2, 0)], [(0, 3), (2, 0)]),
        ({"attention": 0}, (1, 1), None, [(0, 0)], []),
        ({"hidden": 0}, (1, 1), None, [], [(0, 0)]),
    ],
)  # fmt: skip
def test_which_layer_follows_which(
    said: dict[str, Any], sizes: tuple[int, int], own: list[int] | None, hidden: list[Any], maps: list[Any]
) -> None:
    found = pairs(Features(**{**BOTH, **said}), *sizes, own)
    assert [list(one) for one in found] == [hidden, maps]


def apart(distance: str, out: Path, source: Path, own: tuple[int, ...]) -> tuple[float, float]:
    """How far a model's outputs of layers and attention maps are from its source's. own: the source's layer of each."""
    (hidden, maps), (of_source, maps_of_source) = within(opened(out)), within(opened(source))
    followed_by = [*(following - 1 for following in own[1:]), len(of_source) - 1]
    states = [
        DISTANCES[distance](torch.from_numpy(of_source[of]), torch.from_numpy(one)).mean()
        for one, of in zip(hidden, followed_by, strict=True)
    ]
    attended = [np.abs(one - maps_of_source[of]).mean() for one, of in zip(maps, own, strict=True)]
    return float(np.mean(states)), float(np.mean(attended))


@pytest.mark.parametrize(
    ("distance", "more"), [("nmse", {}), ("cosine", {"train": "lora", "rank": 4, "learning_rate": 1e-2})]
)
def test_what_lies_within_comes_nearer(distance: str, more: dict[str, Any], four_layers: Path, tmp_path: Path) -> None:
    found = []
    for number, features in enumerate(({"hidden": 5.0, "attention": 5.0, "distance": distance}, None)):
        out = tmp_path / str(number)
        removed, distilled = run(four_layers, out, SPACED, {**DISTILL, **more, "features": features})
        assert distilled["mean_kl"] < removed["mean_kl"]
        found.append(apart(distance, out, four_layers, (0, 2, 3)))
    (near, near_maps), (far, far_maps) = found
    assert near < 0.97 * far
    assert near_maps < 0.97 * far_maps


def test_a_wider_teacher_is_followed_through_projections_that_a_kill_keeps(
    tiny_model_dir: Callable[..., Path], four_layers: Path, tmp_path: Path
) -> None:
    teacher = tiny_model_dir("llama", hidden=128, layers=3, seed=1)
    step = {**DISTILL, "teacher": str(teacher), "learning_rate": 3e-3, "text": {**TEXT, "chunks": 20}}
    whole = run(four_layers, tmp_path / "whole", SPACED, step)
    file, out = tmp_path / "recipe.yaml", tmp_path / "out"
    file.write_text(recipe(SPACED, step).model_dump_json(), encoding="utf-8")
    killed(15, four_layers, file, out)
    killed(31, four_layers, file, out, "--resume")
    resumed = run(four_layers, out, SPACED, step, resume=True)
    assert [{**one, "seconds": 0} for one in resumed] == [{**one, "seconds": 0} for one in whole]
    weights = "model.safetensors"
    assert (out / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def test_a_kill_between_steps_keeps_which_layers_are_left(four_layers: Path, tmp_path: Path) -> None:
    step = {**DISTILL, "updates": 4, "text": {**TEXT, "chunks": 20}}
    run(four_layers, tmp_path / "whole", SPACED, step)
    file, out = tmp_path / "recipe.yaml", tmp_path / "out"
    file.write_text(recipe(SPACED, step).model_dump_json(), encoding="utf-8")
    killed(2, four_layers, file, out)
    run(four_layers, out, SPACED, step, resume=True)
    weights = "model.safetensors"
    assert (out / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def test_activations_that_are_computed_again_are_the_same(four_layers: Path, tmp_path: Path) -> None:
    found = []
    for again in (False, True):
        step = {**DISTILL, "updates": 6, "gradient_checkpointing": again, "text": {**TEXT, "chunks": 20}}
        run(four_layers, tmp_path / str(again), SPACED, step)
        found.append(opened(tmp_path / str(again)).state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "step",
    [
        {"step": "quantize", "preset": "q4_0", "method": "rtn"},
        {"step": "prune", "method": "magnitude", "sparsity": 0.5},
    ],
)
def test_other_trainings_follow_too(
    step: dict[str, Any], four_layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    loss = Followed.loss

    def counted(self: Followed, ids: torch.Tensor) -> torch.Tensor:
        found = loss(self, ids)
        asked.append(found.item())
        return found

    monkeypatch.setattr(Followed, "loss", counted)
    learned = {key: value for key, value in DISTILL.items() if key != "step"}
    made = {"format": "gguf"} if step["step"] == "quantize" else {}
    run(four_layers, tmp_path / "alone", step, **made)
    training = {**learned, "learning_rate": 3e-4, "features": {"hidden": 100.0, "attention": 100.0}}
    run(four_layers, tmp_path / "trained", {**step, "training": training}, **made)
    alone, trained = (apart("nmse", tmp_path / name, four_layers, (0, 1, 2, 3)) for name in ("alone", "trained"))
    assert trained[0] < alone[0]
    assert trained[1] < alone[1]
    assert len(asked) == 40  # at every update, and not where it is judged


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"layers": [0, 1]}, "layers names 2, the model has 3 layers by then; name one of the teacher's for each"),
        ({"layers": [0, 1, 4]}, "the teacher has layers 0 to 3, layers names 4; name others"),
    ],
)
def test_layers_that_there_are_not(features: dict[str, Any], message: str, shorter: Subject) -> None:
    step = shorter.recipe.steps[1].model_copy(update={"features": Features(**features)})
    with pytest.raises(UserError, match=f"--recipe: features: {message}"), followed(step, shorter, EXAMPLE):
        pass


def test_maps_of_other_heads_do_not_compare(four_layers: Path, tmp_path: Path) -> None:
    fewer = {"step": "remove", "units": "heads", "count": 1, "scores": "magnitude", "repair": False}
    with pytest.raises(UserError, match="layer 0 has 2 heads, layer 0 of the teacher 4; leave attention out"):
        run(four_layers, tmp_path / "out", fewer, DISTILL)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"hidden": 0}, "hidden and attention are both 0; leave features out, or give one a weight"),
        ({"layers": [None, None]}, "layers names none; leave features out, or name one of the teacher's"),
        ({"distance": "mse"}, "nmse"),
        ({"hidden": -1}, "greater than or equal to 0"),
    ],
)
def test_what_does_not_go_together(features: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Features(**features)


def test_a_teacher_of_layers_alone_is_asked() -> None:
    """With hard 1 nothing is asked of a named teacher, but for what lies within it."""
    step = {**DISTILL, "teacher": "teacher", "hard": 1.0}
    assert recipe(step).steps[0].features == Features(**BOTH)
    with pytest.raises(ValidationError, match="nothing is asked of teacher"):
        recipe({**step, "features": None})


def test_what_rotate_has_turned_is_not_followed() -> None:
    features, rotate = {**DISTILL, "features": {"hidden": 1.0}}, {"step": "rotate"}
    message = "features: hidden cannot be followed behind rotate, which turns them; say hidden: 0"
    quantize = {"step": "quantize", "preset": "q4_0"}
    training = {key: value for key, value in features.items() if key != "step"}
    for steps in ([rotate, features], [rotate, {**quantize, "training": training}]):
        with pytest.raises(ValidationError, match=message):
            recipe(*steps, format="gguf")
    recipe(features, rotate)
    recipe({**rotate, "spaces": ["values"]}, features)
    recipe(rotate, {**DISTILL, "features": {"hidden": 0, "attention": 1}})


def test_nothing_is_dropped_from_maps_that_are_followed(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    subject = opened_subject(tiny_model_dir("llama", attention_dropout=0.5), tmp_path, DISTILL)
    with followed(subject.recipe.steps[0], subject, EXAMPLE) as features, torch.no_grad():
        subject.model.train()
        with features.watching(), nothing_dropped(subject.model):
            subject.model(input_ids=IDS)
        features.teach({"input_ids": IDS})
        assert float(features.loss({"input_ids": IDS})) == pytest.approx(0, abs=1e-5)
    assert {layer.self_attn.attention_dropout for layer in subject.model.model.layers} == {0.5}
    subject.source.close()


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (SimpleNamespace(), "SimpleNamespace keeps its layers where .*; leave features out"),
        (
            SimpleNamespace(layers=[SimpleNamespace()]),
            "SimpleNamespace keeps its attention where .*; leave attention out",
        ),
    ],
)
def test_layers_that_are_built_otherwise(base: Any, message: str, shorter: Subject) -> None:
    shorter.source._model = SimpleNamespace(base_model=base)
    with (
        pytest.raises(UserError, match=f"--recipe: features: {message}"),
        followed(shorter.recipe.steps[1], shorter, EXAMPLE),
    ):
        pass


def test_a_teacher_that_is_followed_says_there_what_it_predicts(shorter: Subject) -> None:
    """It is not asked before; a piece that judges has its predictions from before all the same."""
    step = shorter.recipe.steps[1].model_copy(update={"temperature": 1.5, "top": 9, "features": None})
    expected, judges = lessons(step, shorter)
    step = step.model_copy(update={"features": Features(**BOTH)})
    learned, still_judges = lessons(step, shorter)
    assert all(torch.equal(one["outcomes"], judges[number]["outcomes"]) for number, one in enumerate(still_judges))
    assert learned[0].keys() == {"input_ids"}
    batch, of_before = (one.collate([one[3], one[5]]) for one in (learned, expected))
    with followed(step, shorter, EXAMPLE) as features:
        said = predictions(step, shorter).said(features.teach(batch), batch)
    assert torch.equal(said["tokens"], of_before["tokens"])
    torch.testing.assert_close(said["outcomes"], of_before["outcomes"], rtol=1e-4, atol=1e-5)
