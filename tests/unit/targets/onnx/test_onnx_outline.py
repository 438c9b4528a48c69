"""What is said of an ONNX directory before it is written, held against the directories that are written."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from support.tiny_encoders import make_tiny_bert, make_tiny_encoder

from exporter.checkpoint import resolve
from runtime.measurement import RunOptions
from targets.base import EmitOptions
from targets.factors import Factors
from targets.onnx.outline import outlines
from targets.onnx.presets import PRESETS
from targets.onnx.target import OnnxTarget
from targets.processor import Processor


def written(facts, quant, out):
    return OnnxTarget().emit(facts, EmitOptions(quant), out, lambda _what, _done, _total: None)


@pytest.mark.parametrize("quant", PRESETS)
def test_the_bytes_are_those_that_are_written(tiny_llama, tmp_path, quant):
    facts = resolve(str(tiny_llama))
    (outline,) = outlines(facts, [quant]).outlines
    artifact = written(facts, quant, tmp_path)
    if outline.exact:
        assert outline.file_bytes == artifact.total_bytes
    else:  # which inputs are smoothed, and which stay floats, is known only when they were calibrated
        assert outline.file_bytes == pytest.approx(artifact.total_bytes, rel=0.02)
    assert outline.exact == (quant not in ("dynamic-int8", "static-int8"))
    assert outline.bits_per_weight == pytest.approx(artifact.bits_per_weight, rel=0.02)
    assert not outline.encoder


@pytest.mark.parametrize("family", ["llama3", "qwen3", "gemma3"])
def test_of_other_families(tiny_model_dir, tmp_path, family):
    facts = resolve(str(tiny_model_dir(family)))
    (outline,) = outlines(facts, ["int8"]).outlines
    artifact = written(facts, "int8", tmp_path)
    assert (outline.file_bytes, outline.context) == (artifact.total_bytes, artifact.context_length)


def test_of_an_encoder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "out").mkdir()
    facts = resolve(str(make_tiny_bert(tmp_path / "model")))
    (outline,) = outlines(facts, ["fp32"]).outlines
    artifact = written(facts, "fp32", tmp_path / "out")
    assert outline.encoder
    assert (outline.file_bytes, outline.context) == (artifact.total_bytes, artifact.context_length)


def memory(directory, quant, tokens=64):
    (outline,) = outlines(resolve(str(directory)), [quant]).outlines
    return outline.footprint(RunOptions(context=tokens), Processor.usual("x86_64"))


def test_an_encoder_holds_the_scores_of_all_heads(tmp_path):
    model = make_tiny_encoder(tmp_path, max_position_embeddings=1024)  # 4 heads of 32 values in all, 48 in between
    short, long = memory(model, "fp32", 512), memory(model, "fp32", 1024)
    assert short.compute_bytes == 4 * 512 * (9 * 32 + 4 * 512)
    assert long.compute_bytes == 4 * 1024 * (9 * 32 + 4 * 1024)
    assert memory(model, "fp32", 5000) == long  # it reads no longer text
    assert (short.kv_cache_bytes, short.other_bytes) == (0, long.other_bytes)


def test_where_all_shapes_are_known_a_layer_keeps_what_the_next_one_needs(tmp_path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "roberta").mkdir()
    bert, roberta = make_tiny_encoder(tmp_path / "bert"), make_tiny_encoder(tmp_path / "roberta", "Roberta")
    more = memory(roberta, "fp32").compute_bytes - memory(bert, "fp32").compute_bytes
    assert more == 4 * 64 * (2 * 48 + 3 * 32)


def test_halves_are_multiplied_as_floats(tmp_path):
    model = make_tiny_encoder(tmp_path, hidden_size=64, intermediate_size=128)
    full, half, codes = (memory(model, quant).weights_bytes for quant in ("fp32", "fp16", "int8"))
    facts = resolve(str(model))
    tables = {name: fact for name, fact in facts.tensors.items() if name.endswith("embeddings.weight")}
    in_bytes = sum(fact.n_bytes for fact in tables.values())
    matrices = 2 * (4 * 64 * 64 + 2 * 64 * 128)
    assert full - half == pytest.approx(in_bytes / 2, rel=0.2)  # of the tables alone, which are as far looked up in
    (outline,) = outlines(facts, ["int8"]).outlines
    blocks = {name: math.prod(blob.shape) for name, blob in outline._blobs.items() if name.endswith(".scales")}
    of_tables = sum(count for name, count in blocks.items() if "embeddings" in name)
    of_matrices = sum(blocks.values()) - of_tables
    assert min(of_tables, of_matrices) > 0
    # A byte and 12 for every block; a table that nothing is multiplied by has its scales as floats.
    saved = 3 * matrices - 12 * of_matrices
    assert full - codes == pytest.approx(saved + 0.75 * in_bytes - 4 * of_tables, rel=0.05)


def test_a_cache_of_halves_is_half_as_large(tiny_llama):
    facts = resolve(str(tiny_llama))
    full, half = outlines(facts, ["fp32", "fp16"]).outlines
    options = RunOptions(context=100)
    config = facts.config
    width = config["hidden_size"] // config["num_attention_heads"]
    elements = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * width * 100
    assert (full.kv_bytes(options), half.kv_bytes(options)) == (4 * elements, 2 * elements)
    assert (full.kv_types(), half.kv_types()) == (("f32",), ("f16",))


def test_every_matrix_counts_once(tiny_llama, tiny_model_dir):
    for source in (tiny_llama, tiny_model_dir("llama3")):  # tied, and not
        facts = resolve(str(source))
        (outline,) = outlines(facts, ["fp32"]).outlines
        matrices = {name: tensor for name, tensor in facts.tensors.items() if len(tensor.shape) == 2}
        if "lm_head.weight" in matrices:
            del matrices["model.embed_tokens.weight"]
        assert sum(outline.work().weights.values()) == sum(tensor.n_elements for tensor in matrices.values())


def test_the_parts_of_the_memory(tiny_llama):
    facts = resolve(str(tiny_llama))
    full, codes = outlines(facts, ["fp32", "int4"]).outlines
    options = RunOptions(context=256)
    found = full.footprint(options, Processor.usual("x86_64"))
    table, rotary = facts.tensors["model.embed_tokens.weight"], rotary_bytes(full)
    assert found.kv_cache_bytes == full.kv_bytes(options)
    # Tied: the table is looked up in, and packed. Of the rotary tables rows are read where they lie.
    expected = full.plan.file_bytes - rotary + 4 * table.n_elements + rotary * 256 // full.context
    assert found.weights_bytes == expected
    small = codes.footprint(options, Processor.usual("x86_64"))
    scales = sum(blob.n_bytes for blob in blobs(codes) if blob.name.endswith(".scales"))
    packed = codes.plan.file_bytes - rotary_bytes(codes) - scales + 12 * scales // 2
    mapped = rotary_bytes(codes) * 256 // codes.context
    assert packed + mapped < small.weights_bytes < packed + mapped + table.n_elements
    assert small.peak_bytes < found.peak_bytes


def test_a_longer_text_looks_up_more_of_the_table(tiny_llama):
    (outline,) = outlines(resolve(str(tiny_llama)), ["int8"]).outlines
    short, long = (outline.footprint(RunOptions(context=n), Processor.usual("x86_64")) for n in (16, 2048))
    rows = rotary_bytes(outline) * (2048 - 16) // outline.context
    assert rows <= long.weights_bytes - short.weights_bytes < rows + 600 * 64


def test_a_table_that_was_read_to_be_packed_is_mapped_in_larger_pieces(tiny_llama, tiny_model_dir):
    # 64 and 256 KiB for each of 2 rows, of a table of 40 MB; of one that is the head, only what texts look up
    for source, piece, share in ((tiny_llama, 1 << 18, 0.8), (tiny_model_dir("llama3"), 1 << 16, 1.0)):
        (outline,) = outlines(resolve(str(source)), ["int8"]).outlines
        (codes,) = (name for name in outline._gathered if name.endswith(".codes"))
        wide = dataclasses.replace(outline._gathered[codes], shape=(40_000, 1000), dtype=np.dtype(np.uint8))
        outline.__dict__["_gathered"] = {codes: wide}
        found = outline._table_bytes(2)
        whole = share * 40_000_000
        assert found == pytest.approx(whole * (1 - math.exp(-2 * piece / whole)), abs=1)


def test_factors_are_multiplied_by_one_after_the_other(tiny_llama, monkeypatch):
    from targets.onnx import plan as module

    facts = resolve(str(tiny_llama))
    name = "model.layers.0.mlp.up_proj.weight"
    whole = facts.tensors[name]
    left = dataclasses.replace(whole, name="left", shape=(whole.shape[0], 8), n_bytes=whole.shape[0] * 16)
    right = dataclasses.replace(whole, name="right", shape=(8, whole.shape[1]), n_bytes=whole.shape[1] * 16)
    (before,) = outlines(facts, ["fp32"]).outlines
    monkeypatch.setattr(module, "stored_factors", lambda _path: {name: Factors(left, right)})
    monkeypatch.setattr(module, "factor_problems", lambda _facts, _factors: [])
    (after,) = outlines(facts, ["fp32"]).outlines
    saved = whole.n_elements - left.n_elements - right.n_elements
    assert sum(before.work().weights.values()) - sum(after.work().weights.values()) == saved


def blobs(outline):
    return [blob for job in outline.plan.graph.jobs for blob in job.blobs]


def rotary_bytes(outline):
    return sum(blob.n_bytes for blob in blobs(outline) if blob.name.startswith("rotary."))


def test_a_gguf_file_is_refused_preset_by_preset(tiny_llama, tmp_path):
    from targets.gguf.target import GgufTarget

    made = GgufTarget().emit(resolve(str(tiny_llama)), EmitOptions("f16"), tmp_path, lambda _what, _done, _total: None)
    found = outlines(resolve(str(made.entry_path)), ["int4"])
    assert found.outlines == ()
    assert ".gguf" in found.refused["int4"]
