"""Models with a state in place of attention: Mamba, Falcon Mamba, Mamba 2."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from targets.gguf.architectures.base import Architecture, Config, Rule, number, positive
from targets.gguf.architectures.common import (
    base_refusals,
    fixed,
    linear,
    untied,
)
from targets.gguf.architectures.views import folded
from targets.gguf.keyvalue import KeyValue, boolean, float32, uint32

if TYPE_CHECKING:
    import numpy.typing as npt

    from targets.base import Problem

_NO_LIMIT = 1 << 20
"""Mamba's context has no end; llama.cpp's own files say this."""
_MIXER = "backbone.layers.{i}.mixer"


def _negative_exp(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Mamba stores the logarithm of -A."""
    negated: npt.NDArray[np.float32] = -np.exp(values)
    return negated


def _read_mamba(config: Config) -> Config:
    """What the shared arithmetic asks of all families; a model without attention has one head there."""
    hidden = positive(config, "hidden_size")
    inner = int(number({"expand": 2, **config}, "expand") * hidden)
    rank = config.get("time_step_rank")
    return {
        **config,
        "intermediate_size": inner,
        "time_step_rank": -(-hidden // 16) if rank in (None, "auto") else rank,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": hidden,
        "max_position_embeddings": _NO_LIMIT,
    }


def _mamba_dims(config: Config) -> dict[str, int]:
    state, rank = positive(config, "state_size"), positive(config, "time_step_rank")
    inner = positive(config, "intermediate_size")
    return {
        "inner": inner,
        "in": 2 * inner,
        "state": state,
        "conv": positive(config, "conv_kernel"),
        "rank": rank,
        "x": rank + 2 * state,
    }


def _state_hyper_parameters(config: Config, arch: str) -> list[KeyValue]:
    """Sizes of a model without attention."""
    return [
        uint32(f"{arch}.block_count", positive(config, "num_hidden_layers")),
        uint32(f"{arch}.context_length", _NO_LIMIT),
        uint32(f"{arch}.embedding_length", positive(config, "hidden_size")),
        uint32(f"{arch}.feed_forward_length", 0),
        uint32(f"{arch}.attention.head_count", 0),
        float32(f"{arch}.attention.layer_norm_rms_epsilon", number(config, "layer_norm_epsilon")),
        uint32(f"{arch}.vocab_size", positive(config, "vocab_size")),
    ]


def _mamba_hyper_parameters(config: Config) -> list[KeyValue]:
    return [
        *_state_hyper_parameters(config, "mamba"),
        uint32("mamba.ssm.conv_kernel", positive(config, "conv_kernel")),
        uint32("mamba.ssm.inner_size", positive(config, "intermediate_size")),
        uint32("mamba.ssm.state_size", positive(config, "state_size")),
        uint32("mamba.ssm.time_step_rank", positive(config, "time_step_rank")),
    ]


def _refuse_mamba(config: Config) -> list[Problem]:
    return [
        *base_refusals(config, "silu"),
        *fixed(config, use_bias=False, use_conv_bias=True, expand=2),
    ]


_OUTER = (
    Rule("backbone.embeddings.weight", "token_embd.weight", ("vocab", "hidden")),
    Rule("backbone.norm_f.weight", "output_norm.weight", ("hidden",)),
    Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), when=untied),
)
_NORM = Rule("backbone.layers.{i}.norm.weight", "blk.{i}.attn_norm.weight", ("hidden",))


def convolution(source: str, target: str, channels: str, **transforms: Any) -> Rule:
    """A convolution over time for each channel alone; ggml's operator takes float32 only."""
    stored = (channels, "one", "conv")
    return Rule(f"{source}.weight", f"{target}.weight", (channels, "conv"), stored=stored, precise=True, **transforms)


