"""What is said of a GGUF file before it is written, against files that are written and sums by hand."""

from __future__ import annotations

import dataclasses

import pytest
from support.preset_models import importance_of

from exporter.checkpoint import resolve
from runtime.errors import ModelError
from runtime.measurement import RunOptions
from targets.base import EmitOptions, TypeChoice
from targets.device import load_device
from targets.gguf.keyvalue import KeyValue
from targets.gguf.outline import Dimensions, EncoderGraph, GgufOutline, outlines
from targets.gguf.plan import lay_out
from targets.gguf.presets import PRESETS
from targets.gguf.target import GgufTarget
from targets.gguf.types import TYPES
from targets.processor import Processor


def silent(_what, _done, _total):
    pass


@pytest.mark.parametrize("quant", PRESETS)
def test_the_bytes_are_those_that_are_written(tiny_model_dir, tmp_path, quant):
    directory, weighted = tiny_model_dir("llama", hidden=256), PRESETS[quant].weighted
    facts = resolve(str(directory))
    (outline,) = outlines(facts, [quant]).outlines
    importance = importance_of(directory, tmp_path / "imatrix.gguf") if weighted else None
    (tmp_path / "out").mkdir()
    options = EmitOptions(quant, types=TypeChoice(importance=importance))
    artifact = GgufTarget().emit(facts, options, tmp_path / "out", silent)
    assert outline.exact is not weighted
    # the record of an importance matrix has its file's name, which nobody knows before
    record = artifact.total_bytes - outline.file_bytes
    assert 0 < record < 512 if weighted else record == 0
    assert outline.bits_per_weight == artifact.bits_per_weight
    assert outline.quant == artifact.quant


@pytest.mark.parametrize(
    ("quant", "weighted", "choice"),
    [
        ("iq2_xs", True, {}),
        ("q4_k_m", True, {"rules": ((r"blk\.0\..*ffn_down", "q8_0"), ("attn_q", "iq3_s"))}),
        ("q4_k_m", False, {"pure": True}),
        ("q3_k_m", False, {"pure": True, "output": "q8_0", "embedding": "q5_0"}),
    ],
)
def test_the_bytes_with_types_that_are_named_are_those_that_are_written(
    tiny_model_dir, tmp_path, quant, weighted, choice
):
    directory = tiny_model_dir("llama", hidden=256)
    facts = resolve(str(directory))
    importance = importance_of(directory, tmp_path / "imatrix.gguf") if weighted else None
    types = TypeChoice(importance=importance, **choice)
    (outline,) = outlines(facts, [quant], None, types).outlines
    (tmp_path / "out").mkdir()
    artifact = GgufTarget().emit(facts, EmitOptions(quant, types=types), tmp_path / "out", silent)
    assert outline.exact
    assert outline.file_bytes == artifact.total_bytes
    (plain,) = outlines(facts, [quant]).outlines
    assert plain.file_bytes != outline.file_bytes


def test_a_rule_without_the_importance_that_it_needs_is_planned_as_if_there_were_one(tiny_model_dir):
    facts = resolve(str(tiny_model_dir("llama", hidden=256)))
    (outline,) = outlines(facts, ["q4_k_m"], None, TypeChoice(rules=(("attn_q", "iq2_xxs"),))).outlines
    assert not outline.exact
    kinds = {tensor.kind.name for tensor in outline.tensors if "attn_q" in tensor.name}
    assert kinds == {"IQ2_XXS"}


def test_what_is_wrong_with_a_rule_is_said_of_every_preset(tiny_llama):
    found = outlines(resolve(str(tiny_llama)), ["q8_0", "f16"], None, TypeChoice(rules=(("ffn_dwon", "q8_0"),)))
    assert found.outlines == ()
    assert all("--rule ffn_dwon=q8_0: is found in no tensor's name" in said for said in found.refused.values())


def test_a_preset_that_has_nothing_for_the_models_rows_says_why(tiny_llama):
    found = outlines(resolve(str(tiny_llama)), ["q1_0", "q8_0"])
    assert [outline.quant for outline in found.outlines] == ["q8_0"]
    assert "no type to fall back to" in found.refused["q1_0"]


def test_of_every_family(tiny_any, tmp_path):
    facts = resolve(str(tiny_any))
    (outline,) = outlines(facts, ["q8_0"]).outlines
    artifact = GgufTarget().emit(facts, EmitOptions("q8_0"), tmp_path, silent)
    assert (outline.file_bytes, outline.context) == (artifact.total_bytes, artifact.context_length)


