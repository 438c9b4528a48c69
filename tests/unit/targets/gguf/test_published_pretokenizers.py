"""The names of pre-tokenizers as published models write them in tokenizer.json, spelling and all.

That the names split text alike is for tests/contract/test_tokenizer_parity.py; here is what the files say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.errors import UnsupportedError
from targets.gguf.tokenizer.pretokenizers import find_pre

Node = dict[str, Any]


def split(regex: str, behavior: str = "Isolated", **more: Any) -> Node:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": False, **more}


def byte_level(*, regex: bool) -> Node:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": regex}


def digits(*, individual: bool) -> Node:
    return {"type": "Digits", "individual_digits": individual}


PUNCTUATION = {"type": "Punctuation", "behavior": "Contiguous"}
BLOOM = split(r" ?[^(\s|[.,!?…。，、।۔،])]+")
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES

O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + SPACES
)
DEEPSEEK = (  # line ends as such, not escaped
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)

PUBLISHED: dict[str, tuple[list[Node], bool, bool]] = {
    # steps, ignore_merges, clean_up_tokenization_spaces; of Falcon 7B, Refact, BLOOM, …
    "falcon": (
        [PUNCTUATION, byte_level(regex=True), digits(individual=False), split("[0-9][0-9][0-9]")], False, True,
    ),
    "starcoder": ([digits(individual=True), byte_level(regex=True)], False, True),
    "bloom": ([BLOOM, byte_level(regex=False)], False, True),
    "poro-chat": ([BLOOM, byte_level(regex=False)], False, False),
    "deepseek-v3": (
        [split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK), byte_level(regex=False)], False, False,
    ),
    "gpt-4o": ([split(O200K), byte_level(regex=False)], False, False),
    "gpt-2": ([byte_level(regex=True)], False, True),
    "llama-bpe": ([split(CL100K), byte_level(regex=False)], True, True),
    "smaug-bpe": ([split(CL100K, "Removed", invert=True), byte_level(regex=False)], False, True),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_name_is_found(name: str) -> None:
    steps, ignore_merges, cleans = PUBLISHED[name]
    tokenizer = {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "model": {"ignore_merges": ignore_merges},
    }  # fmt: skip
    assert find_pre(tokenizer, cleans=cleans, where=Path("tokenizer.json")).name == name


def test_merges_that_make_every_token_need_no_flag() -> None:
    """GPT-OSS's file says to ignore merges for whole words, llama.cpp's name does not: both give the same tokens."""
    steps = {"type": "Sequence", "pretokenizers": [split(O200K), byte_level(regex=False)]}
    model = {"ignore_merges": True, "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3}, "merges": [["a", "b"]]}
    tokenizer = {"pre_tokenizer": steps, "model": model}
    assert find_pre(tokenizer, cleans=False, where=Path("tokenizer.json")).name == "gpt-4o"
    model["vocab"]["abc"] = 4  # type: ignore[index]
    with pytest.raises(UnsupportedError, match=r"\(ignore_merges\); nearest: gpt-4o"):
        find_pre(tokenizer, cleans=False, where=Path("tokenizer.json"))


@pytest.mark.parametrize(
    "steps",
    [
        [{**PUNCTUATION, "behavior": "Isolated"}, byte_level(regex=True), digits(individual=False)],
        [PUNCTUATION, byte_level(regex=True), digits(individual=True), split("[0-9][0-9][0-9]")],
        [digits(individual=True), BLOOM, byte_level(regex=False)],  # llama.cpp takes them the other way round
    ],
)
def test_what_is_only_alike_is_refused(steps: list[Node]) -> None:
    tokenizer = {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "model": {}}
    with pytest.raises(UnsupportedError, match="has no known name for this pre-tokenizer"):
        find_pre(tokenizer, cleans=True, where=Path("tokenizer.json"))
