"""A GGUF file as the source, beside llama-quantize: the same types for every tensor, the same bytes, and refusals."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.digests import tensor_digests
from support.golden_model import write_golden_model
from support.grids import decoded
from support.llama_quantize import our_types, quantized, their_types
from support.parity import OPTIONS, emit, no_progress
from support.preset_models import EXPERTS, KINDS, Kind, bell, write_model

from benchmarks.tools import source as source_of_llama_cpp
from exporter.checkpoint import resolve
from runtime.artifact import open_artifact
from runtime.errors import EngineError, UnsupportedError
from runtime.sessions import open_session
from targets import get_target
from targets.base import EmitOptions, TypeChoice
from targets.gguf import header
from targets.gguf.choice import _NEVER, _NEVER_OF
from targets.gguf.content import _SIZED_70B
from targets.gguf.keyvalue import KeyValue, array, float32, string, uint32
from targets.gguf.outline import outlines
from targets.gguf.reading import READABLE_TYPES, read_gguf_metadata
from targets.weights import WeightReader

if TYPE_CHECKING:
    from pathlib import Path

    Shape = tuple[int, ...]

KIND_OF = {kind.name: kind for kind in READABLE_TYPES.values()}
BLOCKS = 256
"""Columns that every type divides."""
PRESETS = ("q4_k_m", "iq4_xs", "q2_k", "q3_k_m", "q8_0", "q4_0", "mxfp4_moe", "f16")


@dataclass(frozen=True)
class File:
    """A GGUF file by hand. tensors: shape in torch order and type, by name; keys: below the architecture's name."""

    arch: str = "llama"
    tensors: dict[str, tuple[Shape, str]] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    general: dict[str, str] = field(default_factory=dict)
    file_type: int | None = 0

    def write(self, path: Path) -> Path:
        """Random weights, whole numbers in integer types."""
        keys = {"context_length": 512, "block_count": 2, "embedding_length": 256, "feed_forward_length": 256,
                "attention.head_count": 4, "attention.head_count_kv": 2, "rope.dimension_count": 64, "vocab_size": 4,
                "attention.layer_norm_rms_epsilon": 1e-5, "attention.layer_norm_epsilon": 1e-5} | self.keys  # fmt: skip
        metadata = [string("general.architecture", self.arch)]
        metadata += [] if self.file_type is None else [uint32("general.file_type", self.file_type)]
        metadata += [string(key, value) for key, value in self.general.items()]
        metadata += [_entry(f"{self.arch}.{key}", value) for key, value in keys.items() if value is not None]
        placed = header.place([(name, shape, KIND_OF[kind]) for name, (shape, kind) in self.tensors.items()])
        generator = np.random.Generator(np.random.PCG64(4))
        with path.open("wb") as file:
            file.write(header.encode(metadata, placed))
            start = file.tell()
            for tensor in placed:
                file.seek(start + tensor.offset)
                file.write(_bytes(generator, tensor))
            file.truncate(start + header.align(placed[-1].offset + placed[-1].n_bytes))
        return path


def _entry(key: str, value: Any) -> KeyValue:
    if isinstance(value, bool):
        return KeyValue(key, value, "BOOL")
    if isinstance(value, list):
        return array(key, value, "INT32")
    return uint32(key, value) if isinstance(value, int) else float32(key, value)


def _bytes(generator: np.random.Generator, tensor: header.Placed) -> bytes:
    if tensor.kind.name in ("F32", "F16"):
        return bell(generator, tensor.shape).astype(f"<f{tensor.kind.block_bytes}").tobytes()
    if tensor.kind.name == "BF16":
        return (bell(generator, tensor.shape).view("<u4") >> 16).astype("<u2").tobytes()
    return generator.integers(0, 4, tensor.n_bytes, np.uint8).tobytes()


