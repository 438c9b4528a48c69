"""Families of one projection for q, k and v, and of layer norms: GPT-2, GPT-BigCode, GPT-NeoX, Falcon, BLOOM, MPT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from targets.gguf.architectures.base import Architecture, Config, Rule, is_tied, number, positive, renamed
from targets.gguf.architectures.common import (
    base_hyper_parameters,
    base_refusals,
    fixed,
    layer_norm,
    linear,
    untied,
)
from targets.gguf.architectures.views import grouped_heads, transposed
from targets.gguf.keyvalue import KeyValue, boolean, float32

if TYPE_CHECKING:
    from targets.base import Problem

_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
_ANY_GELU = ("gelu", *_TANH)
"""llama.cpp has the approximation by tanh for both; the exact one differs from it by 5e-4 at most."""


def _qkv_dims(config: Config) -> dict[str, int]:
    """Rows of the fused projection."""
    hidden, heads = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    kv_heads = positive(config, "num_key_value_heads")
    return {"qkv": hidden + 2 * kv_heads * (hidden // heads), "positions": positive(config, "max_position_embeddings")}


def _named(config: Config, **names: str) -> Config:
    """The config under shared names, with the feed-forward four times as wide as the model where it says nothing."""
    found = renamed(config, names)
    if found.get("intermediate_size") is None:
        found = {**found, "intermediate_size": 4 * positive(found, "hidden_size")}
    if found.get("num_key_value_heads") is None:
        found = {**found, "num_key_value_heads": positive(found, "num_attention_heads")}
    return found


_GPT2_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
    "hidden_act": "activation_function",
    "layer_norm_eps": "layer_norm_epsilon",
}
_GPT2_DEFAULTS: dict[str, Any] = {
    "layer_norm_epsilon": 1e-5,
    "n_positions": 1024,
    "activation_function": "gelu_new",
    "tie_word_embeddings": True,
}
_GPT2_RULES = (
    Rule("wte.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule("wpe.weight", "position_embd.weight", ("positions", "hidden"), precise=True),
    *layer_norm("ln_f", "output_norm"),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), when=untied),
)
_GPT2_PARTS = (
    ("attn.c_attn", "attn_qkv", "qkv", "hidden"),
    ("attn.c_proj", "attn_output", "hidden", "hidden"),
    ("mlp.c_fc", "ffn_up", "ffn", "hidden"),
    ("mlp.c_proj", "ffn_down", "hidden", "ffn"),
)
_GPT2_NORMS = (*layer_norm("h.{i}.ln_1", "blk.{i}.attn_norm"), *layer_norm("h.{i}.ln_2", "blk.{i}.ffn_norm"))


def _conv1d(source: str, target: str, n_out: str, n_in: str) -> tuple[Rule, Rule]:
    """GPT-2's linear layers are stored with their inputs as rows."""
    weight = Rule(f"{source}.weight", f"{target}.weight", (n_out, n_in), stored=(n_in, n_out), view=transposed())
    return weight, Rule(f"{source}.bias", f"{target}.bias", (n_out,))


