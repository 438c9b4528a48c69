"""Encoders of BERT's layout with a learned row for every position: BERT, RoBERTa, XLM-RoBERTa, CamemBERT, DistilBERT.

llama.cpp's graph is src/models/bert.cpp. All tokens are of type 0. A classifier's head is what `cls` and `cls.output`
make of the first token, with a tanh between the two (src/llama-graph.cpp).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.errors import ModelError
from targets.gguf.architectures.base import Architecture, Config, Rule, positive, renamed
from targets.gguf.architectures.common import base_hyper_parameters, base_refusals, fixed, linear, only_if, square_heads
from targets.gguf.architectures.views import rows
from targets.gguf.keyvalue import KeyValue, array, boolean, uint32

if TYPE_CHECKING:
    from collections.abc import Mapping

    from targets.base import Problem
    from targets.facts import TensorFact

GELUS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast")
"""llama.cpp has the approximation by tanh for all of them; the exact one differs from it by 5e-4 at most."""
IGNORED = (r".*position_ids", r".*token_type_ids", r"cls\..*", r"lm_head\..*", r".*rotary_emb\.inv_freq")
"""Buffers, and heads of the training that nothing here reads."""
_MOST_LABELS = 100_000
_HIDDEN = ("hidden", "hidden")


def is_classifier(config: Config) -> bool:
    """Whether config.json names a classifier of texts."""
    names = config.get("architectures")
    return isinstance(names, list) and bool(names) and str(names[0]).endswith("ForSequenceClassification")


def labels(config: Config) -> list[str]:
    """The names of a classifier's labels in their order; two where config.json is silent, as in transformers.

    Raises ModelError for what is no list of labels.
    """
    named = config.get("id2label")
    if isinstance(named, dict) and named:
        numbered = {str(key): str(text) for key, text in named.items()}
        if set(numbered) != {str(number) for number in range(len(numbered))}:
            raise ModelError("config.json: id2label has not one entry for each number from 0; save the model again")
        return [numbered[str(number)] for number in range(len(numbered))]
    count = positive({"num_labels": 2, **config}, "num_labels")
    if count > _MOST_LABELS:
        raise ModelError(f"config.json: 'num_labels' is {count}, more than {_MOST_LABELS}; save the model again")
    return [f"LABEL_{number}" for number in range(count)]


def norm(source: str, target: str) -> tuple[Rule, Rule]:
    """A layer norm, also under the names gamma and beta that BERT's first checkpoints have."""
    older = {"weight": "gamma", "bias": "beta"}
    weight, bias = (
        Rule(
            f"{source}.{name}",
            f"{target}.{name}",
            ("hidden",),
            otherwise=Rule(f"{source}.{old}", f"{target}.{name}", ("hidden",)),
        )
        for name, old in older.items()
    )
    return weight, bias


def encoder_hyper_parameters(config: Config, arch: str, context: int, n_types: int) -> list[KeyValue]:
    """Sizes and epsilon, that attention looks both ways, kinds of tokens, and of a classifier its labels.

    context: the longest text, special tokens counted; n_types: rows of the table of token types, 1 where it has none
    """
    entries = base_hyper_parameters(config, arch, layer_norm=True, rotary=False)
    key = f"{arch}.context_length"
    return [
        *(uint32(key, context) if entry.key == key else entry for entry in entries),
        boolean(f"{arch}.attention.causal", False),
        uint32("tokenizer.ggml.token_type_count", n_types),
        *([array(f"{arch}.classifier.output_labels", labels(config), "STRING")] if is_classifier(config) else []),
    ]


def refuse_encoder(config: Config) -> list[Problem]:
    """What no encoder of these families can have in llama.cpp."""
    found = [*base_refusals(config, GELUS), *square_heads(config)]
    return [*found, *fixed(config, is_decoder=False, add_cross_attention=False)]


def _positions(fact: TensorFact, dims: Mapping[str, int]) -> tuple[TensorFact, ...]:
    """The rows that tokens use: RoBERTa counts its positions from behind the padding token's id."""
    return (rows(fact, dims["stored_positions"] - dims["positions"], dims["positions"]),)


def _embeddings(*, types: bool) -> tuple[Rule, ...]:
    kinds = Rule("embeddings.token_type_embeddings.weight", "token_types.weight", ("types", "hidden"), precise=True)
    return (
        Rule("embeddings.word_embeddings.weight", "token_embd.weight", ("vocab", "hidden")),
        *([kinds] if types else []),
        Rule(
            "embeddings.position_embeddings.weight",
            "position_embd.weight",
            ("positions", "hidden"),
            stored=("stored_positions", "hidden"),
            view=_positions,
            precise=True,
        ),
        *norm("embeddings.LayerNorm", "token_embd_norm"),
    )