WIDE, VECTOR = (8, BLOCKS), (BLOCKS,)
LAYERS = {
    f"blk.{layer}.{name}.weight": (shape, "F32")
    for layer in range(2)
    for name, shape in {"attn_norm": VECTOR, "attn_q": WIDE, "attn_k": WIDE, "attn_v": WIDE, "attn_output": WIDE,
                        "ffn_gate": WIDE, "ffn_up": WIDE, "ffn_down": WIDE}.items()
}  # fmt: skip
TABLE = {"token_embd.weight": (WIDE, "F32"), "output_norm.weight": (VECTOR, "F32")}
ODD = File(
    tensors={
        **TABLE,
        "output.weight": (WIDE, "BF16"),
        "rope_freqs.weight": ((32,), "F32"),
        "position_embd.weight": (WIDE, "F16"),
        "token_types.weight": ((2, BLOCKS), "F32"),
        "per_layer_token_embd.weight": (WIDE, "F32"),
        "per_layer_model_proj.weight": (WIDE, "F16"),
        "v.patch_embd.weight": ((2, 3, 4, 8), "F16"),
        "mm.0.weight": (WIDE, "F32"),
        "blk.0.attn_norm.weight": (VECTOR, "F16"),
        "blk.0.attn_qkv.weight": (WIDE, "F16"),
        "blk.0.attn_qkv.bias": (VECTOR, "F16"),
        "blk.0.attn_kv_b.weight": (WIDE, "F32"),
        "blk.0.attn_k_b.weight": ((2, 4, BLOCKS), "F32"),
        "blk.0.attn_sinks.weight": ((4,), "F32"),
        "blk.0.attn_rel_b.weight": (WIDE, "F32"),
        "blk.0.ssm_conv1d.weight": (WIDE, "F32"),
        "blk.0.ssm_in.weight": (WIDE, "BF16"),
        "blk.0.ssm_a": (WIDE, "F32"),
        "blk.0.shortconv.conv.weight": ((8, 3), "F32"),
        "blk.0.shortconv.in_proj.weight": (WIDE, "F32"),
        "blk.1.time_mix_w1.weight": (WIDE, "F32"),
        "blk.1.time_mix_key.weight": (WIDE, "F32"),
        "blk.1.time_mix_lerp_fused.weight": ((5, 1, 1, BLOCKS), "F32"),
        "blk.1.ffn_gate_inp.weight": (WIDE, "F16"),
        "blk.1.ffn_gate_inp_shexp.weight": ((1, BLOCKS), "F16"),
        "blk.1.ffn_gate_tid2eid.weight": ((8, 2), "I32"),
        "blk.1.ffn_down_exps.weight": ((3, 8, BLOCKS), "F16"),
        "blk.1.ffn_down_exps.bias": ((3, 8), "F32"),
        "blk.1.ffn_down_shexp.weight": ((8, 100), "F32"),
        "blk.1.indexer.k_proj.weight": (WIDE, "F32"),
        "blk.1.laurel_l.weight": (WIDE, "F32"),
    },
)
"""Of all the kinds of tensors that llama-quantize has rules for: of no one model, but it looks at names only."""


@pytest.mark.parametrize("preset", PRESETS)
def test_tensors_that_checkpoints_do_not_have_are_left_alone_or_quantized_as_by_llama_quantize(
    preset: str, tmp_path: Path
) -> None:
    source = ODD.write(tmp_path / "odd.gguf")
    theirs = tensor_digests(quantized(source, preset, tmp_path / "theirs.gguf"))
    (tmp_path / "ours").mkdir()
    assert tensor_digests(emit(source, tmp_path / "ours", preset=preset).entry_path) == theirs


@pytest.mark.parametrize("stored", ["bf16", "q8_0", "q6_k", "q4_k_m", "iq4_xs", "q4_0", "mxfp4_moe"])
@pytest.mark.parametrize("name", ["experts", "fused", "llama"])
def test_a_source_of_any_type_becomes_the_bytes_of_llama_quantize(name: str, stored: str, tmp_path: Path) -> None:
    kinds = {"llama": Kind(layers=2, hidden=256, ffn=512), "experts": EXPERTS,
             "fused": Kind(arch="phi2", layers=2, hidden=256, ffn=256, kv_heads=8, fused=True)}  # fmt: skip
    write_model(tmp_path / "full.gguf", kinds[name])
    source = quantized(tmp_path / "full.gguf", stored, tmp_path / "source.gguf")
    for preset in ("q4_k_m", "q8_0", "q2_k"):
        theirs = tensor_digests(quantized(source, preset, tmp_path / "theirs.gguf"))
        (out := tmp_path / preset).mkdir()
        assert tensor_digests(emit(source, out, preset=preset).entry_path) == theirs


KDA = {"attention.key_length_mla": 64, "attention.value_length_mla": 64, "attention.kv_lora_rank": 8,
       "ssm.conv_kernel": 4, "kda.head_dim": 64, "kda.gate_lower_bound": -1.0}  # fmt: skip
