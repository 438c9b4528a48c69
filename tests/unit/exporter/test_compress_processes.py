"""One compression in several processes: it learns what one process learns, and what one of them does wrong is said."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from support.forked import together
from support.recipes import TEXT, opened_subject, recipe, run
from support.tiny_encoders import make_tiny_encoder, write_pooling

from exporter.compress import processes
from exporter.compress.distill.step import run as distill
from exporter.compress.journal import NAME, ReadJournal, work_of, working
from exporter.compress.processes import ALONE, Launched, joined, launched, refuse_unsplit, said_after_first
from exporter.compress.training import sharded
from runtime.errors import EngineError, ModelError, UserError
from targets.ongrid import RECIPE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    Tensors = dict[str, npt.NDArray[np.float32]]

Steps = list[dict[str, Any]]

SHORTER = {"step": "remove", "units": "layers", "count": 1, "scores": "magnitude"}
LEARN = {"updates": 10, "batch": 4, "learning_rate": 1e-3, "text": {**TEXT, "chunks": 18}}
"""Of 18 pieces two are held out; the rest are whole batches, which any number of processes divides in the same way."""
DISTILL = {"step": "distill", **LEARN, "accumulate": 2, "features": {"hidden": 1.0}}
GRADUAL = {"step": "prune", "method": "magnitude", "sparsity": 0.5, "training": {**LEARN, "updates": 20}}
OF_TEXTS = {"step": "distill", **LEARN, "batch": 8}
NARROW = {"step": "initialize", "change": {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}}
ZEROS = {"step": "prune", "method": "magnitude", "sparsity": 0.5}
FSDP = {"ACCELERATE_USE_FSDP": "true"}
QUANTIZE = {"step": "quantize", "preset": "q4_0", "method": "gptq", "training": {**LEARN, "learning_rate": 1e-4}}


def together_run(source: Path, room: Path, steps: Sequence[dict[str, Any]], *more: str, **keys: Any) -> Any:
    """See `together`: into room/out."""
    file = room / "recipe.yaml"
    file.write_text(recipe(*steps, **keys).model_dump_json(exclude_none=True), encoding="utf-8")
    arguments = ("compress", source, "--recipe", file, "-o", room / "out", "--threads", "1", *more)
    return lambda **options: together(*arguments, **options)


@pytest.fixture
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a pooler, which its embedding does not read: nothing of it learns."""
    made = tmp_path_factory.mktemp("encoder") / "model"
    make_tiny_encoder(made, "Bert", "feature-extraction", num_hidden_layers=4, initializer_range=0.1)
    write_pooling(made, "mean")
    return made


SPLIT = """
from exporter.compress.training import trainer
go_on = trainer._Distilling.go_on
def only_split(self, work):
    assert self._split
    go_on(self, work)
trainer._Distilling.go_on = only_split
"""


@pytest.mark.parametrize(
    ("source", "steps", "environment"),
    [
        ("tiny_llama", [SHORTER, DISTILL], {}),
        ("tiny_llama", [GRADUAL], {}),
        ("tiny_llama", [NARROW, DISTILL], {}),
        ("tiny_llama", [SHORTER, {**DISTILL, "train": "lora"}], {}),
        ("encoder", [SHORTER, OF_TEXTS], {}),
        ("tiny_llama", [NARROW, DISTILL], FSDP),
        ("tiny_llama", [SHORTER, {**DISTILL, "train": "lora", "gradient_checkpointing": True}], FSDP),
        ("tiny_llama", [ZEROS, {**DISTILL, "features": None}], FSDP),
        ("encoder", [SHORTER, OF_TEXTS], FSDP),
    ],
    ids=["features", "gradual", "projections", "lora", "encoder",
         "split-projections", "split-lora", "split-zeros", "split-encoder"],
)  # fmt: skip
def test_two_learn_what_one_learns(
    source: str, steps: Steps, environment: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(source)
    alone = run(model, tmp_path / "alone", *steps)
    patches = {0: SPLIT} if environment else {}
    first, other = together_run(model, tmp_path, steps)(patches=patches, **environment)
    assert (first.status, other.status) == (0, 0), first.error + other.error
    assert (other.out, other.error) == ("", "")
    found = json.loads((tmp_path / "out" / RECIPE).read_text(encoding="utf-8"))["steps"]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "out"))
    if GRADUAL in steps:
        same_but_for_what_a_threshold_flips(found, alone, one, two)
    else:
        assert numbers(found) == pytest.approx(numbers(alone), rel=3e-3)
        for name, tensor in one.items():
            # What learned has moved by some 5e-3, and as far as that from what another order of pieces gives.
            np.testing.assert_allclose(two[name], tensor, rtol=0, atol=2e-4, err_msg=name)
    assert {path.name for path in tmp_path.iterdir()} == {"alone", "out", "recipe.yaml"}