MAMBA = Architecture(
    classes=("MambaForCausalLM",),
    gguf="mamba",
    rules=_OUTER,
    layer_rules=(
        _NORM,
        *linear(f"{_MIXER}.in_proj", "blk.{i}.ssm_in", ("in", "hidden"), bias=False),
        convolution(f"{_MIXER}.conv1d", "blk.{i}.ssm_conv1d", "inner"),
        Rule(f"{_MIXER}.conv1d.bias", "blk.{i}.ssm_conv1d.bias", ("inner",)),
        *linear(f"{_MIXER}.x_proj", "blk.{i}.ssm_x", ("x", "inner"), bias=False),
        *linear(f"{_MIXER}.dt_proj", "blk.{i}.ssm_dt", ("inner", "rank")),
        Rule(f"{_MIXER}.A_log", "blk.{i}.ssm_a", ("inner", "state"), function=_negative_exp, precise=True),
        Rule(f"{_MIXER}.D", "blk.{i}.ssm_d", ("inner",)),
        *linear(f"{_MIXER}.out_proj", "blk.{i}.ssm_out", ("hidden", "inner"), bias=False),
    ),
    hyper_parameters=_mamba_hyper_parameters,
    refuse=_refuse_mamba,
    read=_read_mamba,
    dims=_mamba_dims,
    defaults={"state_size": 16, "conv_kernel": 4, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
)


def _falcon_notes(config: Config) -> list[str]:
    own, norms = config.get("mixer_rms_eps", 1e-6), config["layer_norm_epsilon"]
    return [] if own == norms else [f"norms: llama.cpp has one epsilon, {norms}; the mixer's is {own}"]


FALCON_MAMBA = dataclasses.replace(
    MAMBA,
    classes=("FalconMambaForCausalLM",),
    notes=_falcon_notes,
    # steps, inputs and outputs of the state are normalized, without weights
    hyper_parameters=lambda config: [*_mamba_hyper_parameters(config), boolean("mamba.ssm.dt_b_c_rms", True)],
)


def mamba2_rules(mixer: str, **transforms: Any) -> tuple[Rule, ...]:
    """The mixer of a Mamba 2 layer, stored below `mixer`. The family's `dims` are `mamba2_dims`."""
    return tuple(
        dataclasses.replace(rule, **transforms)
        for rule in (
            *linear(f"{mixer}.in_proj", "blk.{i}.ssm_in", ("in", "hidden"), bias=False),
            convolution(f"{mixer}.conv1d", "blk.{i}.ssm_conv1d", "channels"),
            Rule(f"{mixer}.conv1d.bias", "blk.{i}.ssm_conv1d.bias", ("channels",)),
            Rule(f"{mixer}.dt_bias", "blk.{i}.ssm_dt.bias", ("states",)),
            Rule(
                f"{mixer}.A_log",
                "blk.{i}.ssm_a",
                ("states", "one"),
                stored=("states",),
                view=folded("one"),
                function=_negative_exp,
                precise=True,
            ),
            Rule(
                f"{mixer}.D", "blk.{i}.ssm_d", ("states", "one"), stored=("states",), view=folded("one"), precise=True
            ),
            Rule(
                f"{mixer}.norm.weight",
                "blk.{i}.ssm_norm.weight",
                ("groups", "group"),
                stored=("inner",),
                view=folded("group"),
                precise=True,
            ),
            *linear(f"{mixer}.out_proj", "blk.{i}.ssm_out", ("hidden", "inner"), bias=False),
        )
    )


@dataclass(frozen=True)
class Mamba2:
    """Sizes of a mixer: channels within it, heads of the state, values of a state, groups, width of the convolution."""

    inner: int
    heads: int
    state: int
    groups: int
    conv: int

    @property
    def dims(self) -> dict[str, int]:
        """Named dimensions of its rules."""
        channels = self.inner + 2 * self.groups * self.state
        return {
            "inner": self.inner,
            "channels": channels,
            "in": self.inner + channels + self.heads,
            "states": self.heads,
            "groups": self.groups,
            "group": self.inner // self.groups,
            "conv": self.conv,
        }

    def hyper_parameters(self, arch: str) -> list[KeyValue]:
        """Its key/values."""
        return [
            uint32(f"{arch}.ssm.conv_kernel", self.conv),
            uint32(f"{arch}.ssm.inner_size", self.inner),
            uint32(f"{arch}.ssm.state_size", self.state),
            uint32(f"{arch}.ssm.time_step_rank", self.heads),
            uint32(f"{arch}.ssm.group_count", self.groups),
        ]


def _mamba2(config: Config) -> Mamba2:
    return Mamba2(
        inner=positive(config, "intermediate_size"),
        heads=positive(config, "num_heads"),
        state=positive(config, "state_size"),
        groups=positive(config, "n_groups"),
        conv=positive(config, "conv_kernel"),
    )


MAMBA2 = Architecture(
    classes=("Mamba2ForCausalLM",),
    gguf="mamba2",
    rules=_OUTER,
    layer_rules=(_NORM, *mamba2_rules(_MIXER)),
    hyper_parameters=lambda config: [
        *_state_hyper_parameters(config, "mamba2"),
        *_mamba2(config).hyper_parameters("mamba2"),
    ],
    refuse=_refuse_mamba,
    read=_read_mamba,
    dims=lambda config: _mamba2(config).dims,
    defaults={
        "num_heads": 128,
        "state_size": 128,
        "n_groups": 8,
        "conv_kernel": 4,
        "layer_norm_epsilon": 1e-5,
    },
)
