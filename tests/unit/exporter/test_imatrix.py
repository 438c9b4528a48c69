"""An importance matrix computed in torch, against the same sums by hooks, by hand, and layer by layer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.parity import emit
from support.tiny_architectures import make_tiny_architecture, tiny_model
from typer.testing import CliRunner

from exporter.cli.app import app
from exporter.compress.mapped import Mapped
from exporter.imatrix import job
from exporter.imatrix.collect import Collector, whole
from exporter.imatrix.job import ImatrixRequest, compute, gguf_names
from exporter.progress import SilentReporter
from runtime.errors import UserError
from targets.base import TypeChoice
from targets.gguf.imatrix import read_imatrix
from targets.gguf.reading import read_gguf_facts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WORDS = "the quick brown fox jumps over 12 lazy dogs while it rains in Spain, again and again. "


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(WORDS * 30, encoding="utf-8")
    return path


def computed(model: Path, out: Path, text: Path, **more: object) -> job.ImatrixReport:
    return compute(ImatrixRequest(str(model), out, text, tokens=64, **more), SilentReporter())  # type: ignore[arg-type]


def nothing(_done: int, _total: int) -> None:
    """Progress that nobody watches."""


def test_sums_by_hand() -> None:
    layer = torch.nn.Linear(3, 2, bias=False)
    rows = torch.tensor([[[1.0, 2, 3], [0, -1, 1]]])
    with torch.no_grad(), Collector({"w": layer.weight}) as collector:
        layer(rows)
        layer(2 * rows)
    assert collector.sums()["w"].squares.tolist() == [[5, 25, 50]]
    assert collector.sums()["w"].counts.tolist() == [4]


def test_a_weight_that_is_not_asked_for_is_not_counted() -> None:
    layer, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    with torch.no_grad(), Collector({"w": layer.weight}) as collector:
        other(torch.ones(1, 3))
    assert collector.sums() == {}


def test_gpt2s_transposed_matrices_are_seen() -> None:
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(2, 3)
    with torch.no_grad(), Collector({"w": layer.weight}) as collector:
        layer(torch.tensor([[1.0, 2, 3]]))
    assert collector.sums()["w"].squares.tolist() == [[1, 4, 9]]


def test_every_matrix_of_every_family_is_counted_as_hooks_count(tiny_any: Path, text: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    report = computed(tiny_any, tmp_path / "imatrix.gguf", text, chunks=3)
    assert (report.chunks, report.unseen, report.text) == (3, (), str(text))
    found = read_imatrix(tmp_path / "imatrix.gguf")
    names = {
        name for name in read_gguf_facts(emit(tiny_any, tmp_path).entry_path, "").tensors if name.startswith("blk.")
    }
    assert found.sums.keys() == {name for name in names if not name.endswith(("norm.weight", "bias"))}
    model = AutoModelForCausalLM.from_pretrained(tiny_any, dtype=torch.float32)
    down, inputs = model.model.layers[1].mlp.down_proj, []
    down.register_forward_pre_hook(lambda _module, args: inputs.append(args[0].double().square().sum((0, 1))))
    from exporter.verify.reference import TransformersReference

    source = TransformersReference(tiny_any)
    for ids in job.pieces(source, text.read_text(encoding="utf-8"), ImatrixRequest("", text, text, 3, 64)):
        with torch.no_grad():
            model(input_ids=torch.tensor([ids]))
    own = found.sums["blk.1.ffn_down.weight"]
    assert own.counts.tolist() == [3 * 64]
    np.testing.assert_allclose(own.squares[0], sum(inputs).numpy(), rtol=1e-5)  # type: ignore[union-attr]


def test_layer_by_layer_is_the_same(
    tiny_llama: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[int] = []
    dropper = Mapped._dropper
    monkeypatch.setattr(Mapped, "_dropper", lambda self, *where: dropped.append(where[0]) or dropper(self, *where))
    computed(tiny_llama, tmp_path / "a.gguf", text)
    assert dropped == []
    computed(tiny_llama, tmp_path / "b.gguf", text, low_memory=True)
    assert len(set(dropped)) == 2  # each layer's pages are given back, though the model is small
    whole_model, by_layers = read_imatrix(tmp_path / "a.gguf"), read_imatrix(tmp_path / "b.gguf")
    assert whole_model.sums.keys() == by_layers.sums.keys()
    for name, sums in whole_model.sums.items():
        np.testing.assert_allclose(by_layers.sums[name].squares, sums.squares, rtol=1e-5)
        assert by_layers.sums[name].counts.tolist() == sums.counts.tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]


@pytest.mark.parametrize("name", ["bloom", "falcon", "gpt-oss", "gpt2", "gptneox", "mpt", "phi2"])
def test_layer_by_layer_is_the_same_of_families_with_other_names(name: str, text: Path, tmp_path: Path) -> None:
    """Some keep their layers elsewhere, have no `norm`, or give more than hidden states; GPT-2's have no prefix."""
    model = make_tiny_architecture(name, tmp_path / "model")
    if name == "gpt2":
        path = model / "model.safetensors"
        save_file({key.removeprefix("transformer."): one for key, one in load_file(path).items()}, path)
    report = computed(model, tmp_path / "a.gguf", text, chunks=3)
    computed(model, tmp_path / "b.gguf", text, chunks=3, low_memory=True)
    whole_model, by_layers = read_imatrix(tmp_path / "a.gguf"), read_imatrix(tmp_path / "b.gguf")
    assert report.entries == len(whole_model.sums) == len(by_layers.sums)
    assert all("exps" in matrix for matrix in report.unseen)
    for matrix, sums in whole_model.sums.items():
        np.testing.assert_allclose(by_layers.sums[matrix].squares, sums.squares, rtol=1e-4, atol=1e-6)
        assert by_layers.sums[matrix].counts.tolist() == sums.counts.tolist()


