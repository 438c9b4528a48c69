"""What is said of a file of torch's formats before it is written, held against the files that are written."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest
from support.parity import no_progress
from support.tiny_encoders import make_tiny_bert

from exporter.checkpoint import resolve
from runtime.measurement import RunOptions
from targets import get_target
from targets.base import EmitOptions
from targets.executorch.outline import executorch
from targets.executorch.presets import PRESETS as EXECUTORCH
from targets.processor import Processor
from targets.pytorch.presets import DYNAMIC
from targets.torchscript.outline import ptl, torchscript
from targets.torchscript.presets import PRESETS as TORCHSCRIPT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OUTLINES = {"torchscript": torchscript, "ptl": ptl, "executorch": executorch}
NEAR = 60_000
"""Bytes of code that are more or fewer."""
QUANTS = [("torchscript", quant) for quant in TORCHSCRIPT] + [("ptl", "int8"), ("executorch", "8da4w")]


@pytest.mark.parametrize(("format_name", "quant"), QUANTS)
@pytest.mark.parametrize("family", ["llama3", "gemma3"])
def test_the_bytes_are_nearly_those_that_are_written(
    format_name: str, quant: str, family: str, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    if format_name == "executorch" and (importlib.util.find_spec("executorch") is None or family == "gemma3"):
        pytest.skip("one program is enough, and executorch may be missing")
    facts = resolve(str(tiny_model_dir(family, hidden=256)))
    (found,) = OUTLINES[format_name](facts, [quant]).outlines
    artifact = get_target(format_name).emit(facts, EmitOptions(quant, context=256), tmp_path, no_progress)
    assert abs(found.bytes_with(256) - artifact.total_bytes) < NEAR
    assert found.bits_per_weight == pytest.approx(artifact.bits_per_weight, rel=0.02)
    assert (found.encoder, found.exact) == (False, False)
    assert found.footprint(RunOptions(), Processor.here()) is None
    assert found.work().weight_bytes < artifact.total_bytes
    assert found.kv_types() == (("bf16",) if quant == "bf16" else ("f32",))


@pytest.mark.parametrize("quant", ["fp32", "dynamic-int8"])
def test_of_an_encoder(quant: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "out").mkdir()
    facts = resolve(str(make_tiny_bert(tmp_path / "model")))
    (found,) = torchscript(facts, [quant]).outlines
    artifact = get_target("torchscript").emit(facts, EmitOptions(quant), tmp_path / "out", no_progress)
    assert found.encoder
    assert abs(found.file_bytes - artifact.total_bytes) < NEAR
    assert found.context == artifact.context_length


def test_a_programs_tables_are_as_long_as_its_context(tiny_model_dir: Callable[..., Path]) -> None:
    facts = resolve(str(tiny_model_dir("llama3")))  # heads of 16
    (program,) = executorch(facts, ["int8"]).outlines
    (module,) = torchscript(facts, ["int8"]).outlines
    assert program.bytes_with(1024) - program.bytes_with(512) == 2 * 512 * 16 * 4
    assert module.bytes_with(1024) == module.bytes_with(512)


def test_products_in_eight_bits_have_doubles_for_every_row(tiny_model_dir: Callable[..., Path]) -> None:
    facts = resolve(str(tiny_model_dir("llama3")))
    rows, dynamic = torchscript(facts, ["int8", "dynamic-int8"]).outlines
    assert dynamic.plan.preset.layers == DYNAMIC
    outputs = 2 * (64 + 32 + 32 + 64 + 128 + 128 + 64)
    assert dynamic.file_bytes - rows.file_bytes == 12 * outputs


def test_a_gguf_file_is_refused_preset_by_preset(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    artifact = get_target("gguf").emit(resolve(str(tiny_model_dir("llama"))), EmitOptions("f16"), tmp_path, no_progress)
    found = executorch(resolve(str(artifact.entry_path)))
    assert not found.outlines
    assert found.refused.keys() == EXECUTORCH.keys()