def test_all_presets_at_once_are_as_each_alone(tiny_llama):
    facts = resolve(str(tiny_llama))
    for outline in outlines(facts).outlines:
        assert outlines(facts, [outline.quant]).outlines == (outline,)


def test_one_header_is_laid_out_for_all_presets(tiny_llama, monkeypatch):
    """It holds the vocabulary, and is most of the work of a plan."""
    names = []
    monkeypatch.setattr(
        "targets.gguf.outline.lay_out", lambda preset, *rest: names.append(preset.name) or lay_out(preset, *rest)
    )
    assert len(outlines(resolve(str(tiny_llama))).outlines) > 10
    assert len(names) == 1


def test_of_a_gguf_file(tiny_llama, tmp_path):
    made = GgufTarget().emit(resolve(str(tiny_llama)), EmitOptions("f16"), tmp_path, silent)
    facts = resolve(str(made.entry_path))
    (outline,) = outlines(facts, ["q8_0"]).outlines
    (tmp_path / "again").mkdir()
    assert outline.file_bytes == GgufTarget().emit(facts, EmitOptions("q8_0"), tmp_path / "again", silent).total_bytes


def test_a_model_that_cannot_be_written_says_why(tiny_model_dir):
    facts = resolve(str(tiny_model_dir("qwen2")))
    broken = dataclasses.replace(facts, config={**facts.config, "use_sliding_window": True})
    found = outlines(broken, ["q8_0", "f16"])
    assert found.outlines == ()
    assert set(found.refused) == {"q8_0", "f16"}
    assert "use_sliding_window" in found.refused["f16"]


SIZES = Dimensions(hidden=512, widest=1536, heads=(8,) * 6, kv_heads=(2,) * 6, key=64, value=64, context=8192,
                   vocab=1000, merges=0, window=0, sliding=(False,) * 6)  # fmt: skip


def an_outline(*tensors, dimensions=SIZES):
    """tensors: (name, shape, type)"""
    from targets.gguf.header import align, place

    placed = place([(name, shape, TYPES[kind]) for name, shape, kind in tensors])
    data = align(placed[-1].offset + placed[-1].n_bytes) if placed else 0
    return GgufOutline("q4_0", 1000 + data, 1000, 1, placed, dimensions)


@pytest.mark.parametrize(
    ("context", "kv_type", "cells", "element_bytes"),
    [(2048, "f16", 2048, 2), (2000, "f16", 2048, 2), (16, "f32", 256, 4), (256, "q8_0", 256, 34 / 32),
     (257, "q4_0", 512, 18 / 32)],
)  # fmt: skip
def test_the_cache_is_of_whole_cells(context, kv_type, cells, element_bytes):
    size = an_outline().kv_bytes(RunOptions(context=context, kv_type=kv_type))
    assert size == 6 * cells * 2 * (2 * 64) * element_bytes


def test_a_sliding_layer_keeps_its_window_and_a_batch():
    sliding = dataclasses.replace(SIZES, window=512, sliding=(True, True, True, True, True, False))
    found = an_outline(dimensions=sliding).kv_bytes(RunOptions(context=8192, batch=100, kv_type="f16"))
    position = 2 * (2 * 64) * 2
    assert found == (5 * 768 + 8192) * position  # 512 + 100 in whole cells of 256


def test_a_window_is_never_more_than_the_context():
    sliding = dataclasses.replace(SIZES, window=512, sliding=(True,) * 6)
    outline = an_outline(dimensions=sliding)
    assert outline.kv_bytes(RunOptions(context=256)) == an_outline().kv_bytes(RunOptions(context=256))


AVX2 = Processor.usual("x86_64")
LAYER = ("blk.0.ffn_up.weight", (64, 64), "Q4_0")


def test_copies_in_another_order_lie_beside_what_is_mapped():
    table, norm = ("token_embd.weight", (64, 64), "Q8_0"), ("output_norm.weight", (64,), "F32")
    outline = an_outline(table, LAYER, norm)
    mapped = outline.footprint(RunOptions(), AVX2).weights_bytes
    read = outline.footprint(RunOptions(mmap=False), AVX2).weights_bytes
    copy = 64 * 64 // 32 * 18
    assert read == 64 * 64 // 32 * 34 + copy + 64 * 4
    assert mapped == read + copy


def test_copies_at_the_end_of_the_file_are_unmapped():
    outline = an_outline(("token_embd.weight", (64, 64), "Q8_0"), LAYER)
    assert (
        outline.footprint(RunOptions(), AVX2).weights_bytes
        == outline.footprint(RunOptions(mmap=False), AVX2).weights_bytes
    )