def _refuse_gpt2(config: Config) -> list[Problem]:
    found = base_refusals(config, _TANH)
    off = fixed(config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    return [*found, *off]


GPT2 = Architecture(
    classes=("GPT2LMHeadModel",),
    gguf="gpt2",
    rules=_GPT2_RULES,
    layer_rules=(
        *_GPT2_NORMS,
        *(
            rule
            for source, target, n_out, n_in in _GPT2_PARTS
            for rule in _conv1d(f"h.{{i}}.{source}", f"blk.{{i}}.{target}", n_out, n_in)
        ),
    ),
    hyper_parameters=lambda config: base_hyper_parameters(config, "gpt2", layer_norm=True, rotary=False),
    refuse=_refuse_gpt2,
    read=lambda config: _named(config, **_GPT2_NAMES),
    dims=_qkv_dims,
    defaults=_GPT2_DEFAULTS,
    prefixes=("transformer. -> ",),
    ignore=(r"h\.\d+\.attn\.(masked_)?bias",),
)


def _read_bigcode(config: Config) -> Config:
    heads = {"num_key_value_heads": 1} if config.get("multi_query", True) else {}
    return _named({**config, **heads}, **_GPT2_NAMES)


GPT_BIGCODE = Architecture(
    classes=("GPTBigCodeForCausalLM",),
    gguf="starcoder",
    rules=_GPT2_RULES,
    layer_rules=(
        *_GPT2_NORMS,
        *(
            rule
            for source, target, n_out, n_in in _GPT2_PARTS
            for rule in linear(f"h.{{i}}.{source}", f"blk.{{i}}.{target}", (n_out, n_in))
        ),
    ),
    hyper_parameters=lambda config: base_hyper_parameters(config, "starcoder", layer_norm=True, rotary=False),
    # with as many key heads as query heads its projection is sorted by heads, which no public checkpoint has
    refuse=lambda config: [*_refuse_gpt2(config), *fixed(config, multi_query=True)],
    read=_read_bigcode,
    dims=_qkv_dims,
    defaults={**_GPT2_DEFAULTS, "activation_function": "gelu_pytorch_tanh"},
    prefixes=("transformer. -> ",),
    ignore=(r"h\.\d+\.attn\.(masked_)?bias",),
)


def _grouped(source: str, target: str, **transforms: Any) -> tuple[Rule, ...]:
    """The fused projection of families that sort it by heads."""
    return linear(source, target, ("qkv", "hidden"), view=grouped_heads, **transforms)


def _read_neox(config: Config) -> Config:
    heads = {"num_key_value_heads": positive(config, "num_attention_heads")}
    return _named({**config, **heads}, partial_rotary_factor="rotary_pct", rope_theta="rotary_emb_base")


GPT_NEOX = Architecture(
    classes=("GPTNeoXForCausalLM",),
    gguf="gptneox",
    rules=(
        Rule("embed_in.weight", "token_embd.weight", ("vocab", "hidden")),
        *layer_norm("final_layer_norm", "output_norm"),
        # transformers 5 calls it lm_head, and keeps the older name in what it saves
        Rule(
            "embed_out.weight",
            "output.weight",
            ("vocab", "hidden"),
            when=untied,
            otherwise=Rule("lm_head.weight", "output.weight", ("vocab", "hidden")),
        ),
        Rule("embed_in.weight", "output.weight", ("vocab", "hidden"), when=is_tied),
    ),
    layer_rules=(
        *layer_norm("layers.{i}.input_layernorm", "blk.{i}.attn_norm"),
        *_grouped("layers.{i}.attention.query_key_value", "blk.{i}.attn_qkv"),
        *linear("layers.{i}.attention.dense", "blk.{i}.attn_output", ("hidden", "hidden")),
        *layer_norm("layers.{i}.post_attention_layernorm", "blk.{i}.ffn_norm"),
        *linear("layers.{i}.mlp.dense_h_to_4h", "blk.{i}.ffn_up", ("ffn", "hidden")),
        *linear("layers.{i}.mlp.dense_4h_to_h", "blk.{i}.ffn_down", ("hidden", "ffn")),
    ),
    hyper_parameters=lambda config: [
        *base_hyper_parameters(config, "gptneox", layer_norm=True),
        boolean("gptneox.use_parallel_residual", bool(config["use_parallel_residual"])),
    ],
    refuse=lambda config: [*base_refusals(config, _ANY_GELU, partial=True), *fixed(config, attention_bias=True)],
    read=_read_neox,
    dims=_qkv_dims,
    defaults={
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000.0,
        "use_parallel_residual": True,
    },
    prefixes=("gpt_neox. -> ",),
    ignore=(r"layers\.\d+\.attention\.((masked_)?bias|rotary_emb\.inv_freq)",),
)


def _new_falcon(config: Config) -> bool:
    """Whether heads are grouped as in Falcon 40B and Falcon 2."""
    return bool(config.get("new_decoder_architecture"))


def _two_norms(config: Config) -> bool:
    """Whether attention and feed-forward have norms of their own."""
    return _new_falcon(config) and config.get("num_ln_in_parallel_attn") in (None, 2)


def _one_norm(config: Config) -> bool:
    return not _two_norms(config)


def _read_falcon(config: Config) -> Config:
    names = {
        "layer_norm_eps": "layer_norm_epsilon",
        "intermediate_size": "ffn_hidden_size",
        "hidden_act": "activation",
    }
    found = renamed(config, names)
    if _new_falcon(found):
        found = renamed(found, {"num_key_value_heads": "num_kv_heads"})
    elif found.get("multi_query", True):
        found = {**found, "num_key_value_heads": 1}
    return _named(found)


def _falcon_norm(stored: str, target: str, *, two: bool) -> tuple[Rule, ...]:
    return layer_norm(f"h.{{i}}.{stored}", f"blk.{{i}}.{target}", when=_two_norms if two else _one_norm)


FALCON = Architecture(
    classes=("FalconForCausalLM",),
    gguf="falcon",
    rules=(
        Rule("word_embeddings.weight", "token_embd.weight", ("vocab", "hidden")),
        *layer_norm("ln_f", "output_norm"),
        Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), when=untied),
    ),
    layer_rules=(
        *_falcon_norm("input_layernorm", "attn_norm", two=False),
        *_falcon_norm("ln_mlp", "attn_norm", two=True),
        *_falcon_norm("ln_attn", "attn_norm_2", two=True),
        *_grouped("h.{i}.self_attention.query_key_value", "blk.{i}.attn_qkv", bias=False),
        *linear("h.{i}.self_attention.dense", "blk.{i}.attn_output", ("hidden", "hidden"), bias=False),
        *linear("h.{i}.mlp.dense_h_to_4h", "blk.{i}.ffn_up", ("ffn", "hidden"), bias=False),
        *linear("h.{i}.mlp.dense_4h_to_h", "blk.{i}.ffn_down", ("hidden", "ffn"), bias=False),
    ),
    hyper_parameters=lambda config: base_hyper_parameters(config, "falcon", layer_norm=True),
    refuse=lambda config: [
        *base_refusals(config, _ANY_GELU),
        *fixed(config, alibi=False, bias=False, parallel_attn=True),
    ],
    read=_read_falcon,
    dims=_qkv_dims,
    defaults={"layer_norm_epsilon": 1e-5, "max_position_embeddings": 2048, "tie_word_embeddings": True},
    prefixes=("transformer. -> ",),
)