def same_but_for_what_a_threshold_flips(found: Steps, alone: Steps, one: Tensors, two: Tensors) -> None:
    """Zeros where weights are smallest while they learn: another order of sums flips some that are as large as others.

    On AVX-512 one or two of a matrix's thousands flip, and what is left learns around them.
    """
    assert numbers(found) == pytest.approx(numbers(alone), rel=2e-2)
    for name, tensor in one.items():
        assert np.mean((two[name] == 0) != (tensor == 0)) <= 2e-3, name
        assert np.median(np.abs(two[name] - tensor)) <= 2e-4, name


def numbers(steps: Steps) -> list[float]:
    """Of the last step's notes: losses, and the update that was best."""
    return [float(one) for note in steps[-1]["notes"] for one in re.findall(r"\d[\d.]*(?:e-\d+)?", note)]


def test_codes_are_those_of_the_first(tiny_llama: Path, tmp_path: Path) -> None:
    """Training on the grid behind GPTQ with measured types; what was chosen the others read."""
    # On fewer tokens GPTQ's choices are worse than the nearest codes, and nothing better is near them.
    quantize, keys = {**QUANTIZE, "types": "measured"}, {"format": "gguf", "calibration": {**TEXT, "chunks": 48}}
    alone = run(tiny_llama, tmp_path / "alone", quantize, **keys)
    first, other = together_run(tiny_llama, tmp_path, [quantize], **keys)()
    assert (first.status, other.status) == (0, 0), first.error + other.error
    found = json.loads((tmp_path / "out" / RECIPE).read_text(encoding="utf-8"))["steps"]
    assert numbers(found) == pytest.approx(numbers(alone), rel=1e-2)
    assert found[0]["n_bytes"] == alone[0]["n_bytes"]
    assert found[0]["mean_kl"] == pytest.approx(alone[0]["mean_kl"], rel=0.02)


IN_UPDATE = """
import os, signal
from exporter.compress.training import trainer
step = trainer._Distilling.training_step
def killing(self, *arguments, **more):
    if self.state.global_step == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *arguments, **more)
trainer._Distilling.training_step = killing
"""


def test_a_kill_changes_nothing_in_the_end(tiny_llama: Path, tmp_path: Path) -> None:
    rooms = [tmp_path / name for name in ("first", "other", "whole")]
    for room in rooms:
        room.mkdir()
    steps = [SHORTER, DISTILL]
    whole = together_run(tiny_llama, rooms[2], steps)()
    assert [one.status for one in whole] == [0, 0]
    expected = load_file(rooms[2] / "out" / "model.safetensors")
    for rank, room in enumerate(rooms[:2]):
        cut = together_run(tiny_llama, room, steps)(patches={rank: IN_UPDATE.format(at=6)})
        assert cut[rank].status == -signal.SIGKILL
        assert cut[1 - rank].status != 0
        assert "Traceback" not in cut[1 - rank].error
        assert (work_of(room / "out") / "work-1" / "checkpoint-6").is_dir()
        resumed = together_run(tiny_llama, room, steps, "--resume")(count=2 - rank)  # one goes on alone
        assert [one.status for one in resumed] == [0, 0][rank:], [one.error for one in resumed]
        found = load_file(room / "out" / "model.safetensors")
        for name, tensor in expected.items():
            np.testing.assert_allclose(found[name], tensor, rtol=0, atol=2e-4 if rank else 0, err_msg=name)
        assert {path.name for path in room.iterdir()} == {"out", "recipe.yaml"}


