"""Every architecture that becomes GGUF: a random tiny model's logits in llama.cpp beside torch's."""

from __future__ import annotations

import functools
import itertools
import json
import re
from typing import TYPE_CHECKING

import pytest
from support.llama_quantize import our_types, their_types
from support.nonsense import refused
from support.parity import TOKENS, emit, no_progress, usual_difference, worst_difference
from support.tiny_architectures import CASES, make_tiny_architecture, tiny_config, tiny_model

from exporter.checkpoint import resolve
from exporter.verify import VerifyOptions, verify
from runtime.errors import UnsupportedError, UserError
from runtime.gguf_kind import PAIRS
from runtime.measurement import RunOptions
from runtime.sessions import open_session
from targets.gguf.architectures import ARCHITECTURES
from targets.gguf.outline import FITTED, outlines
from targets.ongrid import GGML
from targets.processor import Processor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from runtime.artifact import Artifact

    Exported = Callable[[str, str], tuple[Path, Artifact]]

DEEP = 6
"""Of the one model with more layers the others are like these."""
NEAR = 0.05
"""Eight bits move the logits by a few hundredths at most; of an unrelated model they would be off by one."""

# Loading and saving torch's models makes it warn of its own future.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Factory: `exported(name, preset)` is the directory of a case as transformers saves it, and its artifact."""

    @functools.cache
    def directory(name: str) -> Path:
        return make_tiny_architecture(name, tmp_path_factory.mktemp("model"))

    @functools.cache
    def export(name: str, preset: str) -> tuple[Path, Artifact]:
        return directory(name), emit(directory(name), tmp_path_factory.mktemp("out"), preset=preset)

    return export


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_source(name: str, exported: Exported) -> None:
    assert worst_difference(*exported(name, "f32")) <= CASES[name].limit


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_hubs_form(name: str, tmp_path: Path) -> None:
    directory = make_tiny_architecture(name, tmp_path / "model", public=True)
    (out := tmp_path / "out").mkdir()
    assert worst_difference(directory, emit(directory, out)) <= CASES[name].limit


@pytest.mark.parametrize("name", CASES)
def test_requantizing_gives_the_types_of_llama_quantize(name: str, exported: Exported) -> None:
    for stored, preset in itertools.product(("f32", "q8_0"), ("q4_k_m", "iq4_xs", "q2_k")):
        source = exported(name, stored)[1].entry_path
        assert our_types(source, preset) == their_types(source, preset)


@pytest.mark.parametrize("name", ["falcon", "gpt-oss", "granitehybrid", "lfm2moe", "mamba2", "phi3-long"])
def test_a_requantized_file_is_verified_against_its_source(name: str, exported: Exported, tmp_path: Path) -> None:
    source = exported(name, "f32")[1].entry_path
    artifact = emit(source, tmp_path, preset="q8_0")
    options = VerifyOptions(chunks=1, context=64, threads=1)
    drift = verify(artifact, resolve(str(source)), options, no_progress)
    assert drift.reference.startswith(f"{source.name} in llama.cpp")
    assert (drift.parity.chat_template, drift.dead_tensors) == (True, ())
    assert 0 < drift.mean_kl < NEAR


@pytest.mark.parametrize("name", CASES)
def test_eight_bits_have_the_planned_size_and_are_near(name: str, exported: Exported) -> None:
    """What ggml's operators take in float32 only stays so, or llama.cpp would not compute the file."""
    directory, artifact = exported(name, "q8_0")
    assert usual_difference(directory, artifact) <= NEAR
    (planned,) = outlines(resolve(str(directory)), ["q8_0"]).outlines
    assert planned.file_bytes == artifact.entry_path.stat().st_size
    assert sum(planned.work().weights.values()) > 0
    known = planned.footprint(RunOptions(), Processor.here()) is not None
    assert known == (planned.dimensions.experts == 0 and ARCHITECTURES[class_of(name)].gguf in FITTED)


def in_blocks(directory: Path, pattern: str) -> dict[str, bytes]:
    """Put the tensors of that pattern into Q8_0 as a recipe would; their bytes by name."""
    import gguf
    import torch
    from safetensors.torch import load_file, save_file

    path, blocks, kept = directory / "model.safetensors", {}, {}
    weights = {name: values.float() for name, values in load_file(path).items()}
    for name in [name for name in weights if re.search(pattern, name)]:
        packed = gguf.quants.quantize(weights[name].numpy(), gguf.GGMLQuantizationType.Q8_0)
        weights[name] = torch.from_numpy(gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0))
        blocks[f"{name}.Q8_0"], kept[name] = torch.from_numpy(packed), packed.tobytes()
    save_file(weights, path, metadata={"format": "pt"})
    save_file(blocks, directory / GGML)
    return kept


def test_experts_that_lie_in_blocks_are_copied(tmp_path: Path) -> None:
    import gguf

    directory = make_tiny_architecture("mixtral", tmp_path / "model")
    kept = in_blocks(directory, r"experts\.\d+\.w[13]\.weight")
    (out := tmp_path / "out").mkdir()
    written = {one.name: one for one in gguf.GGUFReader(emit(directory, out, preset="q4_0").entry_path).tensors}
    for layer, (name, target) in itertools.product(range(2), (("w1", "gate"), ("w3", "up"))):
        tensor = written[f"blk.{layer}.ffn_{target}_exps.weight"]
        stored = [kept[f"model.layers.{layer}.block_sparse_moe.experts.{e}.{name}.weight"] for e in range(4)]
        assert (tensor.tensor_type.name, tensor.data.tobytes()) == ("Q8_0", b"".join(stored))


def test_parts_of_a_tensor_in_blocks_are_refused(tmp_path: Path) -> None:
    directory = make_tiny_architecture("gptneox", tmp_path / "model")
    in_blocks(directory, r"0\.attention\.query_key_value\.weight")
    with pytest.raises(UnsupportedError, match=r"blk\.0\.attn_qkv\.weight: is made of parts"):
        emit(directory, tmp_path, preset="q4_0")


@pytest.mark.parametrize("name", CASES)
def test_nonsense_in_config_json_is_one_error(name: str, tmp_path: Path) -> None:
    config = tiny_config(name)
    architecture = ARCHITECTURES[class_of(name)]
    plain = {**json.loads(config.to_json_string()), "architectures": [class_of(name)]}
    assert refused(architecture, plain, tmp_path) > len(plain)


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
    decoders = {name for name, entry in ARCHITECTURES.items() if not entry.encoder and entry.gguf not in PAIRS}
    assert {class_of(name) for name in CASES} == decoders - alone


def class_of(name: str) -> str:
    """The model class of a case."""
    import transformers

    config = getattr(transformers, CASES[name].config)
    return str(transformers.AutoModelForCausalLM._model_mapping[config].__name__)


@pytest.mark.parametrize("name", ["gpt2", "gpt_bigcode"])
def test_positions_that_were_not_learned_are_refused(name: str, tmp_path: Path) -> None:
    """llama.cpp ends the process there."""
    (out := tmp_path / "out").mkdir()
    artifact = emit(make_tiny_architecture(name, tmp_path / "model"), out)
    with pytest.raises(UserError, match=f"--context {artifact.context_length} or fewer"):
        open_session(artifact, RunOptions(context=artifact.context_length + 256))
