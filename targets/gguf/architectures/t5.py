"""T5 and mT5: an encoder and a decoder that looks at what the encoder makes of a text.

llama.cpp's graph is src/models/t5.cpp. It does not divide by the root of the width before the table is multiplied by,
as T5 of version 1.0 does; that factor goes into the decoder's last norm here, which stands right before it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from runtime.errors import ModelError
from targets.base import Problem
from targets.gguf.architectures.base import OWN_HEAD, Architecture, Config, Rule, positive, renamed
from targets.gguf.architectures.common import base_hyper_parameters, base_refusals, fixed
from targets.gguf.keyvalue import KeyValue, uint32

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

_RELU, _GATED = "relu", "gated-gelu"
_NAMES = {
    "hidden_size": "d_model", "intermediate_size": "d_ff", "head_dim": "d_kv", "num_attention_heads": "num_heads",
    "rms_norm_eps": "layer_norm_epsilon", "max_position_embeddings": "n_positions",
}  # fmt: skip
_ENCODER, _DECODER = "encoder.block.{i}.layer", "decoder.block.{i}.layer"


def _read(config: Config) -> Config:
    """In shared names; `num_hidden_layers` is the larger of the two numbers, `num_layers` stays the encoder's."""
    found = renamed(config, _NAMES)
    decoder = config["num_layers"] if config.get("num_decoder_layers") is None else config["num_decoder_layers"]
    counts = [positive({"num_layers": count}, "num_layers") for count in (config["num_layers"], decoder)]
    # As in transformers' T5Config, which makes the one of the other when it reads the published files.
    scaled = bool(config.get("scale_decoder_outputs", config.get("tie_word_embeddings") is not False))
    more = {"num_decoder_layers": counts[1], "num_hidden_layers": max(counts), "scale_decoder_outputs": scaled}
    return {**found, **more}


def _in_encoder(config: Config, layer: int) -> bool:
    return layer < positive(config, "num_layers")


def _in_decoder(config: Config, layer: int) -> bool:
    return layer < positive(config, "num_decoder_layers")


def _gated(config: Config) -> bool:
    return config.get("feed_forward_proj") == _GATED


def _plain(config: Config) -> bool:
    return not _gated(config)


def _scaled(config: Config) -> bool:
    """Whether what the table is multiplied by is divided by the root of the width before."""
    return bool(config["scale_decoder_outputs"])


def _unscaled(config: Config) -> bool:
    return not _scaled(config)


def _by_root_of_width(weight: Floats) -> Floats:
    scaled: Floats = weight * weight.dtype.type(weight.shape[-1] ** -0.5)
    return scaled


def _half(prefix: str, target: str, attentions: tuple[tuple[str, str], ...]) -> tuple[Rule, ...]:
    """The layers of the encoder or of the decoder. attentions: stored and new name of each, in their order"""
    layers = _in_encoder if prefix == _ENCODER else _in_decoder
    rules = []
    for place, (stored, new) in enumerate(attentions):
        rules.append(Rule(f"{prefix}.{place}.layer_norm.weight", f"{target}.{new}_norm.weight", ("hidden",)))
        for name in "qkv":
            rules.append(
                Rule(f"{prefix}.{place}.{stored}.{name}.weight", f"{target}.{new}_{name}.weight", ("q", "hidden"))
            )
        rules.append(Rule(f"{prefix}.{place}.{stored}.o.weight", f"{target}.{new}_o.weight", ("hidden", "q")))
    last = f"{prefix}.{len(attentions)}"
    dense, wide, narrow = f"{last}.DenseReluDense", ("ffn", "hidden"), ("hidden", "ffn")
    rules += [
        Rule(f"{last}.layer_norm.weight", f"{target}.ffn_norm.weight", ("hidden",)),
        Rule(f"{dense}.wi.weight", f"{target}.ffn_up.weight", wide, when=_plain),
        Rule(f"{dense}.wi_0.weight", f"{target}.ffn_gate.weight", wide, when=_gated),
        Rule(f"{dense}.wi_1.weight", f"{target}.ffn_up.weight", wide, when=_gated),
        Rule(f"{dense}.wo.weight", f"{target}.ffn_down.weight", narrow),
    ]
    bias = Rule(
        f"{prefix}.0.SelfAttention.relative_attention_bias.weight",
        f"{target}.attn_rel_b.weight",
        ("buckets", "heads"),
        layers=lambda _config, layer: layer == 0,  # of all layers
        precise=True,
    )
    return bias, *(dataclasses.replace(rule, layers=layers) for rule in rules)


