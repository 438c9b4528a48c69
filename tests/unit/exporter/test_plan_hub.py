"""`packlight plan` of a hub id: by the headers of its weights, which alone are asked for."""

from __future__ import annotations

import json
import os
import shutil
import struct
from typing import TYPE_CHECKING, Any

import pytest
from support.command_line import packlight
from support.fake_hub import COMMIT, FakeHub, fake_hub
from support.tiny_architectures import make_tiny_architecture
from support.tiny_encoders import edit_json, make_tiny_encoder
from support.tiny_t5 import make_tiny_t5

from exporter.checkpoint import resolve, without_weights
from exporter.plan import PlanRequest, plan
from runtime.budget import Budget
from runtime.errors import ModelError, UserError
from targets.weights import HEADERS_ONLY, WeightReader

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

LARGE = 40_000
"""Tokens of a table that is far larger than what is asked for at once."""


def planned(model: str | Path, hub: FakeHub, home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: huggingface_hub reads where the hub is when it is imported."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_HOME": str(home)}
    environment |= {"TMPDIR": str(home)}
    environment.pop("HF_HUB_CACHE", None)
    return packlight("plan", model, "--json", *options, environment=environment)


def rows(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["rows"]


def in_shards(directory: Path) -> None:
    """The weights of a directory in two files and an index."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors)
    parts = {f"model-0000{n + 1}-of-00002.safetensors": names[n::2] for n in range(2)}
    for file, some in parts.items():
        save_file({name: tensors[name] for name in some}, directory / file)
    index = {"metadata": {}, "weight_map": {name: file for file, some in parts.items() for name in some}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (directory / "model.safetensors").unlink()


@pytest.mark.parametrize("shards", [False, True])
def test_weights_are_not_downloaded(shards: bool, tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    source = shutil.copytree(tiny_model_dir("llama", vocab_size=LARGE), tmp_path / "Tiny-1B")
    edit_json(source / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Model"})  # nothing of it is run
    if shards:
        in_shards(source)
    home = tmp_path / "home"
    home.mkdir()
    with fake_hub(source) as hub:
        of_hub = rows(planned(hub.REPOSITORY, hub, home))
        assert of_hub == rows(planned(source, hub, home))
        weights = {name: n for name, n in hub.sent.items() if name.endswith(".safetensors")}
        assert len(weights) == 1 + shards
        assert sum(weights.values()) < 250_000 < sum((source / name).stat().st_size for name in weights) / 10
        assert not list(home.glob("packlight-*"))
        snapshot = home / "hub" / "models--org--Tiny-1B" / "snapshots" / COMMIT
        assert sorted(path.name for path in snapshot.iterdir()) == sorted(set(hub.names()) - weights.keys())
        # What is there already is not asked for.
        for name in weights:
            (snapshot / name).symlink_to(source / name)
        hub.sent.clear()
        assert rows(planned(hub.REPOSITORY, hub, home, "--revision", "main")) == of_hub
        assert not weights.keys() & hub.sent.keys()


def test_what_the_hub_has_not_is_one_line(tiny_llama: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_llama, tmp_path / "source")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with fake_hub(source) as hub:
        for model, message in (
            ("org/other", "no such model on the hub"),
            (hub.REPOSITORY, "the hub has only pickled weights of it (pytorch_model.bin)"),
        ):
            done = planned(model, hub, tmp_path)
            assert done.returncode == 2
            said = done.stderr.strip().splitlines()[-1]
            assert message in said
            assert said.count("packlight-") == 0
        (source / "model.safetensors").write_bytes(b"<html>" * 100)
        done = planned(hub.REPOSITORY, hub, tmp_path)
        assert done.returncode == 2
        assert "cannot be downloaded (SafetensorsParsingError" in done.stderr


def headers_alone(source: Path, target: Path) -> Path:
    """A model's directory as `without_weights` makes it."""
    for path in source.rglob("*"):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes()
            if path.suffix == ".safetensors":
                end = 8 + struct.unpack("<Q", content[:8])[0]
                content = content[:end] + bytes(len(content) - end)
            copy.write_bytes(content)
    (target / HEADERS_ONLY).touch()
    return target


@pytest.mark.parametrize(
    "name", ["falcon", "gemma2", "gpt-oss", "granitehybrid", "lfm2moe", "mamba2", "phi3-long", "t5", "encoder"]
)
def test_no_plan_reads_a_weight(name: str, tmp_path: Path) -> None:
    if name == "t5":
        source = make_tiny_t5("t5", tmp_path / "model")
    elif name == "encoder":
        source = make_tiny_encoder(tmp_path / "model", "Bert", "feature-extraction")
    else:
        source = make_tiny_architecture(name, tmp_path / "model")
    alone = headers_alone(source, tmp_path / "alone")
    every = ["gguf", "onnx", "torchscript", "ptl", "executorch"]
    whole, without = (plan(PlanRequest(str(one), Budget(), formats=every)) for one in (source, alone))
    assert whole.rows == without.rows
    assert {one: set(said) for one, said in whole.refused.items()} == {
        one: set(said) for one, said in without.refused.items()
    }


def test_a_weight_that_is_not_there_is_not_taken_for_zeros(tiny_llama: Path, tmp_path: Path) -> None:
    facts = resolve(str(headers_alone(tiny_llama, tmp_path / "alone")))
    fact = next(iter(facts.tensors.values()))
    with WeightReader() as reader, pytest.raises(ModelError, match="its weights are needed, and were not downloaded"):
        reader.read_rows(fact, 0, 1)


def test_a_directory_is_taken_as_it_is(tiny_llama: Path) -> None:
    with without_weights(str(tiny_llama)) as facts:
        assert facts == resolve(str(tiny_llama))
    with pytest.raises(UserError, match="neither a directory nor a hub id"), without_weights("a b"):
        pass
