"""LoRA adapters: merged as peft merges them, and added by llama.cpp as torch adds them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.command_line import packlight
from support.parity import TOKENS, emit, torch_logits

from exporter.adapter.for_llamacpp import write_adapter
from exporter.adapter.merge import MergeRequest, merge
from exporter.progress import SilentReporter
from runtime.errors import ModelError, UnsupportedError, UserError
from targets.safetensors import read_facts
from targets.weights import WeightReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    TinyModel = Callable[..., Path]

pytestmark = [  # peft's
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*save_embedding_layers.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*[Tt]ied.*:UserWarning"),
]

PLAIN: dict[str, Any] = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear"}
SCALED: dict[str, Any] = {
    "r": 4, "lora_alpha": 12, "use_rslora": True, "target_modules": ["q_proj", "k_proj", "down_proj"],
    "rank_pattern": {"layers.1.self_attn.q_proj": 8}, "alpha_pattern": {"down_proj": 3},
}  # fmt: skip
TABLE: dict[str, Any] = {
    "r": 4, "lora_alpha": 12, "target_modules": ["embed_tokens", "q_proj"], "alpha_pattern": {"embed_tokens": 4},
}  # fmt: skip


def train(base: Path, out: Path, seed: int = 0, **options: Any) -> Path:
    """An adapter of random weights, as peft saves it."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        peft.LoraConfig(task_type="CAUSAL_LM", **options),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(0, 0.1)
    model.save_pretrained(out)
    return out


def merged_by_peft(base: Path, adapter: Path) -> dict[str, np.ndarray[Any, Any]]:
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    whole = peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return {name: tensor.numpy() for name, tensor in whole.state_dict().items()}


def weights(directory: Path) -> dict[str, np.ndarray[Any, Any]]:
    facts = read_facts(directory, "test").tensors
    with WeightReader() as reader:
        rows = {name: reader.read_rows(fact, 0, fact.n_elements // fact.shape[-1]) for name, fact in facts.items()}
    return {name: values.reshape(facts[name].shape) for name, values in rows.items()}


def run(adapter: Path, out: Path, **options: Any) -> dict[str, Any]:
    return merge(MergeRequest(adapter, out, **options), SilentReporter()).to_json()


@pytest.mark.parametrize("options", [PLAIN, SCALED], ids=["plain", "scaled"])
def test_the_sum_is_pefts(options: dict[str, Any], tiny_model_dir: TinyModel, tmp_path: Path) -> None:
    base = tiny_model_dir("llama3")
    adapter = train(base, tmp_path / "adapter", **options)
    run(adapter, tmp_path / "merged")
    expected, found = merged_by_peft(base, adapter), weights(tmp_path / "merged")
    assert found.keys() == expected.keys()
    before = weights(base)
    changed = {name for name, values in found.items() if not np.array_equal(values, before[name])}
    assert len(changed) == (14 if options is PLAIN else 6)
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6, atol=1e-6, err_msg=name)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "float32"
    assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_rounded_to_the_bases_own_type(tiny_model_dir: TinyModel, tmp_path: Path) -> None:
    import torch

    base = tiny_model_dir("llama")
    adapter = train(base, tmp_path / "adapter", **PLAIN)
    run(adapter, tmp_path / "exact")
    run(adapter, tmp_path / "rounded", keep_dtype=True)
    exact, facts = weights(tmp_path / "exact"), read_facts(tmp_path / "rounded", "test").tensors
    assert {fact.dtype for fact in facts.values()} == {"BF16"}
    for name, values in weights(tmp_path / "rounded").items():
        np.testing.assert_array_equal(values, torch.from_numpy(exact[name]).bfloat16().float().numpy(), err_msg=name)


def test_weights_that_are_stored_the_other_way_round(tmp_path: Path) -> None:
    import torch
    import transformers

    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=32)
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    options = {"r": 2, "lora_alpha": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    adapter = train(tmp_path / "base", tmp_path / "adapter", **options)
    run(adapter, tmp_path / "merged")
    expected = merged_by_peft(tmp_path / "base", adapter)
    for name, values in weights(tmp_path / "merged").items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6, atol=1e-6, err_msg=name)


def test_a_head_that_was_trained_apart_from_its_table(tiny_model_dir: TinyModel, tmp_path: Path) -> None:
    base = tiny_model_dir("llama")  # tied
    adapter = train(base, tmp_path / "adapter", **PLAIN, modules_to_save=["lm_head"])
    said = run(adapter, tmp_path / "merged")
    assert any("weights of its own" in note for note in said["notes"])
    found = weights(tmp_path / "merged")
    np.testing.assert_array_equal(found["model.embed_tokens.weight"], weights(base)["model.embed_tokens.weight"])
    assert not np.array_equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
    expected = logits_of_peft(base, adapter)
    np.testing.assert_allclose(torch_logits(tmp_path / "merged", TOKENS), expected, rtol=1e-4, atol=1e-4)


def test_a_table_is_added_to_the_other_way_round(tiny_model_dir: TinyModel, tmp_path: Path) -> None:
    base = tiny_model_dir("llama3")
    adapter = train(base, tmp_path / "adapter", **TABLE)
    said = run(adapter, tmp_path / "merged")
    assert (said["added"], said["whole"], said["notes"]) == (3, 0, [])  # peft saves the base's own table as well
    expected, found, before = merged_by_peft(base, adapter), weights(tmp_path / "merged"), weights(base)
    assert not np.allclose(found["model.embed_tokens.weight"], before["model.embed_tokens.weight"], atol=0.01)
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6, atol=1e-6, err_msg=name)