def _embedding(*sources: str) -> Rule:
    """The one table of tokens, under the first of the names that is there."""
    rule: Rule | None = None
    for source in reversed(sources):
        rule = Rule(source, "token_embd.weight", ("vocab", "hidden"), otherwise=rule)
    assert rule is not None
    return rule


_LAST = ("decoder.final_layer_norm.weight", "dec.output_norm.weight", ("hidden",))


def _hyper_parameters(config: Config) -> list[KeyValue]:
    entries = base_hyper_parameters(config, "t5", rotary=False)
    return [
        *(
            uint32("t5.block_count", positive(config, "num_layers")) if e.key == "t5.block_count" else e
            for e in entries
        ),
        uint32("t5.decoder_block_count", positive(config, "num_decoder_layers")),
        uint32("t5.attention.relative_buckets_count", positive(config, "relative_attention_num_buckets")),
        uint32("t5.decoder_start_token_id", _start(config)),
    ]


def _start(config: Config) -> int:
    """The token that the decoder begins with. Raises ModelError where it is no token."""
    named = config.get("decoder_start_token_id")
    start = config.get("pad_token_id") if named is None else named
    if not isinstance(start, int) or isinstance(start, bool) or not 0 <= start < positive(config, "vocab_size"):
        raise ModelError(f"config.json: 'decoder_start_token_id' is {start!r}, no token; save the model again")
    return start


def _refuse(config: Config) -> list[Problem]:
    found = [*base_refusals(config, _RELU), *fixed(config, relative_attention_max_distance=128)]
    if positive(config, "num_decoder_layers") > positive(config, "num_layers"):
        what = "is more than num_layers"
        found.append(Problem("config.json: num_decoder_layers", what, "llama.cpp does not load such a file"))
    kind = config.get("feed_forward_proj")
    if kind not in (_RELU, _GATED):
        what = f"is '{kind}'"
        found.append(Problem("config.json: feed_forward_proj", what, f"llama.cpp has '{_RELU}' and '{_GATED}'"))
    return found


_DEFAULTS: Config = {
    "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8,
    "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": _RELU, "n_positions": 512, "pad_token_id": 0,
}  # fmt: skip

T5 = Architecture(
    classes=("T5ForConditionalGeneration",),
    gguf="t5",
    rules=(
        _embedding("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
        Rule("encoder.final_layer_norm.weight", "enc.output_norm.weight", ("hidden",)),
        Rule(*_LAST, when=_scaled, function=_by_root_of_width),
        Rule(*_LAST, when=_unscaled),
        Rule("lm_head.weight", "output.weight", ("vocab", "hidden"), when=lambda config: bool(config[OWN_HEAD])),
    ),
    layer_rules=(
        *_half(_ENCODER, "enc.blk.{i}", (("SelfAttention", "attn"),)),
        *_half(_DECODER, "dec.blk.{i}", (("SelfAttention", "attn"), ("EncDecAttention", "cross_attn"))),
    ),
    hyper_parameters=_hyper_parameters,
    refuse=_refuse,
    defaults=_DEFAULTS,
    read=_read,
    dims=lambda config: {"buckets": positive(config, "relative_attention_num_buckets")},
    # The tables beside the shared one are copies of it; the other attention has no distances, whatever is stored.
    ignore=(r"(encoder|decoder)\.embed_tokens\.weight", r".*\.EncDecAttention\.relative_attention_bias\.weight"),
)

MT5 = dataclasses.replace(
    T5,
    classes=("MT5ForConditionalGeneration",),
    defaults={
        **_DEFAULTS,
        "vocab_size": 250112,
        "d_ff": 1024,
        "num_layers": 8,
        "num_heads": 6,
        "feed_forward_proj": _GATED,
    },
    read=lambda config: {**_read(config), "scale_decoder_outputs": False},
)
