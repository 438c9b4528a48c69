"""The encoders that can be written as ONNX: their tensors' names, declared, and what config.json says of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runtime.errors import UnsupportedError
from targets.base import Problem
from targets.gguf.architectures.base import number, positive
from targets.pooling import read_pooling
from targets.task import FEATURE_EXTRACTION, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION

if TYPE_CHECKING:
    from targets.facts import ModelFacts, TensorFact
    from targets.pooling import Pooling

    Config = dict[str, Any]

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


@dataclass(frozen=True)
class EncoderFamily:
    """A family of the BERT layout, declared. Names are of modules; each has a weight and a bias unless it says not.

    prefix: what stands before the names where the encoder is part of a larger class
    layers: module of a layer, `{i}` for its number; modules: role -> name below it
    heads: task -> modules between the hidden states of the first token (or of each) and the logits, in order
    head_activation: between the two modules of a head: "Tanh" or "Relu"
    keys: config.json's own names for "layers", "heads", "hidden", "ffn", "activation", "eps"
    ignore: patterns of stored names that belong to other heads
    """

    prefix: str
    embeddings: dict[str, str]
    layers: str
    modules: dict[str, str]
    heads: dict[str, tuple[str, ...]]
    head_activation: str = "Tanh"
    keys: dict[str, str] = field(default_factory=dict)
    defaults: Config = field(default_factory=dict)
    padded_positions: bool = False
    ignore: tuple[str, ...] = (r".*position_ids", r"cls\..*", r"lm_head\..*", r".*pooler\..*")

    def key(self, name: str) -> str:
        """config.json's name for a setting."""
        return self.keys.get(name, _KEYS[name])


_KEYS = {
    "layers": "num_hidden_layers", "heads": "num_attention_heads", "hidden": "hidden_size",
    "ffn": "intermediate_size", "activation": "hidden_act", "eps": "layer_norm_eps",
}  # fmt: skip
_EMBEDDINGS = {
    "word": "embeddings.word_embeddings", "position": "embeddings.position_embeddings",
    "type": "embeddings.token_type_embeddings", "norm": "embeddings.LayerNorm",
}  # fmt: skip
_BERT_LAYER = {
    "attn_q": "attention.self.query", "attn_k": "attention.self.key", "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense", "attn_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense", "ffn_down": "output.dense", "ffn_norm": "output.LayerNorm",
}  # fmt: skip
_BERT = EncoderFamily(
    prefix="bert.", embeddings=_EMBEDDINGS, layers="encoder.layer.{i}.", modules=_BERT_LAYER,
    heads={TEXT_CLASSIFICATION: ("bert.pooler.dense", "classifier"), TOKEN_CLASSIFICATION: ("classifier",)},
    defaults={"layer_norm_eps": 1e-12, "hidden_act": "gelu", "type_vocab_size": 2},
)  # fmt: skip
_ROBERTA = EncoderFamily(
    prefix="roberta.", embeddings=_EMBEDDINGS, layers="encoder.layer.{i}.", modules=_BERT_LAYER,
    heads={TEXT_CLASSIFICATION: ("classifier.dense", "classifier.out_proj"), TOKEN_CLASSIFICATION: ("classifier",)},
    defaults={"layer_norm_eps": 1e-12, "hidden_act": "gelu", "type_vocab_size": 2, "pad_token_id": 1},
    padded_positions=True,
)  # fmt: skip
_DISTILBERT = EncoderFamily(
    prefix="distilbert.", embeddings={key: name for key, name in _EMBEDDINGS.items() if key != "type"},
    layers="transformer.layer.{i}.",
    modules={
        "attn_q": "attention.q_lin", "attn_k": "attention.k_lin", "attn_v": "attention.v_lin",
        "attn_output": "attention.out_lin", "attn_norm": "sa_layer_norm",
        "ffn_up": "ffn.lin1", "ffn_down": "ffn.lin2", "ffn_norm": "output_layer_norm",
    },
    heads={TEXT_CLASSIFICATION: ("pre_classifier", "classifier"), TOKEN_CLASSIFICATION: ("classifier",)},
    head_activation="Relu",
    keys={"layers": "n_layers", "heads": "n_heads", "hidden": "dim", "ffn": "hidden_dim", "activation": "activation"},
    defaults={"layer_norm_eps": 1e-12, "activation": "gelu"},
    ignore=(r"vocab_.*",),
)  # fmt: skip

FAMILIES = {"Bert": _BERT, "Roberta": _ROBERTA, "XLMRoberta": _ROBERTA, "Camembert": _ROBERTA,
            "DistilBert": _DISTILBERT}  # fmt: skip