SPECIAL = {
    "bailingmoe3": File(
        "bailingmoe3", {**TABLE, **LAYERS, "blk.1.attn_k_b.weight": ((2, 4, BLOCKS), "F32"),
                        "blk.1.ffn_up_exps.weight": ((3, 4, BLOCKS), "F32")},
        {"expert_count": 3, "expert_used_count": 2, "expert_feed_forward_length": 8, "expert_shared_count": 1,
         "expert_gating_func": 1, "leading_dense_block_count": 1, **KDA},
    ),
    "glm5-next": File(
        "glm5-next",
        {**TABLE, **LAYERS}
        | {f"blk.1.{name}.weight": (WIDE, "F32")
           for name in ("hc_a", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate",
                        "indexer_compressor_ape", "ssm_f_a", "ssm_f_b", "ssm_g_a", "ssm_g_b", "ssm_beta",
                        "attn_kv_a_mqa", "attn_k_b", "attn_v_b", "attn_q_a", "attn_q_b", "nextn.eh_proj")},
        {"attention.q_lora_rank": 8, "expert_feed_forward_length": 8, "expert_shared_count": 1,
         "attention.indexer.head_count": 1, "attention.indexer.key_length": 8, "attention.indexer.top_k": 2,
         "attention.indexer.kpool": 2, "hyper_connection.count": 4, "hyper_connection.sinkhorn_iterations": 1,
         "hyper_connection.epsilon": 1e-5, **KDA},
    ),
    "graniteswitch": File(
        "graniteswitch", {**TABLE, **LAYERS},
        {"logit_scale": 1.0, "adapters.count": 1, "adapters.lora_rank": 1, "adapters.token_ids_activate": [1],
         "adapters.token_ids_substitute": [1]},
    ),
    "nanbeige": File("nanbeige", {**TABLE, **LAYERS}, {"num_loops": 8}),
}  # fmt: skip
"""Architectures that llama-quantize has rules of their own for."""


@pytest.mark.parametrize("arch", SPECIAL)
def test_architectures_with_rules_of_their_own_get_the_types_of_llama_quantize(arch: str, tmp_path: Path) -> None:
    source = SPECIAL[arch].write(tmp_path / "model.gguf")
    as_any_other = set()
    for preset in PRESETS:
        ours = our_types(source, preset)
        assert ours == their_types(source, preset)
        plain = File("llama", SPECIAL[arch].tensors, SPECIAL[arch].keys).write(tmp_path / "plain.gguf")
        as_any_other.add(ours == our_types(plain, preset))
    assert False in as_any_other


@pytest.mark.parametrize("name", ["eight-experts", "falcon", "hybrid", "odd-layers"])
def test_a_quantized_source_gets_the_types_of_llama_quantize(name: str, tmp_path: Path) -> None:
    write_model(tmp_path / "full.gguf", KINDS[name])
    source = quantized(tmp_path / "full.gguf", "q8_0", tmp_path / "source.gguf")
    for preset in PRESETS:
        assert our_types(source, preset) == their_types(source, preset)


def test_a_copy_has_every_byte_and_joins_what_was_cut(tmp_path: Path) -> None:
    for name in ("parts", "whole", "none"):
        (tmp_path / name).mkdir()
    whole = quantized(ODD.write(tmp_path / "odd.gguf"), "q4_k_m", tmp_path / "q4.gguf")
    options = EmitOptions("copy", split_max_bytes=20_000)
    parts = get_target("gguf").emit(resolve(str(whole)), options, tmp_path / "parts", no_progress)
    assert (len(parts.files) > 2, parts.quant) == (True, "q4_k_m")
    joined = emit(parts.entry_path, tmp_path / "whole", preset="copy").entry_path
    assert joined.name.endswith("-Q4_K_M.gguf")
    assert tensor_digests(joined) == tensor_digests(whole)
    before, after = ({e.key: (e.type, str(e.value)) for e in read_gguf_metadata(path)} for path in (whole, joined))
    assert after == before
    (outline,) = outlines(resolve(str(whole)), ["copy"]).outlines
    assert outline.file_bytes == joined.stat().st_size
    with pytest.raises(UnsupportedError, match="--quant copy: changes no type; leave out --rule"):
        emit(whole, tmp_path / "none", preset="copy", types=TypeChoice(pure=True))