def test_what_is_copied_goes_by_the_processor_and_by_the_rows():
    def copied(kind, rows, processor):
        norms = [(name, (64,), "F32") for name in ("blk.0.ffn_norm.weight", "output_norm.weight")]
        outline = an_outline(norms[0], ("blk.0.ffn_up.weight", (rows, 256), kind), norms[1])
        mapped = outline.footprint(RunOptions(), processor).weights_bytes
        read = outline.footprint(RunOptions(mmap=False), processor).weights_bytes
        return mapped - read > outline.tensors[1].n_bytes / 2  # the rest is padding

    arm = Processor.usual("aarch64")
    assert copied("Q4_K", 8, AVX2)
    assert not copied("Q4_K", 12, AVX2)
    assert not copied("Q6_K", 8, AVX2)
    assert copied("Q6_K", 8, arm)
    assert copied("Q8_0", 4, arm)
    assert not copied("Q8_0", 8, AVX2)
    assert not copied("Q4_K", 8, Processor.usual("riscv64"))
    assert not copied("Q4_0", 8, load_device("raspberry-pi-4").processor)  # Cortex-A72: no dotprod
    assert not copied("Q2_K", 8, AVX2)
    assert copied("Q2_K", 8, Processor("x86_64", frozenset({"avx2", "avx512"})))


@pytest.mark.parametrize(("more", "copies"), [((), 1), ((("output.weight", (64, 64), "F16"),), 0)])
def test_a_table_that_is_the_head_too_is_copied_and_stays(more, copies):
    table, norm = ("token_embd.weight", (64, 64), "Q4_0"), ("output_norm.weight", (64,), "F32")
    outline = an_outline(table, norm, *more)
    plain = sum(tensor.n_bytes for tensor in outline.tensors)
    size = copies * 64 * 64 // 32 * 18
    for mmap in (True, False):
        assert outline.footprint(RunOptions(mmap=mmap), AVX2).weights_bytes == plain + size


def test_llamacpp_says_the_same_of_a_table_that_is_the_head_too(tmp_path, monkeypatch):
    from runtime.artifact import open_artifact
    from runtime.sessions import open_session
    from targets.gguf import synthetic
    from targets.synthetic import Shape

    monkeypatch.setitem(synthetic.TYPES, "F16", TYPES["Q4_0"])  # what the table is written in
    path = tmp_path / "one.gguf"
    synthetic.write_gguf(path, Shape(256, 256, 1, 4), TYPES["Q4_0"])
    tensors = [("token_embd.weight", (512, 256), "Q4_0"), ("output_norm.weight", (256,), "F32")]
    tensors += [(f"blk.0.{name}_norm.weight", (256,), "F32") for name in ("attn", "ffn")]
    tensors += [(f"blk.0.{number}.weight", (256, 256), "Q4_0") for number in range(7)]
    for mmap in (True, False):
        session = open_session(open_artifact(path), RunOptions(context=64, threads=1, mmap=mmap))
        found = session.memory_bytes()["weights"]
        session.close()
        said = an_outline(*tensors).footprint(RunOptions(mmap=mmap), Processor.here()).weights_bytes
        assert found == pytest.approx(said, abs=2**14)  # llama.cpp tells hundredths of a MiB


def test_a_table_that_is_the_head_is_multiplied_by():
    tied = an_outline(("token_embd.weight", (100, 64), "Q8_0"), LAYER)
    untied = an_outline(("token_embd.weight", (100, 64), "Q8_0"), LAYER, ("output.weight", (100, 64), "F16"))
    assert (tied.work().weights, tied.work().head) == ({"Q8_0": 6400, "Q4_0": 4096}, {"Q8_0": 6400})
    assert (untied.work().weights, untied.work().head) == ({"F16": 6400, "Q4_0": 4096}, {"F16": 6400})
    assert untied.work().weight_bytes == 6400 * 2 + 4096 // 32 * 18
    assert (tied.work().kv_elements, tied.work().attention) == (6 * 2 * 128, 6 * 8 * 128)


def test_a_quantized_cache_needs_heads_of_whole_blocks():
    assert "q8_0" in an_outline().kv_types()
    assert "q8_0" not in an_outline(dimensions=dataclasses.replace(SIZES, key=48)).kv_types()


@pytest.mark.parametrize("more", [{"context": 4096}, {"batch": 1024, "context": 4096}])
def test_more_of_anything_takes_more(more):
    outline = an_outline(LAYER)
    less = outline.footprint(RunOptions(context=2048, batch=512), AVX2)
    assert outline.footprint(RunOptions(**{"context": 2048, "batch": 512, **more}), AVX2).peak_bytes > less.peak_bytes