BLOOM = Architecture(
    classes=("BloomForCausalLM",),
    gguf="bloom",
    rules=(
        Rule("word_embeddings.weight", "token_embd.weight", ("vocab", "hidden")),
        *layer_norm("word_embeddings_layernorm", "token_embd_norm"),
        *layer_norm("ln_f", "output_norm"),
        Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), when=untied),
    ),
    layer_rules=(
        *layer_norm("h.{i}.input_layernorm", "blk.{i}.attn_norm"),
        *_grouped("h.{i}.self_attention.query_key_value", "blk.{i}.attn_qkv"),
        *linear("h.{i}.self_attention.dense", "blk.{i}.attn_output", ("hidden", "hidden")),
        *layer_norm("h.{i}.post_attention_layernorm", "blk.{i}.ffn_norm"),
        *linear("h.{i}.mlp.dense_h_to_4h", "blk.{i}.ffn_up", ("ffn", "hidden")),
        *linear("h.{i}.mlp.dense_4h_to_h", "blk.{i}.ffn_down", ("hidden", "ffn")),
    ),
    hyper_parameters=lambda config: base_hyper_parameters(config, "bloom", layer_norm=True, rotary=False),
    refuse=lambda config: [
        *base_refusals(config, _TANH),
        *fixed(config, apply_residual_connection_post_layernorm=False),
    ],
    read=lambda config: _named(
        config,
        hidden_size="n_embed",
        num_hidden_layers="n_layer",
        num_attention_heads="n_head",
        max_position_embeddings="seq_length",
        layer_norm_eps="layer_norm_epsilon",
    ),
    dims=_qkv_dims,
    # its positions have no limit; it was trained with 2048
    defaults={"layer_norm_epsilon": 1e-5, "seq_length": 2048, "tie_word_embeddings": True},
    prefixes=("transformer. -> ",),
)


def _attention(config: Config) -> Config:
    """MPT's settings of attention, a dictionary of their own."""
    return dict(config.get("attn_config") or {})


def _mpt_hyper_parameters(config: Config) -> list[KeyValue]:
    entries = base_hyper_parameters(config, "mpt", layer_norm=True, rotary=False)
    # transformers computes slopes for 8 whatever the config says
    entries.append(float32("mpt.attention.max_alibi_bias", 8.0))
    if _attention(config).get("clip_qkv"):
        entries.append(float32("mpt.attention.clamp_kqv", number(_attention(config), "clip_qkv")))
    return entries


def _refuse_mpt(config: Config) -> list[Problem]:
    found = base_refusals(config, _ANY_GELU) + fixed(config, no_bias=True, expansion_ratio=4, logit_scale=False)
    own = {"alibi": True, "alibi_bias_max": 8, "qk_ln": False, "prefix_lm": False, "softmax_scale": False}
    return [*found, *fixed(_attention(config), **own, attn_type="multihead_attention")]


MPT = Architecture(
    classes=("MptForCausalLM", "MPTForCausalLM"),
    gguf="mpt",
    rules=(
        Rule("wte.weight", "token_embd.weight", ("vocab", "hidden")),
        Rule("norm_f.weight", "output_norm.weight", ("hidden",)),
        Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), when=untied),
    ),
    layer_rules=(
        Rule("blocks.{i}.norm_1.weight", "blk.{i}.attn_norm.weight", ("hidden",)),
        *linear("blocks.{i}.attn.Wqkv", "blk.{i}.attn_qkv", ("qkv", "hidden"), bias=False),
        *linear("blocks.{i}.attn.out_proj", "blk.{i}.attn_output", ("hidden", "hidden"), bias=False),
        Rule("blocks.{i}.norm_2.weight", "blk.{i}.ffn_norm.weight", ("hidden",)),
        *linear("blocks.{i}.ffn.up_proj", "blk.{i}.ffn_up", ("ffn", "hidden"), bias=False),
        *linear("blocks.{i}.ffn.down_proj", "blk.{i}.ffn_down", ("hidden", "ffn"), bias=False),
    ),
    hyper_parameters=_mpt_hyper_parameters,
    refuse=_refuse_mpt,
    read=lambda config: _named(
        config,
        hidden_size="d_model",
        num_hidden_layers="n_layers",
        num_attention_heads="n_heads",
        max_position_embeddings="max_seq_len",
        layer_norm_eps="layer_norm_epsilon",
    ),
    dims=_qkv_dims,
    defaults={"layer_norm_epsilon": 1e-5, "max_seq_len": 2048, "tie_word_embeddings": True},
    prefixes=("transformer. -> ",),
)
