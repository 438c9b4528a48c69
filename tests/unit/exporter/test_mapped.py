"""Weights in a file and not in memory: the same model, written through, and given back after use."""

from __future__ import annotations

import subprocess
import sys
from collections import namedtuple
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from exporter.checkpoint import resolve
from exporter.compress import mapped
from exporter.compress.mapped import MappedReference
from exporter.verify.reference import TransformersReference
from runtime.errors import ModelError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

IDS = [5, 9, 40, 7, 100, 33, 12, 60] * 5


def opened(directory: Path, room: Path) -> MappedReference:
    return MappedReference(resolve(str(directory)), room, threads=1)


@pytest.mark.parametrize("dropped", [False, True])
def test_it_is_the_model(dropped: bool, tiny_any: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "DROPPED_FROM", 0 if dropped else 1 << 60)
    plain, source = TransformersReference(tiny_any), opened(tiny_any, tmp_path)
    np.testing.assert_array_equal(source.logits(IDS), plain.logits(IDS))
    assert list(tmp_path.iterdir()) == []  # the file has no name
    ours, theirs = source.model.state_dict(), plain.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    tied = plain.model.get_output_embeddings().weight is plain.model.get_input_embeddings().weight
    assert (source.model.get_output_embeddings().weight is source.model.get_input_embeddings().weight) == tied
    # What is written into a weight stays, though its pages were given back.
    layer = source.model.base_model.layers[0].mlp.up_proj
    layer.weight.data.copy_(torch.full_like(layer.weight, 0.01))
    source.logits(IDS)
    assert torch.equal(layer.weight, torch.full_like(layer.weight, 0.01))
    plain.model.base_model.layers[0].mlp.up_proj.weight.data.fill_(0.01)
    np.testing.assert_array_equal(source.logits(IDS), plain.logits(IDS))
    for one in (plain, source):
        one.close()


SCRIPT = """
import resource, sys
from pathlib import Path
import exporter.compress.mapped as mapped
from exporter.checkpoint import resolve
status = lambda: dict(line.split(":") for line in open("/proc/self/status"))
for asked in sys.argv[3:]:
    how, dropped_from = asked.split(":")
    mapped.DROPPED_FROM = int(dropped_from)
    source = mapped.MappedReference(resolve(sys.argv[1]), Path(sys.argv[2]), threads=1)
    before = int(status()["RssShmem"].split()[0]) + int(status()["RssFile"].split()[0])
    if how == "run":
        source.logits(list(range(10, 40)))
    else:
        for layer in source.model.base_model.layers:
            for parameter in layer.parameters():
                parameter.sum()
                source.give_back()
    after = int(status()["RssShmem"].split()[0]) + int(status()["RssFile"].split()[0])
    print(after - before)
    source.close()
"""


def test_layers_that_have_run_are_not_in_memory(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny_model_dir("llama", hidden=512)
    n_bytes = 4 * sum(fact.n_elements for name, fact in resolve(str(source)).tensors.items() if ".layers." in name)

    asked = [f"{how}:{dropped_from}" for how in ("run", "look") for dropped_from in (1 << 60, 0)]
    command = [sys.executable, "-c", SCRIPT, str(source), str(tmp_path), *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    grown = [1024 * int(line) for line in done.stdout.splitlines()[-4:]]
    assert [grown[0] > 0.9 * n_bytes, grown[1] < 0.6 * n_bytes] == [True, True], grown
    assert [grown[2] > 0.9 * n_bytes, grown[3] < 0.6 * n_bytes] == [True, True], grown


def test_what_is_missing_is_said(tiny_llama: Path, tmp_path: Path) -> None:
    facts = resolve(str(tiny_llama))
    del facts.tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ModelError, match=r"1 weights are missing, the first is model.layers.1.mlp.up_proj.weight"):
        MappedReference(facts, tmp_path)


def test_a_disk_that_is_too_small_is_said_before(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage: Any = namedtuple("usage", "total used free")
    monkeypatch.setattr(mapped.shutil, "disk_usage", lambda _path: usage(10, 9, 1))
    with pytest.raises(UserError, match=r"of disk beside .*, 0.0 MB are free; choose another -o"):
        opened(tiny_llama, tmp_path)
    assert list(tmp_path.iterdir()) == []