ENCODER = dataclasses.replace(SIZES, fitted=False, encoder=True, graph=EncoderGraph(4, 0.5, masks=2), context=512)


def test_an_encoder_holds_a_text_at_once_and_keeps_nothing():
    outline = an_outline(LAYER, ("blk.0.ffn_down.weight", (64, 64), "F16"), dimensions=ENCODER)
    for context, tokens in ((100, 100), (512, 512), (4096, 512)):  # the model takes no longer text
        found = outline.footprint(RunOptions(context=context), AVX2)
        # Two bytes a value for the matrix of halves; a score of two bytes a pair of tokens and mask.
        held = tokens * (4 * (4 * 512 + 0.5 * 1536 + 1000) + 2 * 1536) + 2 * 2 * tokens**2
        assert (found.compute_bytes, found.kv_cache_bytes) == (held, 0)
    floats = an_outline(("blk.0.ffn_up.weight", (64, 64), "F32"), dimensions=ENCODER)
    less = floats.footprint(RunOptions(context=100), AVX2).compute_bytes
    assert outline.footprint(RunOptions(context=100), AVX2).compute_bytes == less + 100 * 2 * 1536


def test_an_encoders_table_is_not_multiplied_by():
    """So it is not copied either."""
    outline = an_outline(("token_embd.weight", (64, 64), "Q4_0"), dimensions=ENCODER)
    assert outline.footprint(RunOptions(), AVX2).weights_bytes == 64 * 64 // 32 * 18


def test_nothing_is_said_of_an_encoder_whose_graph_was_not_measured():
    outline = an_outline(LAYER, dimensions=dataclasses.replace(ENCODER, graph=None))
    assert outline.footprint(RunOptions(), AVX2) is None


def test_attention_without_the_flash_kernel_holds_its_scores():
    outline = an_outline(dimensions=dataclasses.replace(SIZES, widest=512))
    scores = 4 * 512 * 2048 * 8
    found = {kv: outline.footprint(RunOptions(kv_type=kv), AVX2).compute_bytes for kv in ("f16", "f32")}
    assert found["f32"] - found["f16"] > 0.8 * scores


def test_dimensions_of_uneven_layers():
    found = Dimensions.of(
        {
            "general.architecture": "deci", "deci.block_count": 2, "deci.embedding_length": 64,
            "deci.attention.head_count": [4, 2], "deci.attention.head_count_kv": [2, 1],
            "deci.feed_forward_length": [100, 300], "deci.attention.key_length": 16,
            "deci.attention.value_length": 16, "tokenizer.ggml.tokens": ["a", "b"],
        }
    )  # fmt: skip
    assert (found.heads, found.kv_heads, found.widest, found.vocab) == ((4, 2), (2, 1), 300, 2)
    assert found.sliding == (False, False)


def test_gemmas_pattern_stands_in_for_one_that_is_not_written():
    entries = {"general.architecture": "gemma3", "gemma3.block_count": 7, "gemma3.embedding_length": 64,
               "gemma3.attention.head_count": 4, "gemma3.attention.sliding_window": 512}  # fmt: skip
    assert Dimensions.of(entries).sliding == (True, True, True, True, True, False, True)
    entries["gemma3.attention.sliding_window_pattern"] = [False] * 7
    assert Dimensions.of(entries).sliding == (False,) * 7
    entries["gemma3.attention.sliding_window_pattern"] = 2
    assert Dimensions.of(entries).sliding == (True, False, True, False, True, False, True)


@pytest.mark.parametrize(
    ("key", "value"),
    [("attention.head_count", 0), ("attention.head_count", [1, 2, 3]), ("embedding_length", None),
     ("attention.sliding_window_pattern", [True]), ("feed_forward_length", "wide"), ("attention.head_count_kv", -1)],
)  # fmt: skip
def test_entries_that_make_no_sense_are_damage_of_the_file(tiny_llama, monkeypatch, key, value):
    from targets.gguf import outline as module

    real = module.lay_out

    def edited(preset, content):
        plan = real(preset, content)
        metadata = [entry for entry in plan.metadata if entry.key != f"llama.{key}"]
        return dataclasses.replace(plan, metadata=[*metadata, KeyValue(f"llama.{key}", value, "ARRAY", "INT32")])

    monkeypatch.setattr(module, "lay_out", edited)
    with pytest.raises(ModelError, match="an entry is not what it should be"):
        outlines(resolve(str(tiny_llama)), ["q8_0"])
