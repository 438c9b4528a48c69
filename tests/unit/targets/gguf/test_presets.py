"""The choice of types, against llama-quantize's own and figures worked out by hand from its rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.digests import types_digest
from support.preset_models import KINDS, NAMED, write_model

from targets.gguf.choice import choose, choose_types, fallback, quantizable, role_of
from targets.gguf.content import model_shape
from targets.gguf.importance import missing
from targets.gguf.mixtures import ModelShape
from targets.gguf.presets import ALIASES, PRESETS
from targets.gguf.reading import read_gguf_metadata
from targets.gguf.types import TYPES

REFERENCE = json.loads((Path(__file__).parents[3] / "golden" / "types.json").read_text(encoding="utf-8"))


def layer_types(preset: str, tensor: str, shape: ModelShape, row: int = 2048) -> list[str]:
    names = [(f"blk.{i}.{tensor}.weight", (row, row)) for i in range(shape.n_layers)]
    return [kind.name for kind in choose_types(PRESETS[preset], names, shape).values()]


@pytest.mark.parametrize("name", KINDS)
def test_every_preset_gives_every_kind_of_model_the_types_of_llama_quantize(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    write_model(tmp_path / "model.gguf", kind)
    known = {entry.key: entry.value for entry in read_gguf_metadata(tmp_path / "model.gguf")}
    tensors = kind.tensors()
    shape = model_shape(known, tensors)

    def found(preset: str, **more: object) -> str:
        chosen = choose(PRESETS[preset], list(tensors.items()), shape, **more)  # type: ignore[arg-type]
        if chosen.problems:
            return "refused"
        return types_digest({name: chosen.types.get(name, TYPES["F32"]).name for name in tensors})

    ours = {preset: found(preset) for preset in PRESETS}
    ours |= {f"{preset} weighted": found(preset, weighted=True) for preset in PRESETS}
    for option, (_, wanted) in NAMED.items():
        ours |= {f"{preset} {option}": found(preset, wanted=wanted) for preset in ("q4_k_m", "iq2_s")}
    if name == "no-blocks":  # llama-quantize falls back from a type that was named
        ours = {key: value for key, value in ours.items() if value != "refused" or key.startswith("q1_0")}
    assert ours.items() <= REFERENCE[name].items()
    assert len(ours) >= 2 * len(PRESETS)


def test_presets_say_whether_they_need_an_importance_matrix() -> None:
    kind = KINDS["llama"]
    shape = ModelShape(kind.layers, 4, tied=True)
    for preset in PRESETS.values():
        types = choose_types(preset, list(kind.tensors().items()), shape)
        assert bool(missing(preset, types, None, "model")) == preset.weighted, preset.name


def test_the_reference_has_every_name_that_llama_quantize_has() -> None:
    names = {name.removesuffix(" weighted") for name in REFERENCE["llama"] if " " not in name}
    assert names == PRESETS.keys()
    assert {preset.file_type for preset in PRESETS.values()} == {*range(4), *range(7, 33), *range(36, 42)} - {39}
    assert {PRESETS[name].name for name in ALIASES.values()} == {"q3_k_m", "q4_k_m", "q5_k_m"}


def test_q4_k_m_gives_more_bits_to_the_ends_and_every_third_layer() -> None:
    # 16 layers: the first two, the last two, and 2 + 2, 2 + 5, 2 + 8, 2 + 11 (4, 7, 10, 13)
    types = layer_types("q4_k_m", "attn_v", ModelShape(16, 4, tied=True))
    assert [i for i, kind in enumerate(types) if kind == "Q6_K"] == [0, 1, 4, 7, 10, 13, 14, 15]
    assert set(types) == {"Q4_K", "Q6_K"}


def test_the_order_in_the_file_does_not_matter() -> None:
    shape = ModelShape(16, 4, tied=True)
    forward = [(f"blk.{i}.attn_v.weight", (512, 512)) for i in range(16)]
    assert choose_types(PRESETS["q4_k_m"], forward, shape) == choose_types(PRESETS["q4_k_m"], forward[::-1], shape)


def test_grouped_heads_earn_attn_v_more_bits() -> None:
    assert set(layer_types("iq4_xs", "attn_v", ModelShape(8, 4, tied=True))) == {"Q5_K"}
    assert set(layer_types("iq4_xs", "attn_v", ModelShape(8, 3, tied=True))) == {"IQ4_XS"}
    assert set(layer_types("q2_k", "attn_v", ModelShape(8, 1, tied=True))) == {"Q3_K"}


def test_70b_models_keep_attn_v_at_five_bits() -> None:
    assert set(layer_types("q3_k_m", "attn_v", ModelShape(80, 8, tied=False, is_70b=True))) == {"Q5_K"}


def test_output_and_embedding() -> None:
    table = [("token_embd.weight", (100, 2048)), ("output.weight", (100, 2048))]
    untied = choose_types(PRESETS["q4_k_m"], table, ModelShape(2, 1, tied=False))
    assert (untied["token_embd.weight"].name, untied["output.weight"].name) == ("Q4_K", "Q6_K")
    tied = choose_types(PRESETS["q4_k_m"], table[:1], ModelShape(2, 1, tied=True))
    assert tied["token_embd.weight"].name == "Q6_K"
    narrow = choose_types(PRESETS["q4_k_m"], [("token_embd.weight", (100, 576))], ModelShape(2, 1, tied=True))
    assert narrow["token_embd.weight"].name == "Q8_0"
    eight = choose_types(PRESETS["q8_0"], table, ModelShape(2, 1, tied=False))
    assert {kind.name for kind in eight.values()} == {"Q8_0"}


def test_experts_alone_are_of_four_bit_floats() -> None:
    tensors = [("blk.0.ffn_up_exps.weight", (4, 64, 256)), ("blk.0.attn_q.weight", (64, 256))]
    types = choose_types(PRESETS["mxfp4_moe"], tensors, ModelShape(1, 1, tied=False, n_experts=4))
    assert [kind.name for kind in types.values()] == ["Q8_0", "MXFP4"]


def test_rows_that_do_not_divide_fall_back() -> None:
    names = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "Q3_K": "Q4_0", "Q2_K": "Q4_0", "IQ4_XS": "IQ4_NL"}
    names |= {"TQ1_0": "Q4_0", "TQ2_0": "Q4_0", "IQ1_S": "IQ4_NL", "IQ2_XXS": "IQ4_NL", "IQ3_S": "IQ4_NL"}
    assert {name: fallback(TYPES[name], 576).name for name in names} == names
    assert fallback(TYPES["Q2_0"], 544).name == "Q4_0"
    assert fallback(TYPES["Q4_K"], 100).name == "F16"
    assert fallback(TYPES["Q8_0"], 100).name == "F16"
    assert fallback(TYPES["MXFP4"], 100).name == "F16"
    assert fallback(TYPES["Q4_K"], 512).name == "Q4_K"
    assert fallback(TYPES["Q1_0"], 576) is None
    assert fallback(TYPES["NVFP4"], 544) is None


def test_norms_routers_and_vectors_stay() -> None:
    assert not quantizable("blk.0.attn_norm.weight", (8, 8))
    assert not quantizable("blk.0.attn_q.bias", (8,))
    assert not quantizable("output_norm.weight", (8,))
    assert not quantizable("blk.0.ffn_gate_inp.weight", (8, 8))
    assert not quantizable("blk.0.ffn_gate_inp_shexp.weight", (1, 8))  # one row is no matrix
    assert not quantizable("position_embd.weight", (8, 8))
    assert not quantizable("blk.0.shortconv.conv.weight", (8, 3))
    assert quantizable("blk.0.attn_q.weight", (8, 8))
    assert quantizable("blk.0.ffn_up_exps.weight", (2, 1, 8))


def test_roles() -> None:
    roles = {
        "output": "output", "token_embd": "token_embd", "blk.3.attn_qkv": "attn_v", "blk.3.attn_kv_b": "attn_v",
        "blk.3.ffn_gate_up_exps": "ffn_gate", "blk.3.ffn_down_shexp": "ffn_down", "blk.3.attn_q": "attn_q",
    }  # fmt: skip
    assert {name: role_of(f"{name}.weight") for name in roles} == roles


def test_float_presets_do_not_touch_the_rules() -> None:
    tensors = [("token_embd.weight", (100, 576)), ("blk.0.ffn_down.weight", (576, 100))]
    assert {k.name for k in choose_types(PRESETS["bf16"], tensors, ModelShape(1, 1, tied=True)).values()} == {"BF16"}
