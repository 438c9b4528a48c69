"""The initialize step: a student of another shape, what it keeps of its teacher, and that it can be taught."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from support.forked import killed
from support.recipes import TEXT, opened_subject, recipe, run
from support.removal import opened, removed

from exporter.compress.initialize.step import run as initialize
from exporter.compress.remove.layers import remove_layers
from runtime.errors import UserError
from targets.widths import WIDTHS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exporter.compress.subject import Subject

SMALLER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
STUDENT = {"step": "initialize", "change": SMALLER}
DISTILL = {"step": "distill", "updates": 40, "batch": 4, "learning_rate": 3e-3, "top": 1000, "text": TEXT}


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_student_of_another_shape_is_taught(family: str, tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    new, taught = run(tiny_model_dir(family), tmp_path / "out", STUDENT, {**DISTILL, "features": {}})
    assert taught["mean_kl"] < 0.8 * new["mean_kl"]
    model = opened(tmp_path / "out")
    assert {key: getattr(model.config, key) for key in SMALLER} == SMALLER
    assert [len(model.model.layers), model.model.layers[0].mlp.up_proj.weight.shape] == [3, (48, 32)]
    assert new["n_params"] == taught["n_params"] == sum(one.numel() for one in model.parameters())
    (note,) = new["notes"]
    assert note.startswith("initialize: ")
    assert note.endswith(f" of {new['n_params']:,} weights are new")


def opened_student(source: Path, room: Path, step: dict[str, Any], seed: int = 0) -> tuple[Subject, dict[str, Any]]:
    """A student as the step leaves it, and the weights of its teacher."""
    subject = opened_subject(source, room, step, DISTILL, seed=seed)
    teacher = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    initialize(subject.recipe.steps[0], subject)
    return subject, teacher


def test_weights_that_fit_are_the_teachers(tiny_llama: Path, tmp_path: Path) -> None:
    narrow = {"step": "initialize", "change": {"intermediate_size": 48}}
    subject, teacher = opened_student(tiny_llama, tmp_path, narrow)
    for name, tensor in subject.model.state_dict().items():
        assert torch.equal(tensor, teacher[name]) if ".mlp." not in name else tensor.shape != teacher[name].shape
    assert [subject.layers, subject.config] == [[], {"intermediate_size": 48}]
    remove_layers(subject, 1, "magnitude")
    assert subject.layers == []
    others = [opened_student(tiny_llama, tmp_path, {**narrow, "reuse": False}, seed)[0] for seed in (0, 0, 1)]
    matrices = [one.model.state_dict()["model.layers.0.self_attn.q_proj.weight"] for one in others]
    assert torch.equal(matrices[0], matrices[1])
    assert not torch.equal(matrices[0], matrices[2])
    assert not torch.equal(matrices[0], teacher["model.layers.0.self_attn.q_proj.weight"])
    for one in (subject, *others):
        one.source.close()


def test_a_null_that_means_something_is_not_lost(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    step = {"step": "initialize", "change": {"sliding_window": None, "intermediate_size": 48}}
    message = "initialize: sliding_window: null cannot be kept, it would become 4096; give it a value"
    with pytest.raises(UserError, match=message):
        run(tiny_model_dir("mistral", sliding_window=16), tmp_path / "out", step, DISTILL)


def test_a_head_that_becomes_the_table_is_stored_once(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    change = {"tie_word_embeddings": True, "intermediate_size": 48}
    new, _ = run(tiny_model_dir("llama2"), tmp_path / "out", {"step": "initialize", "change": change}, DISTILL)
    model = opened(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert new["n_params"] == sum(one.numel() for one in model.parameters())
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    subject, teacher = opened_student(tiny_model_dir("llama2"), tmp_path, {"step": "initialize", "change": change})
    assert torch.equal(subject.model.lm_head.weight, teacher["model.embed_tokens.weight"])
    subject.source.close()


@pytest.mark.parametrize(
    "change", [{"rope_theta": 5000.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}]
)
def test_angles_as_the_public_models_write_them(
    change: dict[str, Any], tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    source = tiny_model_dir("llama3", public_config=True)
    subject, _ = opened_student(source, tmp_path, {"step": "initialize", "change": change})
    scaled = "rope_theta" in change  # rope_scaling stays then
    rope = subject.model.config.rope_parameters
    assert [rope["rope_theta"], rope["rope_type"]] == [5000.0, "llama3" if scaled else "default"]
    config = subject.configured(subject.facts.config)
    assert ("rope_scaling" in config) == scaled
    again = type(subject.model.config).from_dict(config).rope_parameters
    assert [again["rope_theta"], again["rope_type"]] == [rope["rope_theta"], rope["rope_type"]]
    subject.source.close()


def test_a_whole_configuration_of_its_own(tiny_llama: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_llama / "config.json").read_text(encoding="utf-8"))
    theirs = {**config, **SMALLER, "eos_token_id": 77, "architectures": None, "torch_dtype": "bfloat16",
              "quantization_config": {"quant_method": "awq"}}  # fmt: skip
    del theirs["rms_norm_eps"]
    (tmp_path / "student.json").write_text(json.dumps(theirs), encoding="utf-8")
    subject, _ = opened_student(tiny_llama, tmp_path, {"step": "initialize", "config": str(tmp_path / "student.json")})
    assert subject.config == {**SMALLER, "rms_norm_eps": None}  # whoever loads it and the tokens stay
    assert subject.model.config.rms_norm_eps == 1e-6  # transformers' own, where nothing is said
    assert "rms_norm_eps" not in subject.configured(config)
    subject.source.close()


@pytest.mark.parametrize(("layers", "kinds"), [(4, ["sliding_attention"] * 4), (6, None)])
def test_kinds_of_layers_that_are_named(
    layers: int, kinds: list[str] | None, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    """Of Gemma's six layers the last one looks at everything."""
    change = {"num_hidden_layers": layers, "intermediate_size": 32}
    step = {"step": "initialize", "change": change}
    subject, _ = opened_student(tiny_model_dir("gemma3"), tmp_path, step)
    assert subject.config == {key: value for key, value in change.items() if value != 6} | (
        {} if kinds is None else {"layer_types": kinds}
    )
    subject.source.close()
    with pytest.raises(UserError, match=r"no model has this configuration \(.*layer_types"):
        opened_student(tiny_model_dir("gemma3"), tmp_path, {"step": "initialize", "change": {"num_hidden_layers": 8}})


