"""What a decoder computes, read from config.json: `DecoderSpec`, and what of it no graph of ours can express."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.errors import UnsupportedError
from targets.base import Problem
from targets.gguf.architectures import architecture_of
from targets.gguf.architectures.base import (
    dimensions,
    head_dim,
    is_tied,
    n_heads,
    n_kv_heads,
    number,
    positive,
)
from targets.onnx import rope
from targets.widths import KV_HEADS, WIDTHS, is_uneven

if TYPE_CHECKING:
    from targets.gguf.architectures.base import Architecture

    Config = dict[str, Any]

LONGEST_TABLE = 32768
"""Most positions that a file has cosines and sines for, 8 MB each for heads of 128: no phone has the cache for more."""
GRAPHS = frozenset({"llama", "qwen2", "qwen3", "gemma3"})
"""The families whose layer is built here and for torch, by their names in GGUF, which has more of them."""
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh"}


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder of the Llama layout.

    windows: for each layer, how many tokens it attends to, itself included; 0 for all
    local: for each layer, whether it takes the rotary table of the sliding layers
    embedding_scale: what embeddings are multiplied by; 1.0 for nothing
    scale: of the attention scores; softcap: of the final logits, 0.0 for none
    head_norms: q and k are normalized in each head; post_norms: Gemma's norms behind attention and feed-forward
    """

    n_layers: int
    hidden: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab: int
    trained_context: int
    eps: float
    activation: str
    windows: tuple[int, ...]
    local: tuple[bool, ...]
    tied: bool
    embedding_scale: float = 1.0
    scale: float = 0.0
    softcap: float = 0.0
    head_norms: bool = False
    post_norms: bool = False
    default_theta: float = 10000.0

    @property
    def context(self) -> int:
        """Tokens that the file can hold."""
        return min(self.trained_context, LONGEST_TABLE)

    @property
    def context_notes(self) -> tuple[str, ...]:
        """What a reader has to know where the file holds fewer tokens than the model."""
        if self.context == self.trained_context:
            return ()
        return (
            f"the file holds {self.context} tokens of context, the model was trained for {self.trained_context}:"
            " rotary tables for all of them would only be dead weight on a phone",
        )


def architecture_with_graph(name: str) -> Architecture:
    """The architecture of a model class of config.json. Raises UnsupportedError for one that has no graph here."""
    found = architecture_of(name)
    if found.gguf not in GRAPHS or "blk.{i}.ffn_gate.weight" not in {rule.target for rule in found.layer_rules}:
        raise UnsupportedError(f"config.json: architecture '{name}' can be written as GGUF only; use --format gguf")
    return found


def decoder_spec(architecture: Architecture, config: Config) -> DecoderSpec:
    """The spec of a config.json that `refusals` finds nothing in. Raises ModelError for missing or bad entries."""
    dims = dimensions(config)
    gemma = architecture.gguf == "gemma3"
    windows = _windows(architecture, config)
    targets = {rule.target for rule in architecture.layer_rules}
    scalar = number(config, "query_pre_attn_scalar") if config.get("query_pre_attn_scalar") else float(dims["head"])
    return DecoderSpec(
        n_layers=positive(config, "num_hidden_layers"),
        hidden=dims["hidden"],
        n_heads=n_heads(config),
        n_kv_heads=n_kv_heads(config),
        head_dim=head_dim(config),
        vocab=dims["vocab"],
        trained_context=positive(config, "max_position_embeddings"),
        eps=number(config, "rms_norm_eps"),
        activation=ACTIVATIONS[_activation(config)],
        windows=windows,
        local=tuple(gemma and window > 0 for window in windows),
        tied=is_tied(config),
        embedding_scale=dims["hidden"] ** 0.5 if gemma else 1.0,
        scale=scalar**-0.5,
        softcap=float(config.get("final_logit_softcapping") or 0.0),
        head_norms="blk.{i}.attn_q_norm.weight" in targets,
        post_norms=gemma,
        default_theta=1_000_000.0 if gemma else 10000.0,
    )


def refusals(config: Config) -> list[Problem]:
    """What no graph of ours computes, before any weight is read."""
    found = rope.problems(config)
    activation = _activation(config)
    if activation not in ACTIVATIONS:
        found.append(
            Problem("config.json: hidden_act", f"'{activation}' is not supported", f"known: {', '.join(ACTIVATIONS)}")
        )
    if config.get("quantization_config"):
        found.append(
            Problem("config.json: quantization_config", "the weights are quantized already", "export the original")
        )
    if n_heads(config) % n_kv_heads(config):
        found.append(
            Problem("config.json: num_key_value_heads", "does not divide num_attention_heads", "check the config.json")
        )
    if config.get("attn_logit_softcapping"):
        found.append(Problem("config.json: attn_logit_softcapping", "is set", "this variant is not supported"))
    if config.get("use_bidirectional_attention"):
        found.append(Problem("config.json: use_bidirectional_attention", "is on", "only the causal model is exported"))
    if is_uneven(config, KV_HEADS):
        what = "its layers have numbers of heads of their own, and clients give all caches one shape"
        found.append(Problem(f"config.json: {WIDTHS}", what, "export it as gguf"))
    types = config.get("layer_types")
    if types and len(types) != config.get("num_hidden_layers"):
        found.append(Problem("config.json: layer_types", "has not one entry a layer", "check the config.json"))
    return found


def kernel_refusals(config: Config) -> list[Problem]:
    """What GroupQueryAttention does not take, whatever the model computes."""
    if head_dim(config) % 16 == 0:
        return []
    what = f"a head is {head_dim(config)} wide, GroupQueryAttention takes multiples of 16"
    return [Problem("config.json: head_dim", what, "export it as gguf")]


def _activation(config: Config) -> str:
    return str(config.get("hidden_activation") or config.get("hidden_act") or "silu")


def _windows(architecture: Architecture, config: Config) -> tuple[int, ...]:
    """The window of each layer, as transformers reads the config."""
    n_layers = positive(config, "num_hidden_layers")
    window = config.get("sliding_window")
    if not isinstance(window, int) or isinstance(window, bool) or window <= 0:
        return (0,) * n_layers
    if architecture.gguf in ("qwen2", "qwen3"):
        if not config.get("use_sliding_window"):
            return (0,) * n_layers
        first = int(config.get("max_window_layers") or 0)
        kinds = config.get("layer_types") or [
            "sliding_attention" if layer >= first else "full_attention" for layer in range(n_layers)
        ]
    elif architecture.gguf == "gemma3":
        pattern = int(config.get("sliding_window_pattern") or 6)
        kinds = config.get("layer_types") or [
            "sliding_attention" if (layer + 1) % pattern else "full_attention" for layer in range(n_layers)
        ]
    elif "MistralForCausalLM" in config.get("architectures", []):
        kinds = ["sliding_attention"] * n_layers
    else:
        kinds = ["full_attention"] * n_layers
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
