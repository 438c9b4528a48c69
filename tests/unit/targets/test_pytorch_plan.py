"""What TorchScript and ExecuTorch refuse or say before a weight is read."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from support.parity import no_progress

from exporter.checkpoint import resolve
from targets import get_target
from targets.base import EmitOptions
from targets.pytorch import plan as planning

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FORMATS = ("torchscript", "ptl", "executorch")


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_module_larger_than_the_memory_at_hand_is_refused_with_what_to_do(
    format_name: str, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, target = resolve(str(tiny_llama)), get_target(format_name)
    n_params = facts.n_stored_params
    monkeypatch.setattr(planning, "available_bytes", lambda: 4 * n_params - 1)
    (problem,) = target.check(facts, EmitOptions("fp32"))
    assert str(problem).endswith("are available; use a smaller --quant, or export on a larger machine")
    assert target.check(facts, EmitOptions("int8")) == []
    for room in (4 * n_params, None):
        monkeypatch.setattr(planning, "available_bytes", lambda room=room: room)
        assert target.check(facts, EmitOptions("fp32")) == []


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_long_trained_context_is_cut_and_said_or_left_to_the_user(
    format_name: str, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(tiny_model_dir("llama", layers=1), source)
    out.mkdir()
    config = json.loads((source / "config.json").read_text(encoding="utf-8")) | {"max_position_embeddings": 40000}
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    options = EmitOptions("fp32", context=33000)
    artifact = get_target(format_name).emit(resolve(str(source)), options, out, no_progress)
    if format_name == "executorch":
        assert (artifact.context_length, artifact.contract["notes"]) == (33000, [])
        return
    assert artifact.context_length == 32768
    assert artifact.contract["notes"][0].startswith("the file holds 32768 tokens of context, the model was trained for")
