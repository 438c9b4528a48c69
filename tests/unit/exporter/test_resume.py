"""A compression that was killed goes on where it was, and ends in the very bytes of one that was not."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from support.forked import killed_in

from exporter.checkpoint import resolve
from exporter.compress import journal as journals
from exporter.compress.factored import factored_modules
from exporter.compress.job import CompressRequest, compress
from exporter.compress.journal import Journal, work_of, working
from exporter.compress.mapped import MappedReference
from exporter.compress.registry import runner
from exporter.compress.settled import restore, settle
from exporter.compress.subject import Subject
from exporter.compress.walk import Walk
from exporter.progress import SilentReporter
from exporter.recipe import Recipe
from runtime.errors import UserError
from targets.ongrid import RECIPE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXT = {"source": "help", "chunks": 3, "tokens": 48}
QUANTIZE = {"step": "quantize", "preset": "q4_0", "method": "gptq"}
ONE = {"format": "gguf", "calibration": TEXT, "steps": [QUANTIZE]}
GGUF = {
    "format": "gguf",
    "calibration": {"chunks": 3, "tokens": 48},  # the model's own text, which a changed model would write otherwise
    "steps": [
        {"step": "rotate"},
        {"step": "remove", "units": "neurons", "share": 0.25},
        {**QUANTIZE, "types": "measured"},
    ],
}
ONNX = {
    "format": "onnx",
    "calibration": TEXT,
    "steps": [
        {"step": "prune", "method": "wanda", "sparsity": 0.5},
        {"step": "factorize", "keep": 0.6},
        {"step": "quantize", "preset": "int4", "method": "autoround", "iterations": 4},
    ],
}
KILLED = """
import os, signal
from exporter.compress.journal import Journal
what, when = {at!r}.split(":")
note, seen = Journal.note, []
def killing(self, name, **content):
    seen.append(name)
    last = seen.count(what) == int(when.lstrip("-")) and name == what
    if last and when.startswith("-"):
        os.kill(os.getpid(), signal.SIGKILL)
    note(self, name, **content)
    if last:
        os.kill(os.getpid(), signal.SIGKILL)
Journal.note = killing
"""


def write(path: Path, recipe: dict[str, Any]) -> Path:
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def killed(at: str, source: Path, recipe: Path, out: Path, *more: str) -> None:
    """A run that SIGKILL ends at the n-th line of a name, "name:n", or before that line is written, "name:-n"."""
    killed_in(KILLED.format(at=at), source, recipe, out, *more)


def run(source: Path, recipe: dict[str, Any], out: Path, *, resume: bool = False) -> Path:
    made = Recipe.model_validate(recipe)
    compress(CompressRequest(str(source), out, made, "test", 1, resume=resume), SilentReporter())
    return out


def content(directory: Path) -> dict[str, Any]:
    """Every file's bytes; of the report all but what differs in any two runs."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in directory.iterdir()}
    report = json.loads(found.pop(RECIPE))
    for step in report["steps"]:
        assert step.pop("seconds") >= 0
    return {**found, "report": {key: value for key, value in report.items() if key not in ("out", "recipe_name")}}


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(scope="module")
def undisturbed(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Any]:
    """The content that a recipe ends in where nothing kills it, made once each."""

    @cache
    def make(recipe: str) -> dict[str, Any]:
        return content(run(tiny_llama, json.loads(recipe), tmp_path_factory.mktemp("undisturbed") / "whole"))

    return lambda recipe: make(json.dumps(recipe))