def test_as_the_documentation_starts_it(tiny_llama: Path, tmp_path: Path) -> None:
    """torchrun itself; and a mistake is said by one process, once."""
    file = tmp_path / "recipe.yaml"
    program = Path(sys.executable).with_name("packlight")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    command = [*torchrun, program, "compress", tiny_llama, "--recipe", file, "-o", tmp_path / "out", "--threads", "1"]

    def started(step: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        file.write_text(recipe(SHORTER, step).model_dump_json(exclude_none=True), encoding="utf-8")
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    wrong = started({**DISTILL, "batch": 9, "accumulate": 3})
    assert wrong.returncode == 1  # torchrun's own
    assert [line for line in wrong.stderr.splitlines() if "error: " in line] == [
        "error: --recipe: batch: 9 in 3 parts is not divided evenly among 2 processes; say batch: 12, "
        "or start another number"
    ]
    assert os.listdir(tmp_path) == ["recipe.yaml"]  # noqa: PTH208
    right = started(DISTILL)
    assert right.returncode == 0, right.stderr
    assert right.stdout.count("written: ") == 1
    assert right.stderr.count("writing the directory") == 1


HELD = """
from pathlib import Path
from exporter.compress.training import trainer
from exporter.compress.training.student import local
step = trainer._Distilling.training_step
def counting(self, *arguments, **more):
    found = step(self, *arguments, **more)
    everyone = [*self.model.parameters(), *self._features._teacher.base.parameters()]
    moments = [one for state in self.optimizer.state.values() for one in state.values() if one.dim()]
    counts = [sum(of(one).numel() for one in tensors) for tensors in (everyone, moments) for of in (local, lambda x: x)]
    Path(__file__).write_text(str(counts))
    return found
trainer._Distilling.training_step = counting
"""


def test_each_process_holds_its_share(tiny_llama: Path, tmp_path: Path) -> None:
    """Of the student, its moments and the teacher that it follows; and a kill changes nothing."""
    steps = [SHORTER, DISTILL]
    whole = tmp_path / "whole"
    whole.mkdir()
    held = {rank: HELD.replace("__file__", repr(str(tmp_path / str(rank)))) for rank in (0, 1)}
    done = together_run(tiny_llama, whole, steps)(patches=held, **FSDP)
    assert [one.status for one in done] == [0, 0], [one.error for one in done]
    for rank in held:
        here, there, of_moments, all_moments = json.loads((tmp_path / str(rank)).read_text(encoding="utf-8"))
        assert 0.45 < here / there < 0.55
        assert 0.45 < of_moments / all_moments < 0.55
    expected = load_file(whole / "out" / "model.safetensors")
    rooms = [tmp_path / name for name in ("split", "alone")]
    rooms[0].mkdir()
    cut = together_run(tiny_llama, rooms[0], steps)(patches={1: IN_UPDATE.format(at=6)}, **FSDP)
    assert cut[1].status == -signal.SIGKILL
    assert cut[0].status != 0
    assert "Traceback" not in cut[0].error
    assert (work_of(rooms[0] / "out") / "work-1" / "checkpoint-6").is_dir()
    shutil.copytree(*rooms)
    for room, count, environment, difference in zip(rooms, (2, 1), (FSDP, {}), (0, 2e-4), strict=True):
        resumed = together_run(tiny_llama, room, steps, "--resume")(count=count, **environment)
        assert [one.status for one in resumed] == [0] * count, [one.error for one in resumed]
        found = load_file(room / "out" / "model.safetensors")
        for name, tensor in expected.items():
            np.testing.assert_allclose(found[name], tensor, rtol=0, atol=difference, err_msg=name)
        assert {path.name for path in room.iterdir()} == {"out", "recipe.yaml"}


FULL = """
from torch.distributed.checkpoint.filesystem import FileSystemWriter
def full(*_):
    raise OSError(28, "No space left on device")
FileSystemWriter.write_data = full
"""


def test_a_full_disk_under_one_of_the_parts(tiny_llama: Path, tmp_path: Path) -> None:
    first, other = together_run(tiny_llama, tmp_path, [SHORTER, DISTILL])(patches={1: FULL}, **FSDP)
    assert 0 not in (first.status, other.status)
    assert "work-1: cannot be written ([Errno 28] No space left on device); free space or" in first.error
    assert "Traceback" not in first.error + other.error
    assert not (tmp_path / "out").exists()


@pytest.fixture
def one_of_one(tmp_path: Path) -> Iterator[None]:
    """This process as the only one of a launcher."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'met'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_of_one")
def test_parts_that_are_damaged(tmp_path: Path) -> None:
    parameter, room = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3)), tmp_path / "checkpoint"
    sharded.save(room, [parameter], [], torch.optim.AdamW([parameter], lr=0.1))
    again = torch.nn.Parameter(torch.zeros(2, 3))
    sharded.load(room, [again])
    assert torch.equal(again, parameter)
    (part,) = room.glob("*.distcp")
    part.write_bytes(b"")
    with pytest.raises(ModelError, match=r".*; leave --resume out to begin anew$"):
        sharded.load(room, [again])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layers: setattr(layers[1].mlp.up_proj, "weight", layers[0].mlp.up_proj.weight), "share weights"),
        (lambda layers: layers[0].register_parameter("gate", torch.nn.Parameter(torch.tensor(1.0))), "cannot be split"),
    ],
)
@pytest.mark.usefixtures("one_of_one")
def test_what_torch_does_not_split_is_said(change: Callable[[Any], None], message: str) -> None:
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32, **shape))
    change(model.model.layers)
    with pytest.raises(UserError, match=f"^FSDP: .*{message}.*; go on without it$"):
        sharded.split_over(model, model, torch.device("cpu"))


def test_whole_weights_do_not_go_on_split(tiny_llama: Path, tmp_path: Path) -> None:
    steps = [SHORTER, DISTILL]
    together_run(tiny_llama, tmp_path, steps)(patches={1: IN_UPDATE.format(at=6)})
    first, _ = together_run(tiny_llama, tmp_path, steps, "--resume")(**FSDP)
    assert first.status == 2
    assert first.error.splitlines()[-1].startswith(
        "error: --resume: the training was begun with whole weights in every"
    )


@pytest.mark.parametrize("step", [GRADUAL, QUANTIZE])
def test_what_needs_whole_weights_is_said_before(step: dict[str, Any]) -> None:
    steps = recipe(SHORTER, step, format="gguf").steps
    with pytest.raises(UserError, match=f"training of a {step['step']} step needs whole weights in every process; say"):
        refuse_unsplit(steps, Launched(0, 2, split=True))
    refuse_unsplit(steps, Launched(0, 2))
    refuse_unsplit(recipe(SHORTER, DISTILL).steps, Launched(0, 2, split=True))


def test_deepspeed_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    first, other = together_run(tiny_llama, tmp_path, [SHORTER, DISTILL])(ACCELERATE_USE_DEEPSPEED="true")
    assert first.status == 2
    assert other.error == ""
    assert first.error.splitlines()[-1].startswith("error: ACCELERATE_USE_DEEPSPEED: splits the weights in a way that")
    assert not (tmp_path / "out").exists()


def test_what_a_launcher_says() -> None:
    known = {"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "here"}
    assert launched(known) == Launched(2, 3)
    assert launched({**known, **FSDP}) == Launched(2, 3, split=True)
    assert launched({}) == ALONE
    assert launched({**known, "WORLD_SIZE": "1", "RANK": "0"}) == ALONE
    assert launched({"RANK": "1", "WORLD_SIZE": "2"}) == ALONE  # of a queue that starts no torch
    for wrong, message in (
        ({"RANK": "first"}, "RANK and WORLD_SIZE are not numbers"),
        ({"LOCAL_RANK": None}, "WORLD_SIZE says 3 processes, and LOCAL_RANK says nothing; start them with torchrun"),
    ):
        with pytest.raises(UserError, match=message):
            launched({key: value for key, value in {**known, **wrong}.items() if value is not None})


def test_one_process_waits_for_no_others(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a queue that started it has said: accelerate would take the sizes for those of a training."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert run(tiny_llama, tmp_path / "out", SHORTER, DISTILL)[1]["notes"]
    assert os.environ["WORLD_SIZE"] == "2"


def test_processes_that_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "0")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "FOUND_WITHIN", processes.timedelta(seconds=1))
    with (
        pytest.raises(UserError, match="2 processes were announced by WORLD_SIZE and have not met"),
        joined(launched()),
    ):
        pass


def test_what_the_first_has_kept(tmp_path: Path) -> None:
    with working(tmp_path / "out", {}, resume=False) as journal:
        journal.note("before", value=1)
        other, met = ReadJournal(journal.room), []
        other.all_met = lambda: met.append(1)
        journal.note("after", value=2)
        journal.save("piece", {"x": np.arange(3, dtype=np.uint8)})
        assert other.find("before") == {"what": "before", "value": 1}
        assert other.find("after") is None
        with other.in_turn():
            assert other.find("after") == {"what": "after", "value": 2}
            assert (other.load("piece") or {})["x"].tolist() == [0, 1, 2]
        assert met == [1]
        with (journal.room / NAME).open("ab") as file:  # a line that the first process is writing
            file.write(b'{"what": "ha')
        other.meet()
        assert (journal.room / NAME).read_bytes().endswith(b'{"what": "ha')
        for wrong in (lambda: other.note("x"), lambda: other.save("x", {})):
            with pytest.raises(EngineError, match="the first process's x cannot be read; go on with --resume"):
                wrong()
    with pytest.raises(UserError, match=r"-o must name a place that the processes of all machines see"):
        ReadJournal(journal.room)


@pytest.mark.parametrize(
    ("raised", "said", "message"),
    [
        (UserError("no"), UserError, "process 1 of 2: no"),
        (OSError(28, "No space left", "x"), EngineError, "process 1 of 2: x: No space left"),
    ],
)
def test_another_process_fails_after_the_first(
    raised: Exception, said: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(processes.time, "sleep", waited.append)
    with pytest.raises(said, match=f"^{message}$"), said_after_first(Launched(1, 2)):
        raise raised
    assert waited == [processes.SAYS_IT_FIRST]


ALONE_IN_TRAINING = """
from exporter.compress.training import trainer
from runtime.errors import UserError
def failing(self, work):
    raise UserError("its disk is full")
trainer._Distilling.go_on = failing
"""


def test_what_one_alone_has_to_say_is_heard(tiny_llama: Path, tmp_path: Path) -> None:
    first, other = together_run(tiny_llama, tmp_path, [SHORTER, DISTILL])(patches={1: ALONE_IN_TRAINING})
    assert other.status in (2, -signal.SIGTERM, 128 + signal.SIGTERM)  # ended on its way out, by the first one's end
    assert other.error.splitlines() == ["error: process 1 of 2: its disk is full"]
    assert first.status != 0
    assert "Traceback" not in first.error
    assert (work_of(tmp_path / "out") / NAME).is_file()


def test_export_runs_in_one_process(tiny_llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe(SHORTER).model_dump_json(exclude_none=True), encoding="utf-8")
    for ran in together("export", tiny_llama, "--recipe", file, "-o", tmp_path / "out"):
        assert ran.status in (2, -signal.SIGTERM, 143)
        assert ran.status != 2 or "export --recipe runs in one process, WORLD_SIZE says 2" in ran.error
    assert not (tmp_path / "out").exists()


def test_nothing_of_a_training_stays_on_the_model(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    """Accelerate puts a forward in bfloat16 in place of the model's own."""
    step = {**DISTILL, "precision": "bfloat16", "features": None}
    subject = opened_subject(tiny_model_dir("llama"), tmp_path, SHORTER, step)
    before = set(vars(subject.model))
    for weight in subject.model.parameters():
        weight *= 0.8
    distill(subject.recipe.steps[1], replace(subject, number=1))
    assert set(vars(subject.model)) == before
    out = subject.model(input_ids=torch.tensor([[1, 2, 3]])).logits
    assert not torch.equal(out, out.bfloat16().float())
    subject.source.close()
