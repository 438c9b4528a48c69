"""Random tiny models as Hugging Face directories, with the tokenizer and the files of the public models."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from support.tiny_tokenizers import TOKENIZERS, tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PretrainedConfig

FAMILIES = tuple(TOKENIZERS)
_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
_LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip

_CLASSES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "llama3": ("LlamaConfig", "LlamaForCausalLM"),
    "llama2": ("LlamaConfig", "LlamaForCausalLM"),
    "mistral": ("MistralConfig", "MistralForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
}

# Where a family differs from the common shape. `tied` and `layers` are defaults that make_tiny's arguments override.
_SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"tied": True, "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}},
    "llama3": {"tied": False, "rope_parameters": _LLAMA3_ROPE},
    "llama2": {"tied": False, "num_key_value_heads": 4},
    "mistral": {"tied": False, "sliding_window": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "qwen2": {"tied": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "qwen3": {"tied": True, "head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    # One period of Gemma's pattern: five sliding layers, then a full one.
    "gemma3": {
        "tied": True, "layers": 6, "head_dim": 32, "num_key_value_heads": 1, "sliding_window": 16,
        "query_pre_attn_scalar": 32, "hidden_activation": "gelu_pytorch_tanh",
    },
}  # fmt: skip


def make_tiny(
    family: str,
    directory: Path,
    *,
    hidden: int = 64,
    layers: int | None = None,
    vocab: int = 600,
    tied: bool | None = None,
    seed: int = 0,
    dtype: str = "bf16",
    public_config: bool = False,
    **overrides: Any,
) -> Path:
    """Write a random tiny model of `family` into `directory` (made if missing) and return it.

    hidden: model width, a multiple of 32 (256 for k-quants); four heads of hidden/4
    layers: 2, for gemma3 6, unless given
    vocab: tokens in tokenizer.json; the embedding has 24 or more rows extra for qwen2 and qwen3, one less for gemma3
    dtype: "bf16", "f16" or "f32"
    public_config: write config.json as the public models have it (rope_theta and rope_scaling at the top level,
        torch_dtype), not as transformers 5 saves it (rope_parameters, dtype)
    overrides: fields of the transformers config
    Weights are random, large enough that every part of the network matters: norms and biases are random too.
    """
    import torch
    import transformers

    tokenizer = tiny_tokenizer(family, vocab)
    shape = dict(_SHAPES[family])
    tied_default, layers_default = shape.pop("tied"), shape.pop("layers", 2)
    fields = {
        "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_hidden_layers": layers_default if layers is None else layers, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "vocab_size": embedding_rows(family, tokenizer.n_tokens),
        "tie_word_embeddings": tied_default if tied is None else tied, "initializer_range": 0.15,
        "dtype": _DTYPES[dtype], **tokenizer.ids, **shape, **overrides,
    }  # fmt: skip
    config_class, model_class = _CLASSES[family]
    torch.manual_seed(seed)
    config = getattr(transformers, config_class)(**fields)
    model = getattr(transformers, model_class)(config)
    _randomize(model)
    model.generation_config = transformers.GenerationConfig(**tokenizer.generation)
    model.to(getattr(torch, _DTYPES[dtype])).save_pretrained(directory)
    if public_config:
        _as_public(directory, config)
    write_tokenizer(family, directory, vocab=vocab)
    return directory


def embedding_rows(family: str, n_tokens: int) -> int:
    """Rows of the embedding for a tokenizer of `n_tokens`, padded or short as the public models are."""
    if family in ("qwen2", "qwen3"):
        return -(-(n_tokens + 24) // 64) * 64
    return n_tokens - 1 if family == "gemma3" else n_tokens


def write_tokenizer(family: str, directory: Path, *, vocab: int = 600) -> Path:
    """Write only the tokenizer's files of `family`; needs neither torch nor transformers."""
    tokenizer = tiny_tokenizer(family, vocab)
    directory.mkdir(parents=True, exist_ok=True)
    config = dict(tokenizer.config)
    if tokenizer.chat_file:
        (directory / "chat_template.jinja").write_text(str(tokenizer.chat_template), encoding="utf-8")
    else:
        config["chat_template"] = tokenizer.chat_template
    (directory / "tokenizer.json").write_text(tokenizer.tokenizer_json, encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
    if tokenizer.spm is not None:
        (directory / "tokenizer.model").write_bytes(tokenizer.spm)
    return directory


def _randomize(model: torch.nn.Module) -> None:
    """Move norms and biases away from their neutral values: a wrong or missing one then shows in the logits."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)


def _as_public(directory: Path, config: PretrainedConfig) -> None:
    """Rewrite config.json with the keys of transformers 4, which nearly every public model has."""
    path = directory / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["torch_dtype"] = content.pop("dtype")
    rope = content.pop("rope_parameters")
    if "rope_theta" not in rope:  # Gemma 3 has one entry for each kind of layer
        content["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    content["rope_theta"] = rope.pop("rope_theta")
    content["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    content["transformers_version"] = "4.48.0"
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
