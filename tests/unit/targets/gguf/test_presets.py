"""The choice of types, against figures worked out by hand from llama-quantize's rules."""

from __future__ import annotations

from targets.gguf.presets import PRESETS, ModelShape, choose_types, fallback, quantizable
from targets.gguf.types import TYPES


def layer_types(preset: str, tensor: str, shape: ModelShape, row: int = 2048) -> list[str]:
    names = [(f"blk.{i}.{tensor}.weight", (row, row)) for i in range(shape.n_layers)]
    return [kind.name for kind in choose_types(PRESETS[preset], names, shape).values()]


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


def test_rows_that_do_not_divide_fall_back() -> None:
    names = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "Q3_K": "Q4_0", "Q2_K": "Q4_0", "IQ4_XS": "IQ4_NL"}
    names |= {"TQ1_0": "Q4_0", "TQ2_0": "Q4_0"}
    assert {name: fallback(TYPES[name], 576).name for name in names} == names
    assert fallback(TYPES["Q4_K"], 100).name == "F16"
    assert fallback(TYPES["Q8_0"], 100).name == "F16"
    assert fallback(TYPES["Q4_K"], 512).name == "Q4_K"


def test_norms_biases_and_vectors_stay() -> None:
    assert not quantizable("blk.0.attn_norm.weight", (8, 8))
    assert not quantizable("blk.0.attn_q.bias", (8,))
    assert not quantizable("output_norm.weight", (8,))
    assert quantizable("blk.0.attn_q.weight", (8, 8))


def test_float_presets_do_not_touch_the_rules() -> None:
    tensors = [("token_embd.weight", (100, 576)), ("blk.0.ffn_down.weight", (576, 100))]
    assert {k.name for k in choose_types(PRESETS["bf16"], tensors, ModelShape(1, 1, tied=True)).values()} == {"BF16"}