def test_a_kill_changes_nothing_in_the_end(tiny_llama: Path, tmp_path: Path) -> None:
    distill = {**DISTILL, "features": {}, "text": {**TEXT, "chunks": 20}}
    steps, more = (STUDENT, distill, {"step": "quantize", "preset": "q8_0"}), {"format": "gguf"}
    whole = run(tiny_llama, tmp_path / "whole", *steps, **more)
    file, out = tmp_path / "recipe.yaml", tmp_path / "out"
    file.write_text(recipe(*steps, **more).model_dump_json(), encoding="utf-8")
    killed(15, tiny_llama, file, out)
    resumed = run(tiny_llama, out, *steps, resume=True, **more)
    assert [{**one, "seconds": 0} for one in resumed] == [{**one, "seconds": 0} for one in whole]
    for name in ("model.safetensors", "packlight_ggml.safetensors", "config.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_sizes": 32}, "the model's configuration has no hidden_sizes; did you mean hidden_size"),
        ({"vocab_size": 77}, "change: vocab_size is 77, the model's .*; a student has the tokens of its teacher"),
        ({"model_type": "qwen2"}, "change: model_type is 'qwen2', the model's 'llama'; a student has the family"),
        ({"num_attention_heads": 5}, r"no model has this configuration \(.*\); mend it"),
        ({"hidden_size": "wide"}, r"no model has this configuration \(.*\); mend it"),
        ({"num_hidden_layers": 0}, r"no model has this configuration \(it has no layers, or .*\); mend it"),
        ({"intermediate_size": 0}, r"no model has this configuration \(.*matrices without weights\); mend it"),
        ({"hidden_size": 0}, r"no model has this configuration \(.*\); mend it"),
        ({"hidden_size": None}, r"no model has this configuration \(.*hidden_size.*\); mend it"),
        ({"eos_token_id": 7, **SMALLER}, "change: eos_token_id stays the teacher's; leave it out"),
        ({"dtype": "float16", **SMALLER}, "change: dtype stays the teacher's; leave it out"),
        ({"num_key_value_heads": 3}, r"no model has this configuration \(.*\); mend it"),
        ({"hidden_size": 64}, "changes nothing; name keys that the student has otherwise"),
    ],
)
def test_what_a_student_cannot_have(change: dict[str, Any], message: str, tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^--recipe: initialize: {message}"):
        run(tiny_llama, tmp_path / "out", {"step": "initialize", "change": change}, DISTILL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("format_name", "preset", "change", "message"),
    [
        ("gguf", "q4_0", {"hidden_size": 40, "head_dim": 10, "intermediate_size": 40}, "preset q4_0 keeps floats"),
        ("onnx", "int4", {"hidden_size": 40, "head_dim": 10, "intermediate_size": 40}, "rows of 40 do not divide"),
        ("onnx", "dynamic-int8", {"head_dim": 6}, "head_dim"),
    ],
)
def test_what_the_format_cannot_hold_is_said_before_anything_is_learned(
    format_name: str, preset: str, change: dict[str, Any], message: str, tiny_llama: Path, tmp_path: Path
) -> None:
    learns = {**DISTILL, "text": {"text": str(tmp_path / "nowhere")}}
    steps = ({"step": "initialize", "change": change}, learns, {"step": "quantize", "preset": preset})
    with pytest.raises(UserError, match=message):
        run(tiny_llama, tmp_path / "out", *steps, format=format_name)


def test_a_source_of_uneven_layers(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    source = tmp_path / "uneven"
    how = {"units": "neurons", "share": 0.4, "widths": "uneven", "scores": "magnitude"}
    removed(tiny_model_dir("llama", layers=3, intermediate_size=160), source, **how)
    assert json.loads((source / "config.json").read_text(encoding="utf-8"))[WIDTHS]
    step = {"step": "initialize", "change": {"num_hidden_layers": 2}}
    run(source, tmp_path / "out", step, {**DISTILL, "updates": 20})
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert WIDTHS not in config
    widths = {layer.mlp.up_proj.out_features for layer in opened(tmp_path / "out").model.layers}
    assert widths == {config["intermediate_size"]}


def test_work_is_not_gone_on_with_when_the_students_shape_has_changed(tiny_llama: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_llama / "config.json").read_text(encoding="utf-8"))
    file = tmp_path / "student.json"
    file.write_text(json.dumps({**config, **SMALLER}), encoding="utf-8")
    steps = ({"step": "initialize", "config": str(file)}, {**DISTILL, "learning_rate": 50.0, "updates": 2})
    with pytest.raises(UserError, match="no better"):
        run(tiny_llama, tmp_path / "out", *steps)
    file.write_text(json.dumps({**config, **SMALLER, "num_hidden_layers": 1}), encoding="utf-8")
    with pytest.raises(UserError, match=r"was begun with another student .*student\.json; leave --resume out"):
        run(tiny_llama, tmp_path / "out", *steps, resume=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory); name a config.json"),
        ("{", "is not JSON in UTF-8"),
        ("[]", "is no configuration of a model; name a config.json"),
        ('{"hidden_size": 3}', "is no configuration of a model; name a config.json"),
    ],
)
def test_a_configuration_that_is_none(content: str | None, message: str, tiny_llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "student.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        run(tiny_llama, tmp_path / "out", {"step": "initialize", "config": str(file)}, DISTILL)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    "steps",
    [
        (DISTILL, STUDENT),
        (STUDENT,),
        (STUDENT, {**DISTILL, "train": "norms"}),
        (STUDENT, {"step": "prune", "method": "magnitude", "sparsity": 0.5}, DISTILL),
        (STUDENT, DISTILL, STUDENT),
    ],
)
def test_it_comes_first_and_is_taught_next(steps: tuple[dict[str, Any], ...]) -> None:
    with pytest.raises(ValidationError, match="initialize has to be the first step, and distill with train: all the"):
        recipe(*steps)


@pytest.mark.parametrize("said", [{}, {"config": "a.json", "change": {}}])
def test_either_config_or_change(said: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="needs either config or change"):
        recipe({"step": "initialize", **said}, DISTILL)
