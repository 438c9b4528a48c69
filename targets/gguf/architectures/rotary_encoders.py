"""Encoders with rotary positions: ModernBERT, Nomic BERT, Jina Embeddings 3.

llama.cpp's graphs are src/models/modern-bert.cpp and, for the other two, src/models/bert.cpp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from targets.base import Problem
from targets.gguf.architectures import rope
from targets.gguf.architectures.base import Architecture, Config, Rule, positive, renamed
from targets.gguf.architectures.bert import (
    IGNORED,
    encoder_hyper_parameters,
    head_dims,
    is_classifier,
    refuse_encoder,
)
from targets.gguf.architectures.common import base_refusals, fixed, linear, only_if, sliding_layers, square_heads
from targets.gguf.architectures.views import rows
from targets.gguf.keyvalue import KeyValue, float32, string, uint32

if TYPE_CHECKING:
    from collections.abc import Callable

    from targets.gguf.architectures.views import View

_HIDDEN = ("hidden", "hidden")


def _unscaled(config: Config) -> list[Problem]:
    """That the rope is scaled, which was tried for none of these."""
    for attention in ("full_attention", "sliding_attention"):
        kind = rope.parameters(config, attention)["rope_type"]
        if kind != "default":
            return [Problem("config.json: rope_parameters", f"'{kind}'", "only 'default' is known of this family")]
    return []


_PATTERN = 3
_POOLINGS = {"mean": 1, "cls": 2}
"""llama.cpp's numbers (include/llama.h)."""
_LAYER = "layers.{i}"


def _modern_pattern(config: Config) -> int:
    """Every so manieth layer attends to all tokens, the first one too."""
    every = config.get("global_attn_every_n_layers")
    return every if isinstance(every, int) and every > 0 else _PATTERN


def _slides(config: Config) -> list[bool]:
    """Which layers look at a window only."""
    types = config.get("layer_types")
    if types:
        return sliding_layers(config, _PATTERN)
    return [layer % _modern_pattern(config) != 0 for layer in range(positive(config, "num_hidden_layers"))]


def _period(config: Config) -> int | None:
    """The pattern of `_slides` as one number, which is what every release of llama.cpp reads; None where it is none."""
    slides = _slides(config)
    full = [layer for layer, sliding in enumerate(slides) if not sliding]
    every = full[1] if len(full) > 1 else len(slides)
    return every if full and slides == [layer % every != 0 for layer in range(len(slides))] else None


def _theta(config: Config, attention: str, older: str, default: float) -> float:
    given = config.get(older)
    theta = rope.parameters(config, attention, default if given is None else given)["rope_theta"]
    return float(theta)


