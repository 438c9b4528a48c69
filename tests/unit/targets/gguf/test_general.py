"""general.*: what a name, a model card and generation_config.json say, and what they may not break."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from targets.gguf.general import Sizes, general_metadata, model_name

if TYPE_CHECKING:
    from pathlib import Path


def said(path: Path, name: str = "Tiny-Llama-1B-Instruct", **files: str) -> dict[str, Any]:
    """general.* of a directory with these files, without the prefix. card: README.md's front matter."""
    for file, text in files.items():
        target = path / {"card": "README.md"}.get(file, f"{file}.json")
        target.write_text(f"---\n{text}\n---\n# A model\n" if file == "card" else text, encoding="utf-8")
    _, entries = general_metadata(path, "llama", name, Sizes(1_000_000_000))
    return {entry.key.removeprefix("general."): entry.value for entry in entries}


def test_a_bare_directory_has_its_name_taken_apart(tmp_path: Path) -> None:
    assert said(tmp_path) == {
        "architecture": "llama", "type": "model", "name": "Tiny Llama 1B Instruct", "basename": "Tiny-Llama",
        "size_label": "1B", "finetune": "Instruct",
    }  # fmt: skip


def test_a_card_says_licence_lineage_and_data(tmp_path: Path) -> None:
    found = said(tmp_path, card="""
license: other
license_name: tiny-1.0
license_link: https://example.com/licence
base_model: [Org/Base-Model-7B-v2, https://huggingface.co/some/other, {name: Third, doi: 10.1/2}]
datasets: [wiki/text-103]
tags: [chat, 7]
pipeline_tag: text-generation
language: [en, no]
author: Somebody
version: 1.5
model_description: Small.
""")  # fmt: skip
    wanted = {
        "license": "other", "license.name": "tiny-1.0", "license.link": "https://example.com/licence",
        "base_model.count": 3,
        "base_model.0.name": "Base Model 7B v2", "base_model.0.organization": "Org", "base_model.0.version": "v2",
        "base_model.0.repo_url": "https://huggingface.co/Org/Base-Model-7B-v2",
        "base_model.1.name": "Other", "base_model.1.organization": "Some",
        "base_model.1.repo_url": "https://huggingface.co/some/other",
        "base_model.2.name": "Third", "base_model.2.doi": "10.1/2",
        "dataset.count": 1, "dataset.0.name": "Text 103", "dataset.0.organization": "Wiki",
        "dataset.0.repo_url": "https://huggingface.co/wiki/text-103",
        "tags": ["chat", "7", "text-generation"], "author": "Somebody", "version": "1.5", "description": "Small.",
    }  # fmt: skip
    assert {key: found.get(key) for key in wanted} == wanted
    assert "en" in found["languages"]


def test_several_licences_are_one_text(tmp_path: Path) -> None:
    assert said(tmp_path, card="license: [mit, apache-2.0]")["license"] == "mit,apache-2.0"


@pytest.mark.parametrize(
    "card",
    ["license: [", "- a list", "a: &x [*x]", "base_model: 5", "base_model: [5, null, [1]]", "tags: {a: b}",
     "name: {a: b}", "license: {a: b}", "version: true", "base_model: [{}]", "model_name: \"\\ud800\"",
     "base_model: ['']", "datasets: ['/']", "basename: 7", "license: " + "[" * 3000],
)  # fmt: skip
def test_a_card_of_any_form_costs_its_metadata_at_most(card: str, tmp_path: Path) -> None:
    found = said(tmp_path, card=card)
    assert (found["architecture"], found["type"], found["size_label"]) == ("llama", "model", "1B")
    for value in found.values():
        assert isinstance(value, int) or "".join(value).encode("utf-8")


def test_a_card_that_is_no_text_is_none(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert "license" not in said(tmp_path)


def test_the_own_name_in_config_json_has_the_owner_and_that_of_another_model_is_not_taken(tmp_path: Path) -> None:
    own = said(tmp_path, config=json.dumps({"_name_or_path": "tiny-org/Tiny-Llama-1B-Instruct"}))
    assert (own["organization"], own["name"]) == ("Tiny Org", "Tiny Llama 1B Instruct")
    other = said(tmp_path, config=json.dumps({"_name_or_path": "meta/Llama-2-7b"}))
    assert ("organization" in other, other["name"]) == (False, "Tiny Llama 1B Instruct")


def test_sampling_is_that_of_generation_config(tmp_path: Path) -> None:
    config = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0, "repetition_penalty": 1.1, "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(config), encoding="utf-8")
    _, entries = general_metadata(tmp_path, "llama", "m", Sizes(1000))
    found = {entry.key.rpartition(".")[2]: (entry.value, entry.type) for entry in entries if ".sampling." in entry.key}
    assert found == {
        "temp": (0.6, "FLOAT32"), "top_k": (20, "INT32"), "top_p": (0.95, "FLOAT32"), "min_p": (0.0, "FLOAT32"),
        "penalty_repeat": (1.1, "FLOAT32"),
    }  # fmt: skip


@pytest.mark.parametrize("value", ["true", '"x"', "null", "[]", "1e999", "1e300", "NaN", "9" * 400, "3e9", "0.5"])
def test_nonsense_in_generation_config_is_left_out(value: str, tmp_path: Path) -> None:
    found = said(tmp_path, generation_config=f'{{"top_k": {value}, "sequence": 4}}')
    assert not [key for key in found if key.startswith("sampling")]


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000])
def test_a_generation_config_that_is_no_object_is_none(text: str, tmp_path: Path) -> None:
    assert said(tmp_path, generation_config=text)["type"] == "model"


def test_experts_are_counted_in_the_size() -> None:
    layer = [("blk.0.ffn_up_exps.weight", (8, 1000, 700)), ("blk.0.ffn_up_exps.bias", (8, 1000)),
             ("blk.0.attn_q.weight", (1000, 300))]  # fmt: skip
    assert Sizes.of(layer[2:]).label == "300K"
    # gguf-py counts a bias of experts with what is shared where it has no three dimensions
    assert Sizes.of(layer) == Sizes(8 * 700_000 + 8000 + 300_000, 308_000, 700_000, 8)
    assert Sizes.of(layer).label == "8x1.0M"


def test_what_a_gguf_says_of_itself_wins() -> None:
    known = {"general.basename": "Base", "general.name": "Name", "general.finetune": "Chat"}
    assert model_name("File-7B", Sizes(1_100_000_000), known).file_name("q4_0") == "Base-1.1B-Chat-Q4_0.gguf"
    assert model_name("File-1B", Sizes(1_100_000_000), {}).file_name("q4_0") == "File-1B-Q4_0.gguf"
