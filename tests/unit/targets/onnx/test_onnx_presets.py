"""Which scheme each matrix gets, and blocks that a row of a table divides into."""

from __future__ import annotations

import pytest

from targets.onnx.blocks import BlockGrid
from targets.onnx.linear import BlockScheme, DynamicScheme, FloatScheme, Scheme
from targets.onnx.presets import INT4, INT4_64, INT8, INT8_64, INT8_128, PRESETS, QKV, table_scheme

ROLES = ("token_embd", "output", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def schemes(preset: str, role: str, layers: int) -> list[Scheme]:
    return [PRESETS[preset].scheme(role, layer, layers) for layer in range(layers)]


def test_files_are_those_that_transformers_js_looks_for() -> None:
    assert {name: preset.file for name, preset in PRESETS.items()} == {
        "fp32": "model.onnx", "fp16": "model_fp16.onnx", "int8": "model_int8.onnx", "int4": "model_q4.onnx",
        "int4-mixed": "model_q4.onnx", "dynamic-int8": "model_quantized.onnx", "static-int8": "model_quantized.onnx",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "scheme"), [("fp32", FloatScheme("float32")), ("fp16", FloatScheme("float16")), ("int8", INT8)]
)
def test_one_scheme_everywhere(preset: str, scheme: Scheme) -> None:
    assert {PRESETS[preset].scheme(role, layer, 3) for role in ROLES for layer in range(3)} == {scheme}


def test_int4_by_hand() -> None:
    assert PRESETS["int4"].scheme("token_embd", 0, 9) == PRESETS["int4"].scheme("output", 0, 9) == INT4
    assert schemes("int4", "ffn_down", 20) == [INT8_64] * 2 + [INT4_64] * 17 + [INT8_64]
    assert schemes("int4", "ffn_down", 3) == [INT8_64, INT4_64, INT8_64]
    for role in QKV:
        assert schemes("int4", role, 9) == [INT8_64] * 9
    for role in ("attn_output", "ffn_gate", "ffn_up"):
        assert schemes("int4", role, 9) == [INT4_64] * 9


def test_int4_mixed_by_hand() -> None:
    for role in ("token_embd", "output", *QKV):
        assert schemes("int4-mixed", role, 9) == [INT8_64] * 9
    assert schemes("int4-mixed", "ffn_down", 10) == [INT8_64] * 4 + [INT4] * 3 + [INT8_64] * 3
    assert schemes("int4-mixed", "attn_output", 9) == [INT4] * 9
    for role in ("ffn_gate", "ffn_up"):
        assert schemes("int4-mixed", role, 9) == [INT4_64] * 9


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("layers", [1, 2, 7, 30])
def test_queries_keys_and_values_are_one_product_in_every_layer(preset: str, layers: int) -> None:
    one, two, three = (schemes(preset, role, layers) for role in QKV)
    assert one == two == three


@pytest.mark.parametrize("preset", ["dynamic-int8", "static-int8"])
def test_channels_in_layers_and_blocks_in_tables(preset: str) -> None:
    assert PRESETS[preset].scheme("token_embd", 0, 2) == INT8_128
    assert isinstance(PRESETS[preset].scheme("ffn_up", 0, 2), DynamicScheme)


@pytest.mark.parametrize(
    ("size", "columns", "expected"),
    [(128, 256, 128), (128, 576, 64), (128, 32, 32), (32, 48, 16), (32, 40, None), (16, 16, 16), (64, 100, None)],
)
def test_a_tables_blocks_divide_its_rows(size: int, columns: int, expected: int | None) -> None:
    found = table_scheme(BlockScheme(BlockGrid(4, size)), columns)
    assert found == (None if expected is None else BlockScheme(BlockGrid(4, expected)))


def test_floats_need_no_blocks() -> None:
    assert table_scheme(FloatScheme("float16"), 7) == FloatScheme("float16")