def test_a_copy_of_a_file_that_does_not_say_its_type(tmp_path: Path) -> None:
    source = File("llama", {**TABLE, **LAYERS}, file_type=None).write(tmp_path / "model.gguf")
    found = {one.quant: one.file_bytes for one in outlines(resolve(str(source)), ["copy", "f32"]).outlines}
    for preset in ("copy", "f32"):
        (tmp_path / preset).mkdir()
        assert emit(source, tmp_path / preset, preset=preset).total_bytes == found[preset]
    assert emit(source, tmp_path / "copy", preset="copy").quant == "copy"


def test_a_checkpoint_is_not_copied(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"--quant copy: keeps the types of a \.gguf file, and MODEL is a dir"):
        emit(write_golden_model(tmp_path / "golden"), tmp_path, preset="copy")


def test_an_architecture_that_nobody_knows_is_written_by_names_and_says_so(tmp_path: Path) -> None:
    file = File("neverheard", {**TABLE, **LAYERS})
    source = file.write(tmp_path / "new.gguf")
    known = File("llama", file.tensors).write(tmp_path / "llama.gguf")
    (tmp_path / "out").mkdir()
    artifact = emit(source, tmp_path / "out", preset="q4_k_m")
    assert {name: kind for name, (kind, _) in tensor_digests(artifact.entry_path).items()} == our_types(known, "q4_k_m")
    (note,) = artifact.contract["notes"]
    assert note.startswith("the architecture 'neverheard' is not known here: types were chosen by tensors' names")
    with pytest.raises(EngineError, match="unknown model architecture: 'neverheard'"):
        open_session(artifact, OPTIONS)


@pytest.mark.parametrize(
    "keys",
    [{"attention.head_count": 0}, {"embedding_length": None, "context_length": None},
     {"expert_used_count": [2, 1], "expert_count": 4}, {"attention.head_count": [4, 0]},
     {"attention.sliding_window": 64, "attention.sliding_window_pattern": [1]}],
)  # fmt: skip
def test_what_is_planned_of_a_stranger_is_its_bytes(keys: dict[str, Any], tmp_path: Path) -> None:
    source = File("neverheard", {**TABLE, **LAYERS}, keys).write(tmp_path / "new.gguf")
    (tmp_path / "out").mkdir()
    (outline,) = outlines(resolve(str(source)), ["q4_0"]).outlines
    assert outline.file_bytes == emit(source, tmp_path / "out", preset="q4_0").total_bytes
    assert not outline.dimensions.fitted
    assert sum(outline.work().weights.values()) == 8 * BLOCKS * (7 * 2 + 1)


@pytest.mark.parametrize(
    ("general", "keys", "said"),
    [({"general.type": "adapter"}, {}, "is a LoRA adapter"), ({"general.type": "imatrix"}, {}, "importance matrix"),
     ({"general.type": "mmproj"}, {}, "turns images or sound into tokens"),
     ({}, {"block_count": None}, "lacks general.architecture or block_count"),
     ({}, {"block_count": 99}, "says it has 99 layers, with 18 tensors")],
)  # fmt: skip
def test_a_file_of_no_model_is_refused(
    general: dict[str, str], keys: dict[str, Any], said: str, tmp_path: Path
) -> None:
    source = File("llama", {**TABLE, **LAYERS}, keys, general).write(tmp_path / "file.gguf")
    with pytest.raises(UnsupportedError, match=said):
        emit(source, tmp_path, preset="q8_0")


