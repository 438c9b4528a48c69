"""The source of the golden file: a small Llama of fixed numbers, the same on every machine and library version."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

# rows of 256 take k-quants, rows of 288 fall back; eight query heads on two KV heads
HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, VOCAB = 256, 288, 3, 8, 2, 64


def write_golden_model(directory: Path) -> Path:
    """Write config.json, model.safetensors (float32), a byte-level tokenizer of 64 tokens, and a card with its name.

    Without the card the name in its file would be "Golden"; the references have it in small letters.
    """
    from safetensors.numpy import save_file

    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCAB, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (directory / "README.md").write_text("---\nname: golden\n---\n", encoding="utf-8")
    save_file(_tensors(), directory / "model.safetensors")
    _write_tokenizer(directory)
    return directory


def _tensors() -> dict[str, npt.NDArray[np.float32]]:
    kv = HIDDEN // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}input_layernorm.weight": (HIDDEN,), f"{prefix}post_attention_layernorm.weight": (HIDDEN,),
            f"{prefix}self_attn.q_proj.weight": (HIDDEN, HIDDEN), f"{prefix}self_attn.k_proj.weight": (kv, HIDDEN),
            f"{prefix}self_attn.v_proj.weight": (kv, HIDDEN), f"{prefix}self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{prefix}mlp.gate_proj.weight": (FFN, HIDDEN), f"{prefix}mlp.up_proj.weight": (FFN, HIDDEN),
            f"{prefix}mlp.down_proj.weight": (HIDDEN, FFN),
        }  # fmt: skip
    # whole numbers from PCG64, summed to a bell shape: no library's normal() is needed
    generator = np.random.Generator(np.random.PCG64(2026))
    return {
        name: (generator.integers(-512, 512, (4, *shape)).sum(axis=0) / 32768).astype(np.float32)
        for name, shape in shapes.items()
    }


def _write_tokenizer(directory: Path) -> None:
    """SmolLM2's structure over single bytes: enough of a tokenizer for the file to load."""
    vocabulary = {"<|endoftext|>": 0, "<|im_end|>": 1} | {chr(33 + i): 2 + i for i in range(VOCAB - 2)}
    digits = {"type": "Digits", "individual_digits": True}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special = [
        {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for text, i in list(vocabulary.items())[:2]
    ]  # fmt: skip
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, bytes_]}, "post_processor": None,
        "decoder": bytes_,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary,
                  "merges": []},
    }  # fmt: skip
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}), encoding="utf-8"
    )
