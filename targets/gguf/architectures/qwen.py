"""Qwen2 and 2.5 (biases on q, k, v), Qwen3 (norms on the heads of q and k), both with experts. Rope as stored."""

from __future__ import annotations

from targets.base import Problem
from targets.gguf.architectures.base import Architecture, Config, Rule, positive, renamed
from targets.gguf.architectures.common import (
    ATTENTION,
    EMBEDDINGS,
    FEED_FORWARD,
    NORMS,
    QK_NORMS,
    QKV_BIASES,
    TWICE,
    attention_bias,
    base_hyper_parameters,
    base_refusals,
    expert_dims,
    expert_hyper_parameters,
    experts,
    fixed,
    only_if,
    router,
    square_heads,
)
from targets.gguf.keyvalue import KeyValue, uint32

_MLP = "model.layers.{i}.mlp"


def _refuse(config: Config) -> list[Problem]:
    found = base_refusals(config, "silu")
    if config.get("use_sliding_window"):
        found.append(
            Problem("config.json: use_sliding_window", "is on", "llama.cpp has no sliding window for this family")
        )
    return found


def _refuse_qwen3(config: Config) -> list[Problem]:
    found = _refuse(config)
    if attention_bias(config):
        found.append(Problem("config.json: attention_bias", "is on", "llama.cpp has no attention biases for Qwen3"))
    return found


QWEN2 = Architecture(
    classes=("Qwen2ForCausalLM",),
    gguf="qwen2",
    rules=EMBEDDINGS,
    layer_rules=(*NORMS, *ATTENTION, *QKV_BIASES, *FEED_FORWARD),
    hyper_parameters=lambda config: base_hyper_parameters(config, "qwen2"),
    refuse=_refuse,
    defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 32768},
)

QWEN3 = Architecture(
    classes=("Qwen3ForCausalLM",),
    gguf="qwen3",
    rules=EMBEDDINGS,
    layer_rules=(*NORMS, *ATTENTION, *QK_NORMS, *FEED_FORWARD),
    hyper_parameters=lambda config: base_hyper_parameters(config, "qwen3"),
    refuse=_refuse_qwen3,
    defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "head_dim": 128},
)

_EXPERTS = (
    router(f"{_MLP}.gate.weight"),
    *experts(f"{_MLP}.experts", "gate_proj", "up_proj", "down_proj", f"{_MLP}.experts"),
)

_SHARED = (
    Rule(
        f"{_MLP}.shared_expert_gate.weight",
        "blk.{i}.ffn_gate_inp_shexp.weight",
        ("hidden",),
        stored=("one", "hidden"),
    ),
    Rule(f"{_MLP}.shared_expert.gate_proj.weight", "blk.{i}.ffn_gate_shexp.weight", ("shared_ffn", "hidden")),
    Rule(f"{_MLP}.shared_expert.up_proj.weight", "blk.{i}.ffn_up_shexp.weight", ("shared_ffn", "hidden")),
    Rule(f"{_MLP}.shared_expert.down_proj.weight", "blk.{i}.ffn_down_shexp.weight", ("hidden", "shared_ffn")),
)


def _moe_hyper_parameters(config: Config, arch: str) -> list[KeyValue]:
    return [
        *base_hyper_parameters(config, arch),
        *expert_hyper_parameters(config, arch),
        uint32(f"{arch}.expert_feed_forward_length", positive(config, "moe_intermediate_size")),
    ]


def _refuse_moe(config: Config) -> list[Problem]:
    found = fixed(config, decoder_sparse_step=1)
    if config.get("mlp_only_layers"):
        what = "names layers without experts"
        found.append(Problem("config.json: mlp_only_layers", what, "llama.cpp has experts in all or none"))
    return found


QWEN2_MOE = Architecture(
    classes=("Qwen2MoeForCausalLM",),
    gguf="qwen2moe",
    rules=(*EMBEDDINGS, TWICE),
    layer_rules=(
        *NORMS,
        *ATTENTION,
        *only_if(lambda config: bool(config["qkv_bias"]), *QKV_BIASES),
        *_EXPERTS,
        *_SHARED,
    ),
    hyper_parameters=lambda config: [
        *_moe_hyper_parameters(config, "qwen2moe"),
        uint32("qwen2moe.expert_shared_feed_forward_length", positive(config, "shared_expert_intermediate_size")),
    ],
    refuse=lambda config: [
        *_refuse(config),
        *_refuse_moe(config),
        *fixed(config, norm_topk_prob=False),
        *square_heads(config),
    ],
    dims=lambda config: {
        **expert_dims(config),
        "shared_ffn": positive(config, "shared_expert_intermediate_size"),
    },
    defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "intermediate_size": 5632,
        "num_key_value_heads": 16,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "qkv_bias": True,
    },
)

QWEN3_MOE = Architecture(
    classes=("Qwen3MoeForCausalLM",),
    gguf="qwen3moe",
    rules=EMBEDDINGS,
    layer_rules=(*NORMS, *ATTENTION, *QK_NORMS, *_EXPERTS),
    hyper_parameters=lambda config: _moe_hyper_parameters(config, "qwen3moe"),
    refuse=lambda config: [*_refuse_qwen3(config), *_refuse_moe(config), *fixed(config, norm_topk_prob=True)],
    # the hub's checkpoints say num_experts, transformers 5 writes num_local_experts
    read=lambda config: renamed(config, {"num_experts": "num_local_experts"}),
    dims=expert_dims,
    defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "intermediate_size": 6144,
        "num_key_value_heads": 4,
        "num_local_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        # where config.json is silent transformers does not normalize
        "norm_topk_prob": False,
    },
)