def _modern_hyper_parameters(config: Config) -> list[KeyValue]:
    arch, heads = "modern-bert", positive(config, "num_attention_heads")
    full = _theta(config, "full_attention", "global_rope_theta", 160_000.0)
    entries = [
        *encoder_hyper_parameters(config, arch, positive(config, "max_position_embeddings"), 1),
        uint32(f"{arch}.attention.sliding_window", positive(config, "local_attention")),
        uint32(f"{arch}.attention.sliding_window_pattern", _period(config) or _PATTERN),
        uint32(f"{arch}.rope.dimension_count", positive(config, "hidden_size") // heads),
        float32(f"{arch}.rope.freq_base", full),
        float32(f"{arch}.rope.freq_base_swa", _theta(config, "sliding_attention", "local_rope_theta", 10_000.0)),
        string(f"{arch}.hidden_activation", str(config["hidden_act"])),
    ]
    if is_classifier(config):
        entries.append(uint32(f"{arch}.classifier.pooling_type", _POOLINGS[config["classifier_pooling"]]))
    return entries


def _refuse_modern(config: Config) -> list[Problem]:
    found = [*base_refusals(config, ("gelu", "silu")), *square_heads(config), *_unscaled(config)]
    found += fixed(config, attention_bias=False, mlp_bias=False, norm_bias=False)
    if is_classifier(config):
        found += fixed(config, classifier_bias=False, classifier_activation="gelu")
        if config.get("classifier_pooling") not in _POOLINGS:
            found.append(Problem("config.json: classifier_pooling", "is neither cls nor mean", "check the config.json"))
    if _period(config) is None:
        what = "does not say that every so manieth layer attends to all tokens"
        found.append(Problem("config.json: layer_types", what, "llama.cpp knows only that of this family"))
    return found


def _weight(source: str, target: str, shape: tuple[str, ...] = ("hidden",)) -> Rule:
    return Rule(f"{source}.weight", f"{target}.weight", shape)


MODERN_BERT = Architecture(
    classes=("ModernBertModel", "ModernBertForSequenceClassification"),
    gguf="modern-bert",
    rules=(
        _weight("embeddings.tok_embeddings", "token_embd", ("vocab", "hidden")),
        _weight("embeddings.norm", "token_embd_norm"),
        _weight("final_norm", "output_norm"),
        *only_if(
            is_classifier,
            _weight("head.dense", "cls", _HIDDEN),
            _weight("head.norm", "cls.norm"),
            *linear("classifier", "cls.output", ("labels", "hidden")),
        ),
    ),
    layer_rules=(
        Rule(f"{_LAYER}.attn_norm.weight", "blk.{i}.attn_norm.weight", ("hidden",), layers=lambda _config, i: i > 0),
        _weight(f"{_LAYER}.attn.Wqkv", "blk.{i}.attn_qkv", ("qkv", "hidden")),
        _weight(f"{_LAYER}.attn.Wo", "blk.{i}.attn_output", _HIDDEN),
        _weight(f"{_LAYER}.mlp_norm", "blk.{i}.ffn_norm"),
        _weight(f"{_LAYER}.mlp.Wi", "blk.{i}.ffn_up", ("glu", "hidden")),
        _weight(f"{_LAYER}.mlp.Wo", "blk.{i}.ffn_down", ("hidden", "ffn")),
    ),
    hyper_parameters=_modern_hyper_parameters,
    refuse=_refuse_modern,
    read=lambda config: renamed(config, {"layer_norm_eps": "norm_eps", "hidden_act": "hidden_activation"}),
    defaults={
        "vocab_size": 50368,
        "norm_eps": 1e-5,
        "hidden_activation": "gelu",
        "max_position_embeddings": 8192,
        "local_attention": 128,
        "classifier_pooling": "cls",
    },
    dims=lambda config: {
        "qkv": 3 * positive(config, "hidden_size"),
        "glu": 2 * positive(config, "intermediate_size"),
        **head_dims(config),
    },
    prefixes=("model. -> ",),
    ignore=(*IGNORED, r"head\..*", r"decoder\..*"),
    encoder=True,
)


_KINDS = ("weight", "bias")
_OLDER = "encoder.layers.{i}"


def _run(index: int) -> View:
    """One of the runs of a stored projection that are as wide as the model."""
    return lambda fact, dims: (rows(fact, index * dims["hidden"], dims["hidden"]),)


def _projections(fused: str, kinds: tuple[str, ...]) -> tuple[Rule, ...]:
    """q, k and v out of the one projection that the hub's checkpoints have, or as transformers 5 calls them."""
    found = []
    for kind in kinds:
        shape, stored = (_HIDDEN, ("qkv", "hidden")) if kind == "weight" else (("hidden",), ("qkv",))
        for index, name in enumerate("qkv"):
            target = f"blk.{{i}}.attn_{name}.{kind}"
            plain = Rule(f"{_LAYER}.self_attn.{name}_proj.{kind}", target, shape)
            found.append(Rule(f"{fused}.{kind}", target, shape, stored=stored, view=_run(index), otherwise=plain))
    return tuple(found)


def _either(older: str, newer: str, target: str, shape: tuple[str, str], kinds: tuple[str, ...]) -> tuple[Rule, ...]:
    """A projection as the hub's checkpoints call it, or as transformers 5 does."""
    shapes = {"weight": shape, "bias": shape[:1]}
    return tuple(
        Rule(
            f"{older}.{kind}",
            f"{target}.{kind}",
            shapes[kind],
            otherwise=Rule(f"{newer}.{kind}", f"{target}.{kind}", shapes[kind]),
        )
        for kind in kinds
    )


def _either_norm(older: str, newer: str, target: str) -> tuple[Rule, ...]:
    return tuple(
        Rule(
            f"{older}.{kind}",
            f"{target}.{kind}",
            ("hidden",),
            otherwise=Rule(f"{newer}.{kind}", f"{target}.{kind}", ("hidden",)),
        )
        for kind in _KINDS
    )


def _outer() -> tuple[Rule, ...]:
    """The tables and their norm."""
    return (
        _weight("embeddings.word_embeddings", "token_embd", ("vocab", "hidden")),
        Rule("embeddings.token_type_embeddings.weight", "token_types.weight", ("types", "hidden"), precise=True),
        *_either_norm("emb_ln", "embeddings.LayerNorm", "token_embd_norm"),
    )


def _norms() -> tuple[Rule, ...]:
    return (
        *_either_norm(f"{_OLDER}.norm1", f"{_LAYER}.post_attention_layernorm", "blk.{i}.attn_output_norm"),
        *_either_norm(f"{_OLDER}.norm2", f"{_LAYER}.post_mlp_layernorm", "blk.{i}.layer_output_norm"),
    )


def _typed_dims(config: Config) -> dict[str, int]:
    return {"types": positive(config, "type_vocab_size"), "qkv": 3 * positive(config, "hidden_size")}


def _rotary(arch: str, theta: float) -> Callable[[Config], list[KeyValue]]:
    def hyper_parameters(config: Config) -> list[KeyValue]:
        n_types = positive(config, "type_vocab_size")
        return [
            *encoder_hyper_parameters(config, arch, positive(config, "max_position_embeddings"), n_types),
            uint32(f"{arch}.rope.dimension_count", rope.rotary_dim(config)),
            *rope.key_values(config, arch, theta),
        ]

    return hyper_parameters


def _refuse_nomic(config: Config) -> list[Problem]:
    found = [*base_refusals(config, "silu"), *square_heads(config), *_unscaled(config)]
    if "n_embd" in config:
        fix = "load it as transformers' own NomicBertModel and save that"
        found.append(Problem("config.json: n_embd", "is of the code that the model brings along", fix))
    return found


def _refuse_jina(config: Config) -> list[Problem]:
    found = [*refuse_encoder(config), *_unscaled(config)]
    if config.get("lora_adaptations"):
        fix = "export jinaai/jina-embeddings-v3-hf, whose adapters lie beside it"
        found.append(Problem("config.json: lora_adaptations", "are part of the weights", fix))
    return found


_NOMIC, _JINA = ("weight",), _KINDS

NOMIC_BERT = Architecture(
    classes=("NomicBertModel",),
    gguf="nomic-bert",
    rules=_outer(),
    layer_rules=(
        *_projections(f"{_OLDER}.attn.Wqkv", _NOMIC),
        *_either(f"{_OLDER}.attn.out_proj", f"{_LAYER}.self_attn.o_proj", "blk.{i}.attn_output", _HIDDEN, _NOMIC),
        *_either(f"{_OLDER}.mlp.fc11", f"{_LAYER}.mlp.up_proj", "blk.{i}.ffn_up", ("ffn", "hidden"), _NOMIC),
        *_either(f"{_OLDER}.mlp.fc12", f"{_LAYER}.mlp.gate_proj", "blk.{i}.ffn_gate", ("ffn", "hidden"), _NOMIC),
        *_either(f"{_OLDER}.mlp.fc2", f"{_LAYER}.mlp.down_proj", "blk.{i}.ffn_down", ("hidden", "ffn"), _NOMIC),
        *_norms(),
    ),
    hyper_parameters=_rotary("nomic-bert", 1000.0),
    refuse=_refuse_nomic,
    defaults={
        "vocab_size": 30528,
        "layer_norm_eps": 1e-12,
        "hidden_act": "silu",
        "type_vocab_size": 2,
        "max_position_embeddings": 2048,
    },
    dims=_typed_dims,
    ignore=(*IGNORED, r"pooler\..*"),
    encoder=True,
)

JINA_V3 = Architecture(
    classes=("JinaEmbeddingsV3Model",),
    gguf="jina-bert-v3",
    rules=_outer(),
    layer_rules=(
        *_projections(f"{_OLDER}.mixer.Wqkv", _JINA),
        *_either(f"{_OLDER}.mixer.out_proj", f"{_LAYER}.self_attn.o_proj", "blk.{i}.attn_output", _HIDDEN, _JINA),
        *_either(f"{_OLDER}.mlp.fc1", f"{_LAYER}.mlp.fc1", "blk.{i}.ffn_up", ("ffn", "hidden"), _JINA),
        *_either(f"{_OLDER}.mlp.fc2", f"{_LAYER}.mlp.fc2", "blk.{i}.ffn_down", ("hidden", "ffn"), _JINA),
        *_norms(),
    ),
    hyper_parameters=_rotary("jina-bert-v3", 20_000.0),
    refuse=_refuse_jina,
    defaults={
        "vocab_size": 250002,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "type_vocab_size": 1,
        "max_position_embeddings": 8194,
    },
    dims=_typed_dims,
    prefixes=("roberta. -> ",),
    ignore=(*IGNORED, r"pooler\..*"),
    encoder=True,
)