def _layer(
    prefix: str, projections: tuple[str, str, str, str], feed_forward: tuple[str, str], norms: tuple[str, str]
) -> tuple[Rule, ...]:
    """A layer. projections: of q, k, v and the output; norms: behind the attention and behind the feed-forward."""
    targets = ("attn_q", "attn_k", "attn_v", "attn_output")
    return (
        *(
            rule
            for name, target in zip(projections, targets, strict=True)
            for rule in linear(f"{prefix}{name}", f"blk.{{i}}.{target}", _HIDDEN)
        ),
        *norm(f"{prefix}{norms[0]}", "blk.{i}.attn_output_norm"),
        *linear(f"{prefix}{feed_forward[0]}", "blk.{i}.ffn_up", ("ffn", "hidden")),
        *linear(f"{prefix}{feed_forward[1]}", "blk.{i}.ffn_down", ("hidden", "ffn")),
        *norm(f"{prefix}{norms[1]}", "blk.{i}.layer_output_norm"),
    )


def head(dense: str, out: str) -> tuple[Rule, ...]:
    """A classifier's head. dense, out: modules of its two projections."""
    found = (*linear(dense, "cls", _HIDDEN), *linear(out, "cls.output", ("labels", "hidden")))
    return only_if(is_classifier, *found)


def head_dims(config: Config) -> dict[str, int]:
    """How many labels there are."""
    return {"labels": len(labels(config))} if is_classifier(config) else {}


def _dims(config: Config) -> dict[str, int]:
    stored = positive(config, "max_position_embeddings")
    found = {"stored_positions": stored, "positions": stored - _skipped(config), **head_dims(config)}
    return found | ({"types": positive(config, "type_vocab_size")} if "type_vocab_size" in config else {})


def _skipped(config: Config) -> int:
    """Rows of the table of positions that no token uses; raises ModelError where those are all."""
    if not config.get("padded_positions"):
        return 0
    padding, stored = config.get("pad_token_id"), positive(config, "max_position_embeddings")
    if not isinstance(padding, int) or isinstance(padding, bool) or not 0 <= padding < stored - 1:
        what = f"'pad_token_id' is {padding!r}, with {stored} positions, which are counted from behind it"
        raise ModelError(f"config.json: {what}; take the config.json that belongs to these weights")
    return padding + 1


def _hyper_parameters(config: Config) -> list[KeyValue]:
    n_types = positive({"type_vocab_size": 1, **config}, "type_vocab_size")
    return encoder_hyper_parameters(config, "bert", _dims(config)["positions"], n_types)


def _refuse(config: Config) -> list[Problem]:
    return [*refuse_encoder(config), *fixed(config, position_embedding_type="absolute")]


_BERT_LAYER = _layer(
    "encoder.layer.{i}.",
    ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    ("intermediate.dense", "output.dense"),
    ("attention.output.LayerNorm", "output.LayerNorm"),
)
_BERT_DEFAULTS: Config = {
    "vocab_size": 30522,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "type_vocab_size": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}

BERT = Architecture(
    classes=("BertModel", "BertForSequenceClassification"),
    gguf="bert",
    rules=(*_embeddings(types=True), *head("pooler.dense", "classifier")),
    layer_rules=_BERT_LAYER,
    hyper_parameters=_hyper_parameters,
    refuse=_refuse,
    defaults=_BERT_DEFAULTS,
    dims=_dims,
    prefixes=("bert. -> ",),
    ignore=IGNORED,
    encoder=True,
)

ROBERTA = Architecture(
    classes=tuple(
        f"{family}{kind}"
        for family in ("Roberta", "XLMRoberta", "Camembert")
        for kind in ("Model", "ForSequenceClassification")
    ),
    gguf="bert",
    rules=(*_embeddings(types=True), *head("classifier.dense", "classifier.out_proj")),
    layer_rules=_BERT_LAYER,
    hyper_parameters=_hyper_parameters,
    refuse=_refuse,
    # A key of our own says where the positions begin.
    defaults={**_BERT_DEFAULTS, "vocab_size": 50265, "pad_token_id": 1},
    read=lambda config: {**config, "padded_positions": True},
    dims=_dims,
    prefixes=("roberta. -> ",),
    ignore=(*IGNORED, r"pooler\..*"),
    encoder=True,
)


def _distilbert(config: Config) -> Config:
    names = {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
    }
    return {key: value for key, value in renamed(config, names).items() if key != "type_vocab_size"}


DISTILBERT = Architecture(
    classes=("DistilBertModel",),
    gguf="bert",
    rules=_embeddings(types=False),
    layer_rules=_layer(
        "transformer.layer.{i}.",
        ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
        ("ffn.lin1", "ffn.lin2"),
        ("sa_layer_norm", "output_layer_norm"),
    ),
    hyper_parameters=_hyper_parameters,
    refuse=_refuse,
    defaults={
        "vocab_size": 30522,
        "dim": 768,
        "n_layers": 6,
        "n_heads": 12,
        "hidden_dim": 3072,
        "activation": "gelu",
        "max_position_embeddings": 512,
    },
    # transformers has this epsilon in its code.
    read=lambda config: {**_distilbert(config), "layer_norm_eps": 1e-12},
    dims=_dims,
    prefixes=("distilbert. -> ",),
    ignore=(*IGNORED, r"vocab_.*"),
    encoder=True,
)
