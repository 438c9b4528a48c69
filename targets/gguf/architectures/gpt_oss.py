"""GPT-OSS: experts of clamped SwiGLU with biases, stored with their inputs as rows; attention sinks; sliding layers.

transformers writes experts in bf16; the public checkpoints hold them in MXFP4 (`targets.mxfp4`), their outputs as rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from targets.gguf.architectures import rope
from targets.gguf.architectures.base import Architecture, Config, Rule, positive, renamed
from targets.gguf.architectures.common import (
    ATTENTION,
    EMBEDDINGS,
    NORMS,
    OUTPUT_BIAS,
    QKV_BIASES,
    TWICE,
    base_hyper_parameters,
    base_refusals,
    expert_dims,
    expert_hyper_parameters,
    fixed,
    sliding_layers,
    window_hyper_parameters,
)
from targets.gguf.architectures.views import columns, every, transposed
from targets.gguf.keyvalue import KeyValue, uint32

if TYPE_CHECKING:
    from targets.base import Problem

_PATTERN = 2
_MLP = "model.layers.{i}.mlp"
_GATE, _UP, _DOWN = (f"blk.{{i}}.ffn_{name}_exps" for name in ("gate", "up", "down"))
_DOWN_SHAPE = ("experts", "hidden", "expert_ffn")
_GATE_UP = ("experts", "hidden", "expert_gate_up")


def _every_second(first: int, target: str) -> tuple[Rule, Rule]:
    """The gate's or the up projection's outputs of the two that lie in one tensor by turns, and their biases."""
    stored = f"{_MLP}.experts.gate_up_proj"
    weight = ("experts", "expert_ffn", "hidden")
    bias = Rule(
        f"{stored}_bias",
        f"{target}.bias",
        weight[:2],
        stored=("experts", "expert_gate_up"),
        view=columns(first, 2),
        precise=True,
    )
    blocks = ("experts", "expert_gate_up", "hidden")
    packed = Rule(f"{stored}_blocks", f"{target}.weight", weight, stored=blocks, view=every(first, 2))
    return Rule(stored, f"{target}.weight", weight, stored=_GATE_UP, view=transposed(first, 2), otherwise=packed), bias


_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
"""What transformers takes where config.json says nothing of rope."""


def _read(config: Config) -> Config:
    found = renamed(config, {"num_experts": "num_local_experts"})
    silent = not found.get("rope_parameters") and not found.get("rope_scaling")
    return {**found, "rope_scaling": dict(_YARN)} if silent else found


def _notes(config: Config) -> list[str]:
    """Where YaRN's ramp begins and ends between two frequencies; ggml_rope_yarn_corr_dims of ggml."""
    scaling = rope.parameters(config)
    if scaling["rope_type"] != "yarn" or scaling.get("truncate", True):
        return []
    return ["rope: llama.cpp rounds where YaRN's ramp begins and ends, this model's config.json says not to"]


def _hyper_parameters(config: Config) -> list[KeyValue]:
    return [
        *base_hyper_parameters(config, "gpt-oss", default_theta=150_000.0),
        *expert_hyper_parameters(config, "gpt-oss"),
        uint32("gpt-oss.expert_feed_forward_length", positive(config, "intermediate_size")),
        *window_hyper_parameters(config, "gpt-oss", sliding_layers(config, _PATTERN)),
    ]


def _refuse(config: Config) -> list[Problem]:
    found = base_refusals(config, "silu")
    return [*found, *fixed(config, attention_bias=True, swiglu_alpha=1.702, swiglu_limit=7.0)]


GPT_OSS = Architecture(
    classes=("GptOssForCausalLM",),
    gguf="gpt-oss",
    rules=(*EMBEDDINGS, TWICE),
    layer_rules=(
        NORMS[0],
        Rule(NORMS[1].source, "blk.{i}.post_attention_norm.weight", ("hidden",)),
        *ATTENTION,
        *QKV_BIASES,
        OUTPUT_BIAS,
        Rule("model.layers.{i}.self_attn.sinks", "blk.{i}.attn_sinks.weight", ("heads",)),
        Rule(f"{_MLP}.router.weight", "blk.{i}.ffn_gate_inp.weight", ("experts", "hidden"), precise=True),
        Rule(f"{_MLP}.router.bias", "blk.{i}.ffn_gate_inp.bias", ("experts",)),
        *_every_second(0, _GATE),
        *_every_second(1, _UP),
        Rule(
            f"{_MLP}.experts.down_proj",
            f"{_DOWN}.weight",
            _DOWN_SHAPE,
            stored=("experts", "expert_ffn", "hidden"),
            view=transposed(),
            otherwise=Rule(f"{_MLP}.experts.down_proj_blocks", f"{_DOWN}.weight", _DOWN_SHAPE),
        ),
        Rule(f"{_MLP}.experts.down_proj_bias", f"{_DOWN}.bias", ("experts", "hidden"), precise=True),
    ),
    hyper_parameters=_hyper_parameters,
    refuse=_refuse,
    notes=_notes,
    read=_read,
    dims=lambda config: expert_dims(config, "intermediate_size"),
    defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "sliding_window": 128,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
    },
)