"""By the beginning of the class names: `BertModel`, `BertForTokenClassification`, …"""


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder with its head.

    activation: "gelu", "gelu_tanh" or "relu"; positions: rows of the position table; first_position: of the first token
    max_tokens: longest text, special tokens counted; pooling: of a sentence embedding, or None; labels: of the head
    """

    family: EncoderFamily
    task: str
    n_layers: int
    n_heads: int
    hidden: int
    ffn: int
    vocab: int
    eps: float
    activation: str
    positions: int
    first_position: int
    pooling: Pooling | None
    labels: int

    @property
    def max_tokens(self) -> int:
        """Longest text that the model takes."""
        return self.positions - self.first_position


def family_of(name: str) -> EncoderFamily:
    """The family of a model class. Raises UnsupportedError that lists the known ones."""
    match = re.fullmatch(r"(\w+?)(Model|For\w+)", name)
    if match is None or match[1] not in FAMILIES:
        raise UnsupportedError(
            f"config.json: architecture '{name}' cannot be written as ONNX yet; known encoders: {', '.join(FAMILIES)}"
        )
    return FAMILIES[match[1]]


def encoder_spec(facts: ModelFacts, task: str, tensors: dict[str, TensorFact]) -> EncoderSpec:
    """The spec of a model that `account` finds nothing in. Raises ModelError for missing or senseless entries."""
    family = family_of(facts.architecture)
    config = {**family.defaults, **facts.config}
    positions = tensors[f"{family.embeddings['position']}.weight"].shape[0]
    head = family.heads.get(task)
    return EncoderSpec(
        family=family,
        task=task,
        n_layers=positive(config, family.key("layers")),
        n_heads=positive(config, family.key("heads")),
        hidden=positive(config, family.key("hidden")),
        ffn=positive(config, family.key("ffn")),
        vocab=tensors[f"{family.embeddings['word']}.weight"].shape[0],
        eps=number(config, family.key("eps")),
        activation=ACTIVATIONS[str(config[family.key("activation")])],
        positions=positions,
        # RoBERTa numbers tokens from behind the padding's own row.
        first_position=int(config["pad_token_id"]) + 1 if family.padded_positions else 0,
        pooling=read_pooling(facts.path) if task == FEATURE_EXTRACTION else None,
        labels=tensors[f"{head[-1]}.weight"].shape[0] if head else 0,
    )


def account(facts: ModelFacts, task: str) -> tuple[dict[str, TensorFact], list[Problem]]:
    """Every tensor that the graph needs, by its name without the family's prefix, and every problem.

    Older checkpoints call a norm's weight and bias gamma and beta.
    """
    family = family_of(facts.architecture)
    config = {**family.defaults, **facts.config}
    problems = _refusals(family, config)
    stored = {_plain(name, family): fact for name, fact in facts.tensors.items()}
    hidden, ffn = positive(config, family.key("hidden")), positive(config, family.key("ffn"))
    wanted: dict[str, tuple[int, ...] | None] = {}
    for key, name in family.embeddings.items():
        wanted[f"{name}.weight"] = (hidden,) if key == "norm" else None
        if key == "norm":
            wanted[f"{name}.bias"] = (hidden,)
    shapes = {"ffn_up": (ffn, hidden), "ffn_down": (hidden, ffn), "attn_norm": (hidden,), "ffn_norm": (hidden,)}
    for layer in range(positive(config, family.key("layers"))):
        for role, module in family.modules.items():
            name, shape = family.layers.format(i=layer) + module, shapes.get(role, (hidden, hidden))
            wanted |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for module in family.heads.get(task, ()):
        wanted |= {f"{module.removeprefix(family.prefix)}.weight": None,
                   f"{module.removeprefix(family.prefix)}.bias": None}  # fmt: skip
    for name, expected in wanted.items():
        problems += _check(name, stored.get(name), expected, hidden)
    heads = {module.removeprefix(family.prefix) for modules in family.heads.values() for module in modules}
    problems += [
        Problem(name, f"is not part of {facts.architecture} as packlight knows it", "remove the tensor, or report it")
        for name in sorted(stored.keys() - wanted.keys())
        if not any(re.fullmatch(pattern, name) for pattern in family.ignore) and name.rpartition(".")[0] not in heads
    ]
    return {name: fact for name, fact in stored.items() if name in wanted}, problems


def _plain(name: str, family: EncoderFamily) -> str:
    """A stored name without the prefix, and with the names of today."""
    name = name.removeprefix(family.prefix)
    return re.sub(r"(LayerNorm\.)(gamma|beta)$", lambda m: m[1] + {"gamma": "weight", "beta": "bias"}[m[2]], name)


def _check(name: str, fact: TensorFact | None, shape: tuple[int, ...] | None, hidden: int) -> list[Problem]:
    if fact is None:
        return [Problem(name, "is missing from the weights", "take a complete checkpoint")]
    found = []
    expected = shape or (*fact.shape[:-1], hidden)
    if (shape is not None or not name.endswith("bias")) and fact.shape != expected:
        what = f"has shape {list(fact.shape)}, config.json says {list(expected)}"
        found.append(Problem(name, what, "take the config.json that belongs to these weights"))
    if not fact.is_float:
        found.append(Problem(name, f"is stored as {fact.dtype}", "export the bf16, f16 or f32 checkpoint"))
    return found


def _refusals(family: EncoderFamily, config: Config) -> list[Problem]:
    found = []
    activation = str(config[family.key("activation")])
    if activation not in ACTIVATIONS:
        what = f"'{activation}' is not supported"
        found.append(Problem("config.json: hidden_act", what, f"known: {', '.join(ACTIVATIONS)}"))
    if config.get("position_embedding_type", "absolute") != "absolute":
        found.append(
            Problem("config.json: position_embedding_type", "is not absolute", "this variant is not supported")
        )
    if config.get("is_decoder"):
        found.append(Problem("config.json: is_decoder", "is on", "only encoders of this family are exported"))
    if config.get("quantization_config"):
        found.append(
            Problem("config.json: quantization_config", "the weights are quantized already", "export the original")
        )
    if positive(config, family.key("hidden")) % positive(config, family.key("heads")):
        found.append(Problem("config.json: hidden_size", "does not divide into the heads", "check the config.json"))
    return found