def test_experts_with_inputs_as_rows_have_sums_of_their_own() -> None:
    """GPT-OSS's, on a model whose router is known: the counts are those of the tokens that it sends."""
    model = tiny_model("gpt-oss")
    weights = {name: one for name, one in model.named_parameters() if "experts" in name and one.dim() == 3}
    experts = model.model.layers[1].mlp.experts
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    experts.register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append(_routed(*args, **kwargs)), with_kwargs=True
    )
    collector = Collector(weights)
    whole(model, [list(range(20, 60))], collector, nothing)
    ((inputs, chosen),) = seen
    found = collector.sums()["model.layers.1.mlp.experts.gate_up_proj"]
    assert found.counts.tolist() == [int((chosen == expert).sum()) for expert in range(4)]
    assert sum(found.counts.tolist()) == 2 * 40
    for expert in range(4):
        rows = inputs[(chosen == expert).any(-1)].double()
        np.testing.assert_allclose(found.squares[expert], rows.square().sum(0).numpy(), rtol=1e-5)
    assert collector.sums().keys() == weights.keys()


def _routed(
    hidden: torch.Tensor, router_indices: torch.Tensor, routing_weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the experts are given: tokens, and the experts of each."""
    return hidden.detach().reshape(-1, hidden.shape[-1]), router_indices


def test_each_expert_has_sums_of_its_own() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, initializer_range=0.2,
    )  # fmt: skip
    model = MixtralForCausalLM(config).eval()
    weights = {name: one for name, one in model.named_parameters() if one.dim() in (2, 3) and "layers" in name}
    ids = torch.randint(0, 50, (1, 40)).tolist()
    experts = model.model.layers[1].mlp.experts
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    experts.register_forward_pre_hook(lambda _module, args: seen.append((args[0].detach(), args[1])))
    collector = Collector(weights)
    whole(model, ids, collector, nothing)
    ((inputs, chosen),) = seen
    found = collector.sums()
    counts = [int((chosen == expert).sum()) for expert in range(4)]
    assert found["model.layers.1.mlp.experts.gate_up_proj"].counts.tolist() == counts
    assert found["model.layers.1.mlp.experts.down_proj"].counts.tolist() == counts
    assert sum(counts) == 2 * 40
    for expert in range(4):
        rows = inputs[(chosen == expert).any(-1)].double()
        ours = found["model.layers.1.mlp.experts.gate_up_proj"].squares[expert]
        np.testing.assert_allclose(ours, rows.square().sum(0).numpy(), rtol=1e-5)
        gate, up = (rows.float() @ experts.gate_up_proj[expert].T).chunk(2, -1)
        inner = (torch.nn.functional.silu(gate) * up).double().square().sum(0).detach().numpy()
        ours = found["model.layers.1.mlp.experts.down_proj"].squares[expert]
        np.testing.assert_allclose(ours, inner, rtol=1e-4)


def test_names() -> None:
    names = {"model.layers.0.mlp.up_proj.weight": ["blk.0.ffn_up.weight"], "h.0.attn.weight": ["blk.0.attn_qkv.weight"]}
    assert gguf_names("model.layers.0.mlp.up_proj.weight", "model", names) == ["blk.0.ffn_up.weight"]
    assert gguf_names("transformer.h.0.attn.weight", "transformer", names) == ["blk.0.attn_qkv.weight"]
    assert gguf_names("model.layers.3.mlp.experts.gate_up_proj", "model", names) == [
        "blk.3.ffn_gate_exps.weight", "blk.3.ffn_up_exps.weight",
    ]  # fmt: skip
    assert gguf_names("model.norm.weight", "model", names) == []


def test_pieces_begin_as_texts_do_one_after_the_other() -> None:
    class Source:
        bos_id = 9

        def tokenize(self, text: str, *, add_special: bool) -> list[int]:
            assert add_special
            return [9, *map(int, text)]

    request = ImatrixRequest("", None, tokens=3)  # type: ignore[arg-type]
    assert job.pieces(Source(), "12345678", request) == [[9, 1, 2], [9, 4, 5], [9, 7, 8]]  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"--text: has 2 tokens, a piece is 3; name a longer text"):
        job.pieces(Source(), "1", request)  # type: ignore[arg-type]


def test_an_export_takes_it(tiny_model_dir: Callable[..., Path], text: Path, tmp_path: Path) -> None:
    model = tiny_model_dir("llama", hidden=256)
    computed(model, tmp_path / "imatrix.dat", text, chunks=2)
    types = TypeChoice(importance=tmp_path / "imatrix.dat")
    (tmp_path / "out").mkdir()
    found = read_gguf_facts(emit(model, tmp_path / "out", preset="iq2_xxs", types=types).entry_path, "").tensors
    assert found["blk.1.attn_q.weight"].dtype == "IQ2_XXS"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tokens", "64", "-o", "there.gguf"], "there.gguf: is there already; name another file, or add --overwrite"),
        (["-o", "no/imatrix.gguf"], "is no file in a directory that is there"),
        (["-o", "x.gguf", "--format", "csv"], "--format csv: is no form of an importance matrix; known: gguf, dat"),
        (["-o", "x.gguf", "--text", "missing.txt"], "missing.txt: cannot be read"),
        (["-o", "x.gguf", "--tokens", "9000000"], "a piece is 9000000; name a longer text"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str], said: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.gguf").write_text("mine")
    done = CliRunner().invoke(app, ["imatrix", str(tiny_llama), *options, "-q"])
    assert done.exit_code == 2
    assert said in done.output
    assert done.output.count("\n") == 1
    assert (tmp_path / "there.gguf").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["there.gguf"]


def test_of_a_gguf_file_torch_makes_none(tiny_llama: Path, tmp_path: Path) -> None:
    source = emit(tiny_llama, tmp_path).entry_path
    with pytest.raises(UserError, match=r"is a \.gguf file; name the Hugging Face directory, or use llama-imatrix"):
        compute(ImatrixRequest(str(source), tmp_path / "i.gguf"), SilentReporter())


def test_the_verb_writes_the_file_and_says_what_is_next(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "imatrix.gguf"
    command = ["imatrix", str(tiny_llama), "-o", str(out), "--text", str(text), "--tokens", "32", "--chunks", "2"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert f"next: packlight export {tiny_llama} --quant iq3_xxs --imatrix {out} -o ARTIFACT" in done.output
    assert read_imatrix(out).chunks == 2
    again = CliRunner().invoke(app, [*command, "--json", "--overwrite"])
    assert json.loads(again.stdout)["entries"] == len(read_imatrix(out).sums)
