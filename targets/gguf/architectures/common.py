"""The pieces that decoder families share: rules of the Llama layout, common hyper-parameters, common refusals."""

from __future__ import annotations

from targets.base import Problem
from targets.gguf.architectures import rope
from targets.gguf.architectures.base import Config, Rule, head_dim, is_tied, n_heads, n_kv_heads, number, positive
from targets.gguf.keyvalue import KeyValue, float32, uint32


def untied(config: Config) -> bool:
    """Whether the model has an output layer of its own."""
    return not is_tied(config)


def attention_bias(config: Config) -> bool:
    """Whether the attention projections have biases."""
    return bool(config.get("attention_bias", False))


def mlp_bias(config: Config) -> bool:
    """Whether the feed-forward projections have biases."""
    return bool(config.get("mlp_bias", False))


EMBEDDINGS = (
    Rule("model.embed_tokens.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule("model.norm.weight", "output_norm.weight", ("hidden",)),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), when=untied),
)

NORMS = (
    Rule("model.layers.{i}.input_layernorm.weight", "blk.{i}.attn_norm.weight", ("hidden",)),
    Rule("model.layers.{i}.post_attention_layernorm.weight", "blk.{i}.ffn_norm.weight", ("hidden",)),
)

ATTENTION = (
    Rule("model.layers.{i}.self_attn.q_proj.weight", "blk.{i}.attn_q.weight", ("q", "hidden")),
    Rule("model.layers.{i}.self_attn.k_proj.weight", "blk.{i}.attn_k.weight", ("kv", "hidden")),
    Rule("model.layers.{i}.self_attn.v_proj.weight", "blk.{i}.attn_v.weight", ("kv", "hidden")),
    Rule("model.layers.{i}.self_attn.o_proj.weight", "blk.{i}.attn_output.weight", ("hidden", "q")),
)

QK_NORMS = (
    Rule("model.layers.{i}.self_attn.q_norm.weight", "blk.{i}.attn_q_norm.weight", ("head",)),
    Rule("model.layers.{i}.self_attn.k_norm.weight", "blk.{i}.attn_k_norm.weight", ("head",)),
)

FEED_FORWARD = (
    Rule("model.layers.{i}.mlp.gate_proj.weight", "blk.{i}.ffn_gate.weight", ("ffn", "hidden")),
    Rule("model.layers.{i}.mlp.up_proj.weight", "blk.{i}.ffn_up.weight", ("ffn", "hidden")),
    Rule("model.layers.{i}.mlp.down_proj.weight", "blk.{i}.ffn_down.weight", ("hidden", "ffn")),
)


def base_hyper_parameters(config: Config, arch: str, default_theta: float = 10000.0) -> list[KeyValue]:
    """Sizes, norm epsilon and rope of a decoder."""
    return [
        uint32(f"{arch}.block_count", positive(config, "num_hidden_layers")),
        uint32(f"{arch}.context_length", positive(config, "max_position_embeddings")),
        uint32(f"{arch}.embedding_length", positive(config, "hidden_size")),
        uint32(f"{arch}.feed_forward_length", positive(config, "intermediate_size")),
        uint32(f"{arch}.attention.head_count", n_heads(config)),
        uint32(f"{arch}.attention.head_count_kv", n_kv_heads(config)),
        uint32(f"{arch}.attention.key_length", head_dim(config)),
        uint32(f"{arch}.attention.value_length", head_dim(config)),
        float32(f"{arch}.attention.layer_norm_rms_epsilon", number(config, "rms_norm_eps")),
        uint32(f"{arch}.vocab_size", positive(config, "vocab_size")),
        uint32(f"{arch}.rope.dimension_count", head_dim(config)),
        *rope.key_values(config, arch, default_theta),
    ]


def base_refusals(config: Config, activation: str, *more_ropes: str) -> list[Problem]:
    """What no decoder of these families can have in llama.cpp. more_ropes: rope types that only this family has."""
    found = rope.problems(config, *more_ropes)
    actual = config.get("hidden_activation") or config.get("hidden_act") or activation
    if actual != activation:
        found.append(
            Problem("config.json: hidden_act", f"'{actual}' is not '{activation}'", "llama.cpp computes only that")
        )
    if config.get("quantization_config"):
        quantization = config["quantization_config"]
        method = quantization.get("quant_method", "quantized") if isinstance(quantization, dict) else quantization
        found.append(
            Problem(
                "config.json: quantization_config",
                f"the weights are already {method}",
                "export the original checkpoint",
            )
        )
    if n_heads(config) % n_kv_heads(config):
        found.append(
            Problem("config.json: num_key_value_heads", "does not divide num_attention_heads", "check the config.json")
        )
    return found
