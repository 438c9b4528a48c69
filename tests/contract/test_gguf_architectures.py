"""Every architecture that becomes GGUF: a random tiny model's logits in llama.cpp beside torch's."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from typing import TYPE_CHECKING

import pytest
from support.parity import TOKENS, emit, usual_difference, worst_difference
from support.tiny_architectures import CASES, make_tiny_architecture, tiny_config, tiny_model

from exporter.checkpoint import resolve
from runtime.errors import ModelError, UnsupportedError
from runtime.measurement import RunOptions
from targets.damage import damage_in
from targets.facts import ModelFacts
from targets.gguf.architectures import ARCHITECTURES
from targets.gguf.architectures.base import full_config, plan_tensors
from targets.gguf.outline import FITTED, outlines
from targets.processor import Processor

if TYPE_CHECKING:
    from pathlib import Path

DEEP = 6
"""Of the one model with more layers the others are like these."""
NEAR = 0.05
"""Eight bits move the logits by a few hundredths at most; of an unrelated model they would be off by one."""
NONSENSE: tuple[object, ...] = ("x", -1, 0, 1.5, None, [1], {"a": 1}, float("inf"))

# Loading and saving torch's models makes it warn of its own future.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("form", ["saved", "public"])
@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_source(name: str, form: str, tmp_path: Path) -> None:
    directory = make_tiny_architecture(name, tmp_path / "model", public=form == "public")
    (out := tmp_path / "out").mkdir()
    assert worst_difference(directory, emit(directory, out)) <= CASES[name].limit


@pytest.mark.parametrize("name", CASES)
def test_eight_bits_have_the_planned_size_and_are_near(name: str, tmp_path: Path) -> None:
    """What ggml's operators take in float32 only stays so, or llama.cpp would not compute the file."""
    directory = make_tiny_architecture(name, tmp_path / "model")
    (out := tmp_path / "out").mkdir()
    artifact = emit(directory, out, preset="q8_0")
    assert usual_difference(directory, artifact) <= NEAR
    (planned,) = outlines(resolve(str(directory)), ["q8_0"]).outlines
    assert planned.file_bytes == artifact.entry_path.stat().st_size
    assert sum(planned.work().weights.values()) > 0
    known = planned.footprint(RunOptions(), Processor.here()) is not None
    assert known == (planned.dimensions.experts == 0 and ARCHITECTURES[class_of(name)].gguf in FITTED)


@pytest.mark.parametrize("name", CASES)
def test_nonsense_in_config_json_is_one_error(name: str, tmp_path: Path) -> None:
    config = tiny_config(name)
    architecture = ARCHITECTURES[class_of(name)]
    plain = {**json.loads(config.to_json_string()), "architectures": [class_of(name)]}
    for key, value in itertools.product(plain, NONSENSE):
        facts = ModelFacts("huggingface", tmp_path, "m", "m", {**plain, key: value}, {})
        with contextlib.suppress(ModelError, UnsupportedError), damage_in(tmp_path / "config.json"):
            full = full_config(architecture, facts)
            plan_tensors(architecture, full, facts)
            architecture.refuse(full)
            architecture.hyper_parameters(full)


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_of_the_tiny_model_matters(name: str) -> None:
    """A tensor that changes no logit could be forgotten, and the parity test would not see it."""
    import torch

    model = tiny_model(name)
    ids = torch.tensor([TOKENS])
    generator = torch.Generator().manual_seed(1)
    silent = []
    with torch.no_grad():
        expected = model(ids).logits
        scale = float(expected.abs().max())
        for parameter_name, parameter in model.named_parameters():
            if (layer := re.search(r"\.(\d+)\.", parameter_name)) and int(layer[1]) >= DEEP:
                continue
            kept = parameter.clone()
            parameter.add_(torch.randn(parameter.shape, generator=generator) * kept.abs().mean())
            difference = float((model(ids).logits - expected).abs().max()) / scale
            parameter.copy_(kept)
            if difference <= 2 * CASES[name].limit:
                silent.append(f"{parameter_name}: {difference:.1e}")
    assert not silent


def test_every_architecture_has_a_tiny_model() -> None:
    alone = {"Gemma3ForConditionalGeneration", "MPTForCausalLM"}  # a wrapper, and the hub's name for MptForCausalLM
    assert {class_of(name) for name in CASES} == ARCHITECTURES.keys() - alone


def class_of(name: str) -> str:
    """The model class of a case."""
    import transformers

    config = getattr(transformers, CASES[name].config)
    return str(transformers.AutoModelForCausalLM._model_mapping[config].__name__)