def test_a_table_that_is_the_head_leaves_the_head_as_it_was(tiny_model_dir: TinyModel, tmp_path: Path) -> None:
    """As the adapter runs in peft: what is added is added to what is looked up."""
    base = tiny_model_dir("llama")  # tied
    adapter = train(base, tmp_path / "adapter", **TABLE)
    said = run(adapter, tmp_path / "merged")
    assert any("which alone was changed" in note for note in said["notes"])
    found, before = weights(tmp_path / "merged"), weights(base)
    np.testing.assert_array_equal(found["lm_head.weight"], before["model.embed_tokens.weight"])
    expected = logits_of_peft(base, adapter)
    assert np.abs(expected - torch_logits(base, TOKENS)).max() / np.abs(expected).max() > 0.1
    np.testing.assert_allclose(torch_logits(tmp_path / "merged", TOKENS), expected, rtol=1e-4, atol=1e-4)


def test_a_table_that_is_the_head_has_no_adapters_file(tiny_model_dir: TinyModel, tmp_path: Path) -> None:
    adapter = train(tiny_model_dir("llama"), tmp_path / "adapter", **TABLE)
    with pytest.raises(UnsupportedError, match=r"which is the head as well: .* 'packlight merge'"):
        write_adapter(MergeRequest(adapter, tmp_path / "adapter.gguf"), SilentReporter())


def test_a_table_and_a_head_that_peft_keeps_alike_are_refused(tiny_model_dir: TinyModel, tmp_path: Path) -> None:
    adapter = train(tiny_model_dir("llama"), tmp_path / "adapter", **TABLE)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "ensure_weight_tying": True}))
    with pytest.raises(UnsupportedError, match="keeps a table that it changes and the head alike"):
        run(adapter, tmp_path / "merged")


def logits_of_peft(base: Path, adapter: Path) -> np.ndarray[Any, Any]:
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        logits: np.ndarray[Any, Any] = (
            peft.PeftModel.from_pretrained(model, str(adapter)).eval()(torch.tensor([TOKENS])).logits[0].numpy()
        )
    return logits


@pytest.mark.parametrize(("family", "options"), [("llama", SCALED), ("qwen3", PLAIN), ("llama3", TABLE)])
def test_llama_cpp_adds_what_torch_adds(
    family: str, options: dict[str, Any], tiny_model_dir: TinyModel, tmp_path: Path
) -> None:
    import llama_cpp

    base = tiny_model_dir(family)
    adapter = train(base, tmp_path / "adapter", **options)
    (tmp_path / "out").mkdir()
    model = emit(base, tmp_path / "out")
    said = write_adapter(MergeRequest(adapter, tmp_path / "adapter.gguf"), SilentReporter())
    assert said.n_bytes == (tmp_path / "adapter.gguf").stat().st_size
    engine = llama_cpp.Llama(
        str(model.entry_path), lora_path=str(tmp_path / "adapter.gguf"), n_ctx=64, n_batch=64, logits_all=True,
        verbose=False, type_k=0, type_v=0,
    )  # fmt: skip
    engine.eval(TOKENS)
    found = np.asarray(engine.scores[: len(TOKENS)])
    engine.close()
    expected = logits_of_peft(base, adapter)
    width, scale = min(found.shape[1], expected.shape[1]), np.abs(expected).max()
    assert np.abs(found[:, :width] - expected[:, :width]).max() / scale < 1e-4
    assert np.abs(expected - torch_logits(base, TOKENS)).max() / scale > 0.1  # the adapter is no small thing


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "IA3"}, "only LoRA"),
        ({"bias": "all"}, "biases of the base"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base's weights"),
        ({"r": 8}, "rank 8"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"alpha_pattern": {"(": 3}}, "which is none"),
        ({"base_model_name_or_path": None}, "--base"),
        ({"base_model_name_or_path": "/nowhere/at/all"}, "no such directory"),
    ],
)
def test_what_is_no_sum_is_refused(
    change: dict[str, Any], says: str, tiny_model_dir: TinyModel, tmp_path: Path
) -> None:
    adapter = train(tiny_model_dir("llama"), tmp_path / "adapter", **PLAIN)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises((ModelError, UnsupportedError, UserError), match=says):
        run(adapter, tmp_path / "merged")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["adapter"]


def test_an_adapter_of_another_model_is_refused(tiny_model_dir: TinyModel, tmp_path: Path) -> None:
    adapter = train(tiny_model_dir("llama"), tmp_path / "adapter", **PLAIN)
    with pytest.raises(ModelError, match=r"does not belong .* name its own base"):
        run(adapter, tmp_path / "merged", base=str(tiny_model_dir("qwen3", hidden=96)))


def test_whole_modules_do_not_go_into_an_adapters_file(tiny_model_dir: TinyModel, tmp_path: Path) -> None:
    adapter = train(tiny_model_dir("llama3"), tmp_path / "adapter", **PLAIN, modules_to_save=["lm_head"])
    with pytest.raises(UnsupportedError, match="packlight merge"):
        write_adapter(MergeRequest(adapter, tmp_path / "adapter.gguf"), SilentReporter())


def test_from_the_command_line(tiny_model_dir: TinyModel, tmp_path: Path) -> None:
    base = tiny_model_dir("llama3")
    adapter = train(base, tmp_path / "adapter", **PLAIN)
    refused = packlight("export", adapter, "-o", tmp_path / "out")
    assert refused.returncode == 2
    assert f"packlight merge {adapter}" in refused.stderr
    ran = packlight("merge", adapter, "-o", tmp_path / "merged", "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["added"] == 14
    again = packlight("merge", adapter, "-o", tmp_path / "merged")
    assert (again.returncode, len(again.stderr.splitlines())) == (2, 1)
    written = packlight("adapter", adapter, "-o", tmp_path / "adapter.gguf")
    assert written.returncode == 0, written.stderr
    assert "--lora" in written.stdout