@pytest.mark.parametrize(
    ("recipe", "kills"),
    [
        (ONE, ["layer-0:1"]),
        (ONE, ["layer-1:-1", "head:1"]),
        (GGUF, ["step:1", "layer-0:1"]),
        (GGUF, ["step:-2", "types:1", "layer-1:1"]),
        (ONNX, ["step:2", "layer-0:-1", "head:-1"]),
    ],
)
def test_the_result_is_the_same(
    recipe: dict[str, Any], kills: list[str], undisturbed: Callable[[dict[str, Any]], Any], tiny_llama: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    file, out = write(tmp_path / "recipe.yaml", recipe), tmp_path / "out"
    for number, kill in enumerate(kills):
        killed(kill, tiny_llama, file, out, *(["--resume"] if number else []))
        assert not out.exists()
        assert work_of(out).is_dir()
    assert content(run(tiny_llama, recipe, out, resume=True)) == undisturbed(recipe)
    assert names(tmp_path) == ["out", "recipe.yaml"]


def test_what_is_finished_is_not_computed_again(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    killed("layer-0:1", tiny_llama, write(tmp_path / "recipe.yaml", ONE), out)
    seen: list[int] = []
    observe = Walk.observe
    monkeypatch.setattr(Walk, "observe", lambda self, number: seen.append(number) or observe(self, number))
    run(tiny_llama, ONE, out, resume=True)
    assert 0 not in seen
    assert 1 in seen
    shutil.rmtree(out)
    killed("layer-0:1", tiny_llama, tmp_path / "recipe.yaml", out)
    run(tiny_llama, ONE, out)  # without it everything is
    assert 0 in seen


def test_measured_types_are_not_measured_again(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, recipe = tmp_path / "out", {**ONE, "steps": [{**QUANTIZE, "types": "measured"}]}
    killed("types:1", tiny_llama, write(tmp_path / "recipe.yaml", recipe), out)
    monkeypatch.setattr("exporter.compress.quantize.step._measured_grids", lambda *_: pytest.fail("was kept"))
    assert list(run(tiny_llama, recipe, out, resume=True).glob("*.safetensors"))


def test_what_is_damaged_is_done_again(
    undisturbed: Callable[[dict[str, Any]], Any], tiny_llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    killed("layer-1:1", tiny_llama, write(tmp_path / "recipe.yaml", ONE), out)
    with (work_of(out) / "layer-0.safetensors").open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"???")
    with (work_of(out) / journals.NAME).open("ab") as file:
        file.write(b'{"what": "layer-')  # a kill within a line
    assert content(run(tiny_llama, ONE, out, resume=True)) == undisturbed(ONE)


def test_a_line_that_a_kill_cut_off_takes_no_other_with_it(tmp_path: Path) -> None:
    Journal(tmp_path).note("one", value=1)
    with (tmp_path / journals.NAME).open("ab") as file:
        file.write(b'{"what": "tw')
    Journal(tmp_path).note("three", value=3)
    again = Journal(tmp_path)
    assert again.find("one") == {"what": "one", "value": 1}
    assert again.find("tw") is None
    assert again.find("three") == {"what": "three", "value": 3}


def test_another_model_recipe_or_text_is_refused(
    tiny_llama: Path, tiny_model_dir: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("one two three four " * 99, encoding="utf-8")
    recipe = {**ONE, "calibration": {"text": str(text), "chunks": 2, "tokens": 32}}
    killed("layer-0:1", tiny_llama, write(tmp_path / "recipe.yaml", recipe), out)
    anew = "leave --resume out to begin anew"
    with pytest.raises(UserError, match=rf"--resume: .*\.out\.work was begun with another recipe; {anew}"):
        run(tiny_llama, {**recipe, "seed": 1}, out, resume=True)
    with pytest.raises(UserError, match="another model"):
        run(tiny_model_dir("llama", hidden=256), recipe, out, resume=True)
    text.write_text("five six seven eight " * 99, encoding="utf-8")
    with pytest.raises(UserError, match=f"the calibration text is another than .*{anew}"):
        run(tiny_llama, recipe, out, resume=True)
    text.write_text("one two three four " * 99, encoding="utf-8")
    monkeypatch.setattr("exporter.compress.job.version", lambda _name: "0.0.1")
    with pytest.raises(UserError, match="another version of packlight"):
        run(tiny_llama, recipe, out, resume=True)
    monkeypatch.undo()
    assert not out.exists()
    run(tiny_llama, recipe, out, resume=True)  # none of these took away what was done
    assert out.is_dir()


def test_a_run_that_fails_keeps_only_what_took_time(tiny_llama: Path, tmp_path: Path) -> None:
    impossible = {"step": "remove", "units": "layers", "count": 99}
    with pytest.raises(UserError):
        run(tiny_llama, {"calibration": TEXT, "steps": [impossible]}, tmp_path / "out")
    assert names(tmp_path) == []
    pruned = {"step": "prune", "method": "magnitude", "sparsity": 0.5}
    with pytest.raises(UserError):
        run(tiny_llama, {"calibration": TEXT, "steps": [pruned, impossible]}, tmp_path / "out")
    assert names(tmp_path) == [".out.work"]
    run(tiny_llama, {"calibration": TEXT, "steps": [pruned]}, tmp_path / "out")
    assert names(tmp_path) == ["out"]
    # Where nothing is to be gone on with, a run begins.
    run(tiny_llama, {"calibration": TEXT, "steps": [pruned]}, tmp_path / "other", resume=True)
    assert names(tmp_path) == ["other", "out"]


def test_two_do_not_work_on_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    work_of(out).mkdir()
    (work_of(out) / "theirs").touch()
    holder = os.open(work_of(out), os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="out: another process is compressing to it"), working(out, {}, resume=False):
        pass
    assert (work_of(out) / "theirs").exists()
    os.close(holder)
    with working(out, {}, resume=False) as journal:
        assert names(journal.room) == [journals.NAME]
    assert names(tmp_path) == []


def test_an_interrupt_says_how_to_go_on(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from exporter.cli import main

    note = Journal.note

    def interrupted(self: Journal, what: str, **content: Any) -> None:
        note(self, what, **content)
        if what == "layer-0":
            raise KeyboardInterrupt

    recipe, out = write(tmp_path / "recipe.yaml", ONE), tmp_path / "out"
    command = ["packlight", "compress", str(tiny_llama), "--recipe", str(recipe), "-o", str(out), "--threads", "1"]
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "note", interrupted)
        patched.setattr(sys, "argv", command)
        with pytest.raises(SystemExit, match="130"):
            main()
    said = capsys.readouterr().err
    assert f"error: interrupted; {work_of(out)} holds what is done, the same command with --resume goes on" in said
    monkeypatch.setattr(sys, "argv", [*command, "--resume"])
    with pytest.raises(SystemExit, match="0"):
        main()
    signal.signal(signal.SIGTERM, before)
    assert names(tmp_path) == ["out", "recipe.yaml"]


STEPS: list[dict[str, Any]] = [
    {"step": "rotate", "spaces": ["values"]},
    {"step": "remove", "units": "layers", "count": 1},
    {"step": "factorize", "method": "svd", "keep": 0.6},
]


def test_between_steps_the_model_stays_what_it_is(tiny_any: Path, tmp_path: Path) -> None:
    facts = resolve(str(tiny_any))
    groups = facts.config["num_key_value_heads"]
    heads = [{"step": "remove", "units": "heads", "count": groups // 2}] if groups > 1 else []
    steps = [*heads, *STEPS]
    recipe = Recipe.model_validate({"calibration": TEXT, "steps": steps})
    source = MappedReference(facts, tmp_path, threads=1)
    subject = Subject(facts, source, recipe, lambda *_: None)
    _ = subject.chunks
    ids = [5, 9, 40, 7, 100, 33, 12, 60] * 5
    with working(tmp_path / "out", {}, resume=False) as journal:
        for number, step in enumerate(recipe.steps):
            runner(step.step)(step, subject)
            expected, factors = source.logits(ids), [name for name, _ in factored_modules(subject.model)]
            weights = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
            settle(subject, journal, [{"number": n} for n in range(number + 1)])
            np.testing.assert_allclose(source.logits(ids), expected, rtol=0, atol=1e-5)
            assert [name for name, _ in factored_modules(subject.model)] == factors
            now = subject.model.state_dict()
            assert now.keys() == weights.keys()
            assert all(torch.equal(now[name], weights[name]) for name in weights)
        assert factors
        assert [path.name for path in journal.room.iterdir() if path.is_dir()] == [f"step-{len(steps)}"]
        # What the next step does is not in what a resumed run begins with.
        for _, module in subject.matrices():
            module.weight.data.zero_()
        again = Subject(facts, source, recipe, lambda *_: None)
        assert restore(again, Journal(journal.room)) == [{"number": n} for n in range(len(steps))]
        assert again.config == subject.config
        np.testing.assert_allclose(source.logits(ids), expected, rtol=0, atol=1e-5)
    source.close()