@pytest.mark.parametrize("kind", ["Q1_0", "Q2_0"])
def test_a_type_of_few_bits_is_copied_and_a_source_of_another(kind: str, tmp_path: Path) -> None:
    tensors = {**TABLE, **LAYERS, "blk.0.attn_k.weight": (WIDE, kind), "blk.1.attn_norm.weight": (VECTOR, kind)}
    source = File("llama", tensors).write(tmp_path / "model.gguf")
    (tmp_path / "f32").mkdir()
    (tmp_path / "out").mkdir()
    name = "blk.0.attn_k.weight"
    whole = resolve(str(emit(source, tmp_path / "f32", preset="f32").entry_path)).tensors[name]
    few = resolve(str(source)).tensors[name]
    raw = np.empty((few.shape[0], few.n_bytes // few.shape[0]), np.uint8)
    with WeightReader() as reader:
        reader.read_bytes(few, 0, raw)
        np.testing.assert_array_equal(reader.read_rows(whole, 0, whole.shape[0]), decoded(raw, kind))
    before = tensor_digests(source)
    after = tensor_digests(emit(source, tmp_path / "out", preset=kind.lower()).entry_path)
    for name in ("blk.0.attn_k.weight", "blk.1.attn_norm.weight"):
        assert after[name] == before[name]


SQUARE, RELATIVE = (BLOCKS, BLOCKS), (32, 4)
T5 = File(
    "t5",
    {"token_embd.weight": (WIDE, "F32"), "enc.output_norm.weight": (VECTOR, "F32"),
     "dec.output_norm.weight": (VECTOR, "F32")}
    | {f"{side}.blk.0.{name}.weight": (shape, "F32") for side in ("enc", "dec")
       for name, shape in {"attn_norm": VECTOR, "attn_q": SQUARE, "attn_k": SQUARE, "attn_v": SQUARE, "attn_o": SQUARE,
                           "attn_rel_b": RELATIVE, "ffn_norm": VECTOR, "ffn_up": SQUARE, "ffn_down": SQUARE}.items()}
    | {f"dec.blk.0.cross_{name}.weight": (shape, "F32") for name, shape in
       {"attn_norm": VECTOR, "attn_q": SQUARE, "attn_k": SQUARE, "attn_v": SQUARE, "attn_o": SQUARE}.items()},
    {"block_count": 1, "decoder_block_count": 1, "attention.head_count_kv": 4,
     "attention.relative_buckets_count": 32, "vocab_size": 8},
    {"tokenizer.ggml.model": "none"},
)  # fmt: skip


def test_a_model_of_two_parts_gets_the_types_of_llama_quantize(tmp_path: Path) -> None:
    source = T5.write(tmp_path / "t5.gguf")
    for preset in PRESETS:
        assert our_types(source, preset) == their_types(source, preset)
    session = open_session(open_artifact(source), OPTIONS)
    try:
        with pytest.raises(EngineError, match="names no token that the decoder begins with"):
            session.prefill([1, 2])
    finally:
        session.close()


RUNS = File(
    "llama",
    {"token_embd.weight": (WIDE, "F32"), "output_norm.weight": (VECTOR, "F32")}
    | {f"blk.0.{name}.weight": (shape, "F32") for name, shape in
       {"attn_norm": VECTOR, "attn_q": SQUARE, "attn_k": (128, BLOCKS), "attn_v": (128, BLOCKS), "attn_output": SQUARE,
        "ffn_norm": VECTOR, "ffn_gate": SQUARE, "ffn_up": SQUARE, "ffn_down": SQUARE}.items()},
    {"block_count": 1, "vocab_size": 8},
    {"tokenizer.ggml.model": "none"},
)  # fmt: skip


def test_a_model_without_a_next_token_is_not_run(tmp_path: Path) -> None:
    """llama.cpp gives encoders logits of zeros, and zeros never differ from zeros."""
    session = open_session(open_artifact(RUNS.write(tmp_path / "llama.gguf")), OPTIONS)
    assert session.all_logits([1, 2, 3]).any()
    with pytest.raises(EngineError, match="the file holds no vocabulary"):
        session.tokenize("a", add_special=True)
    session.close()
    path = File("llama", RUNS.tensors, RUNS.keys | {"attention.causal": False}, RUNS.general).write(tmp_path / "b.gguf")
    with pytest.raises(EngineError, match="the architecture 'llama' does not continue a text"):
        open_session(open_artifact(path), OPTIONS)


def test_the_rules_of_llama_quantize_are_all_known() -> None:
    """What src/llama-quant.cpp asks of names and architectures: another release may ask more."""
    src = source_of_llama_cpp() / "src"
    text = (src / "llama-quant.cpp").read_text(encoding="utf-8")
    begin, end = text.index("static bool tensor_allows_quantization("), text.index("// tensor type selection")
    left_alone = set(re.findall(r'name\.find\("([^"]+)"\)', text[begin:end]))
    assert left_alone == {*_NEVER, *(part for parts in _NEVER_OF.values() for part in parts)}
    rules = text[: text.index("llama_quant_model_from_metadata(")]
    assert set(re.findall(r"LLM_ARCH_(\w+)", rules)) == {"FALCON", "GLM5_NEXT", "BAILINGMOE3"}
    models = {path.stem: path.read_text(encoding="utf-8") for path in sorted((src / "models").glob("*.cpp"))}
    larger = {name for name, code in models.items() if "LLM_TYPE_70B" in code}
    assert larger | {"llama-embed"} == set(_SIZED_70B)  # which is Llama's class
    repeated = {
        name.replace("-", "") for name, code in models.items() if re.search(r"hparams\.n_layer_all\s*=[^=]", code)
    }
    assert repeated == {"graniteswitch", "nanbeige"}
