"""Types that the user names: which tensors they reach, and what is refused before anything is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.parity import emit
from support.preset_models import importance_of

from runtime.errors import UnsupportedError
from targets.base import TypeChoice
from targets.gguf.choice import choose
from targets.gguf.mixtures import ModelShape
from targets.gguf.presets import PRESETS
from targets.gguf.reading import read_gguf_facts

if TYPE_CHECKING:
    from pathlib import Path

TENSORS = [
    ("token_embd.weight", (64, 256)), ("output.weight", (64, 256)), ("output_norm.weight", (256,)),
    *[(f"blk.{i}.attn_norm.weight", (256,)) for i in range(4)],
    *[(f"blk.{i}.attn_v.weight", (64, 256)) for i in range(4)],
    *[(f"blk.{i}.ffn_down.weight", (256, 288)) for i in range(4)],
]  # fmt: skip
SHAPE = ModelShape(4, 1, tied=False)


def chosen(preset: str = "q4_k_m", **wanted: object) -> dict[str, str]:
    found = choose(PRESETS[preset], TENSORS, SHAPE, TypeChoice(**wanted))  # type: ignore[arg-type]
    assert found.problems == []
    return {name: kind.name for name, kind in found.types.items()}


def refused(**wanted: object) -> str:
    found = choose(PRESETS["q4_k_m"], TENSORS, SHAPE, TypeChoice(**wanted))  # type: ignore[arg-type]
    return "\n".join(map(str, found.problems))


def test_the_first_rule_that_is_found_counts() -> None:
    types = chosen(rules=((r"blk\.[0-1]\.ffn_down", "q8_0"), ("ffn_down", "Q5_1"), ("down", "q4_0")))
    assert [types[f"blk.{i}.ffn_down.weight"] for i in range(4)] == ["Q8_0", "Q8_0", "Q5_1", "Q5_1"]


def test_a_tensor_with_a_rule_does_not_count_among_the_presets_layers() -> None:
    # q3_k_m: the first two attn_v at Q5_K, all others at Q4_K
    assert [chosen("q3_k_m")[f"blk.{i}.attn_v.weight"] for i in range(4)] == ["Q5_K", "Q5_K", "Q4_K", "Q4_K"]
    types = chosen("q3_k_m", rules=((r"blk\.0\.attn_v", "q8_0"),))
    assert [types[f"blk.{i}.attn_v.weight"] for i in range(4)] == ["Q8_0", "Q5_K", "Q5_K", "Q4_K"]


def test_pure_is_the_base_type_and_what_it_falls_back_to() -> None:
    types = chosen(pure=True)
    assert set(types.values()) == {"Q4_K", "Q5_0"}
    assert types["output.weight"] == "Q4_K"


def test_output_and_embedding_win_over_rules() -> None:
    types = chosen(output="q8_0", embedding="f16", rules=(("token_embd|output|attn_v", "q5_1"),))
    assert (types["token_embd.weight"], types["output.weight"]) == ("F16", "Q8_0")
    assert types["blk.0.attn_v.weight"] == "Q5_1"


def test_a_tied_table_is_the_output() -> None:
    tied = ModelShape(4, 1, tied=True)
    tensors = [entry for entry in TENSORS if entry[0] != "output.weight"]

    def table(**wanted: object) -> str:
        return choose(PRESETS["q4_k_m"], tensors, tied, TypeChoice(**wanted)).types["token_embd.weight"].name  # type: ignore[arg-type]

    assert table() == "Q6_K"
    assert table(output="q8_0") == "Q8_0"
    assert table(output="q8_0", embedding="q5_0") == "Q5_0"
    assert table(output="q8_0", rules=(("token_embd", "q4_0"),)) == "Q4_0"
    assert table(output="q8_0", pure=True) == "Q4_K"  # as llama-quantize has it


def test_rules_reach_the_float_presets_too() -> None:
    types = chosen("bf16", rules=(("ffn_down", "q8_0"),))
    assert (types["blk.0.ffn_down.weight"], types["blk.0.attn_v.weight"]) == ("Q8_0", "BF16")


def test_all_that_is_wrong_is_said_at_once() -> None:
    said = refused(rules=(("ffn_[", "q8_0"), ("ffn_up", "q9")), output="q7_k")
    assert said.splitlines() == [
        line for line in said.splitlines() if "known: f32, f16, q4_0" in line or "is no regular expression" in line
    ]
    assert "--rule ffn_[=q8_0: is no regular expression (unterminated character set" in said
    assert "--rule ffn_up=q9: 'q9' is no type of ggml" in said
    assert "--output-type: 'q7_k' is no type of ggml" in said


def test_a_rule_for_nothing_is_refused() -> None:
    assert refused(rules=(("ffn_dwon", "q8_0"), ("attn_norm", "q8_0"))).splitlines() == [
        "--rule ffn_dwon=q8_0: is found in no tensor's name; they are such as blk.3.ffn_down.weight; "
        "mend the pattern, or take it out",
        "--rule attn_norm=q8_0: is found in names of tensors that stay as they are alone, such as "
        "blk.0.attn_norm.weight; mend the pattern, or take it out",
    ]


def test_a_type_that_does_not_divide_the_rows_is_refused_with_what_would() -> None:
    assert refused(rules=(("blk.*weight", "q6_k"),)) == (
        "--rule blk.*weight=q6_k: blocks of 256 do not divide rows of 288, those of blk.0.ffn_down.weight, "
        "blk.1.ffn_down.weight, blk.2.ffn_down.weight, blk.3.ffn_down.weight; "
        "name q8_0, as llama-quantize does, or narrow the pattern"
    )
    assert "name another type, or narrow" in refused(rules=(("ffn_down", "q1_0"),))


def test_a_preset_that_has_nothing_for_a_row_names_it() -> None:
    (first, *_) = choose(PRESETS["q1_0"], TENSORS, SHAPE).problems
    assert str(first).startswith(
        "blk.0.ffn_down.weight: rows of 288 weights are no whole blocks of q1_0, which has 128"
    )


def test_nothing_is_written_where_a_rule_is_wrong(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="--rule nothing=q8_0: is found in no tensor's name"):
        emit(tiny_llama, tmp_path, preset="q4_0", types=TypeChoice(rules=(("nothing", "q8_0"),)))
    assert list(tmp_path.iterdir()) == []


def test_named_types_are_in_the_file(tiny_llama: Path, tmp_path: Path) -> None:
    types = TypeChoice(
        rules=((r"blk\.0\..*ffn", "q5_1"),), output="q4_1", importance=importance_of(tiny_llama, tmp_path / "i")
    )
    (tmp_path / "out").mkdir()
    found = read_gguf_facts(emit(tiny_llama, tmp_path / "out", preset="q4_0", types=types).entry_path, "").tensors
    assert found["token_embd.weight"].dtype == "Q4_1"
    assert {found[f"blk.0.ffn_{part}.weight"].dtype for part in ("up", "gate", "down")} == {"Q5_1"}
    assert {found[f"blk.1.ffn_{part}.weight"].dtype for part in ("up", "gate", "down")} == {"Q4_0"}
