"""What an architecture declares, and what follows from it: the tensors and hyper-parameters of a GGUF file.

An architecture is one `Architecture` value: names, shapes and a few transforms. Everything else here is shared.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runtime.errors import ModelError
from targets.base import Problem
from targets.widths import KV_HEADS, NEURONS, is_uneven, layer_widths
from targets.widths import problems as padding_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    import numpy.typing as npt

    from targets.facts import ModelFacts, TensorFact
    from targets.gguf.architectures.views import View
    from targets.gguf.keyvalue import KeyValue

    Function = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]

Config = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """How one stored tensor, or several, become one GGUF tensor. `{i}` in the names stands for the layer.

    shape: dimension names (see `dimensions`), outermost first
    interleave: "q" or "kv": the rows of each head lie as two halves (Hugging Face's rotary layout) and llama.cpp wants
        them in pairs; names the dimension that counts the heads
    plus: added to every value (Gemma stores its norms minus one)
    when: whether this config has the tensor; None means always. layers: the same for one layer of it
    each: the dimension that `{e}` in the source counts: so many stored tensors, one behind the other
    stored: dimension names as stored, where those differ from `shape`
    view: the parts of the stored tensor in the order of the file (see `views`); None for all of it as it lies
    function: of every value, float32 to float32
    precise: float32 whatever the preset is: llama.cpp's operator takes nothing else, or llama-quantize leaves it alone
    otherwise: another way in which the same tensor is stored; it is looked for where this one's source is not there
    """

    source: str
    target: str
    shape: tuple[str, ...]
    interleave: str = ""
    plus: float = 0.0
    when: Callable[[Config], bool] | None = None
    layers: Callable[[Config, int], bool] | None = None
    each: str = ""
    stored: tuple[str, ...] = ()
    view: View | None = None
    function: Function | None = None
    precise: bool = False
    otherwise: Rule | None = None

    def names(self, layer: int, dims: Mapping[str, int]) -> list[str]:
        """The stored tensors of a layer, in their order."""
        count = dims[self.each] if self.each else 1
        return [self.source.format(i=layer, e=e) for e in range(count)]

    def form(self, stored: Mapping[str, TensorFact], layer: int) -> Rule:
        """This rule or the one of its alternatives whose source is there; this one where none is."""
        rule: Rule | None = self
        while rule is not None and rule.source.format(i=layer, e=0) not in stored:
            rule = rule.otherwise
        return rule or self

    def applies(self, config: Config, layer: int) -> bool:
        """Whether a layer of this config has the tensor."""
        return (self.when is None or self.when(config)) and (self.layers is None or self.layers(config, layer))

    def stored_shape(self, dims: Mapping[str, int]) -> tuple[int, ...]:
        """Of each stored tensor."""
        return tuple(dims[name] for name in self.stored or self.shape[bool(self.each) :])


@dataclass(frozen=True)
class OutTensor:
    """A tensor to write: where its values come from and what is done to them on the way.

    source: the stored tensor that it is, whole; None where `values` holds a generated one (float32), or `pieces`
        what it consists of: stored tensors or runs of their rows, one behind the other
    interleave_heads: number of heads whose rows are interleaved; 0 for none
    function, precise: as in `Rule`
    """

    name: str
    shape: tuple[int, ...]
    source: TensorFact | None
    interleave_heads: int = 0
    plus: float = 0.0
    values: npt.NDArray[np.float32] | None = None
    pieces: tuple[TensorFact, ...] = ()
    function: Function | None = None
    precise: bool = False

    @property
    def sources(self) -> tuple[TensorFact, ...]:
        """What it is read from, in order; empty for a generated one."""
        return self.pieces if self.source is None else (self.source,)


@dataclass(frozen=True)
class Architecture:
    """A model family, declared.

    classes: names that config.json's `architectures` uses for it
    gguf: general.architecture; uneven: that of the same graph with widths a layer, empty where llama.cpp has none
    rules: tensors that stand once; layer_rules: those of every layer
    hyper_parameters: config -> key/values below `{gguf}.`
    refuse: config -> what llama.cpp cannot express of it
    extra: config -> generated tensors (rope factors)
    defaults: what transformers takes where config.json is silent
    read: config -> the same in the names and forms that all families share (`num_hidden_layers`, not `n_layer`)
    dims: config -> dimensions that only this family has
    notes: config -> what llama.cpp computes otherwise than transformers, a line each, for people
    instead: config -> the entry that it is written by, where that is another one; None for this one
    prefixes: "stored -> plain" beginnings of names in multimodal wrappers
    ignore: patterns of stored names that are not weights of the text model
    encoder: reads a text at once and generates nothing: its task decides how the file pools (`targets.gguf.encoders`)
    """

    classes: tuple[str, ...]
    gguf: str
    rules: tuple[Rule, ...]
    layer_rules: tuple[Rule, ...]
    hyper_parameters: Callable[[Config], list[KeyValue]]
    refuse: Callable[[Config], list[Problem]]
    extra: Callable[[Config], list[OutTensor]] = lambda _config: []
    defaults: Config = field(default_factory=dict)
    read: Callable[[Config], Config] = lambda config: config
    dims: Callable[[Config], dict[str, int]] = lambda _config: {}
    notes: Callable[[Config], list[str]] = lambda _config: []
    instead: Callable[[Config], Architecture | None] = lambda _config: None
    prefixes: tuple[str, ...] = ()
    ignore: tuple[str, ...] = (r".*rotary_emb\.inv_freq",)
    uneven: str = ""
    encoder: bool = False


def required(config: Config, key: str) -> object:
    """A value of config.json. Raises ModelError where it is missing."""
    if config.get(key) is None:
        raise ModelError(f"config.json: '{key}' is missing; take the config.json that belongs to these weights")
    return config[key]


def positive(config: Config, key: str) -> int:
    """A count of config.json. Raises ModelError where it is not a positive whole number."""
    value = required(config, key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ModelError(f"config.json: '{key}' is {value!r}, not a positive whole number")
    return value


def number(config: Config, key: str) -> float:
    """A number of config.json. Raises ModelError where it is something else."""
    value = required(config, key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ModelError(f"config.json: '{key}' is {value!r}, not a number")
    return float(value)


def n_heads(config: Config) -> int:
    """Query heads."""
    return positive(config, "num_attention_heads")


def n_kv_heads(config: Config) -> int:
    """Key/value heads; as many as query heads where the config names none."""
    return positive(config, "num_key_value_heads") if config.get("num_key_value_heads") else n_heads(config)


def head_dim(config: Config) -> int:
    """Width of one head."""
    return (
        positive(config, "head_dim") if config.get("head_dim") else positive(config, "hidden_size") // n_heads(config)
    )


def dimensions(config: Config) -> dict[str, int]:
    """The named dimensions that rules are written in; of the widest layer where they have widths of their own."""
    return {
        "vocab": positive(config, "vocab_size"),
        "hidden": positive(config, "hidden_size"),
        "ffn": positive(config, "intermediate_size"),
        "head": head_dim(config),
        "q": n_heads(config) * head_dim(config),
        "kv": n_kv_heads(config) * head_dim(config),
        "heads": n_heads(config),
        "kv_heads": n_kv_heads(config),
        "one": 1,
    }


def layer_configs(config: Config) -> list[Config]:
    """The configuration of each layer, its own widths in place of the model's."""
    if not is_uneven(config):
        return [config] * positive(config, "num_hidden_layers")
    groups = n_heads(config) // n_kv_heads(config)
    return [
        {**config, NEURONS: ffn, KV_HEADS: heads, "num_attention_heads": heads * groups, "head_dim": head_dim(config)}
        for ffn, heads in zip(layer_widths(config, NEURONS), layer_widths(config, KV_HEADS), strict=True)
    ]


def is_tied(config: Config) -> bool:
    """Whether the output layer is the embedding table."""
    return bool(config.get("tie_word_embeddings", False))


OWN_HEAD = "lm_head_is_stored"
"""An entry that `full_config` adds: whether the checkpoint has an output layer, whatever its configuration says."""
_MOST = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"), 512),
    **dict.fromkeys(("num_experts", "num_local_experts"), 1024),
    **dict.fromkeys(
        ("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads", "num_kv_heads"), 4096
    ),
}
"""Of layers and experts llama.cpp's own limits (src/llama-hparams.h), of heads more than any model has."""


def full_config(architecture: Architecture, facts: ModelFacts) -> Config:
    """config.json with the family's defaults for what it leaves out; an explicit null stays null.

    Raises ModelError for counts that no engine takes: a rule is written out for each layer and each expert.
    """
    for key, most in _MOST.items():
        count = facts.config.get(key)
        if isinstance(count, int | float) and count > most:
            raise ModelError(f"config.json: '{key}' is {count}, more than {most}; save the file again")
    stored = {OWN_HEAD: "lm_head.weight" in facts.tensors}
    return architecture.read({**architecture.defaults, **facts.config, **stored})


def renamed(config: Config, names: Mapping[str, str]) -> Config:
    """The config with its entries under shared names too, where it has none of those. names: shared name -> its own."""
    return {**{shared: config[own] for shared, own in names.items() if config.get(own) is not None}, **config}


def plan_tensors(
    architecture: Architecture, config: Config, facts: ModelFacts
) -> tuple[list[OutTensor], list[Problem]]:
    """Account for every stored tensor: what is written, in order, and every problem found on the way.

    config: as `full_config` gives it
    """
    layers = layer_configs(config)
    dims = [{**dimensions(layer), **architecture.dims(layer)} for layer in layers]
    stored = _strip(architecture, facts.tensors)
    planned: list[OutTensor] = []
    problems: list[Problem] = []
    consumed: set[str] = set()
    for rule, layer in _expand(architecture, positive(config, "num_hidden_layers")):
        form = rule.form(stored, layer)
        names = form.names(layer, dims[layer])
        consumed.update(names)
        if not rule.applies(config, layer):
            continue
        found = [
            Problem(name, "is missing from the weights", "take a complete checkpoint")
            for name in names
            if name not in stored
        ]
        sources = [stored[name] for name in names if name in stored]
        found += [problem for fact in sources for problem in _check_tensor(fact, form.stored_shape(dims[layer]))]
        problems += found
        if not found:
            heads = {"": 0, "q": n_heads(layers[layer]), "kv": n_kv_heads(layers[layer])}[rule.interleave]
            planned.append(_out_tensor(rule, form, layer, sources, dims[layer], heads))
            scalings = [fact.scaling for fact in sources if fact.scaling is not None]
            grouped = any(fact.grouping is not None for fact in sources)
            if form.view is not None and (grouped or any(one.scaling in scalings for one in planned[-1].pieces)):
                what = f"is stored in {'4' if grouped else '8'} bits and has to be cut into parts, scales and all"
                problems.append(Problem(sources[0].name, what, "export the bf16 checkpoint"))
    problems += [
        Problem(
            name, f"is not part of {facts.architecture} as packlight knows it", "report the model, or remove the tensor"
        )
        for name in sorted(stored.keys() - consumed)
        if not any(re.fullmatch(pattern, name) for pattern in architecture.ignore)
    ]
    return planned + architecture.extra(config), problems + padding_problems(facts.tensors)


def _out_tensor(
    rule: Rule, form: Rule, layer: int, sources: list[TensorFact], dims: Mapping[str, int], heads: int
) -> OutTensor:
    """The tensor that a rule makes of stored ones. form: the way in which they are stored."""
    whole = form.view is None and len(sources) == 1
    pieces = [piece for fact in sources for piece in (form.view(fact, dims) if form.view else (fact,))]
    return OutTensor(
        name=rule.target.format(i=layer),
        shape=tuple(dims[name] for name in rule.shape),
        source=sources[0] if whole else None,
        interleave_heads=heads,
        plus=rule.plus,
        pieces=() if whole else tuple(pieces),
        function=rule.function,
        precise=rule.precise,
    )


def _expand(architecture: Architecture, n_layers: int) -> list[tuple[Rule, int]]:
    """Every rule with its layer, in file order."""
    whole = [(rule, 0) for rule in architecture.rules]
    return whole + [(rule, layer) for layer in range(n_layers) for rule in architecture.layer_rules]


def _strip(architecture: Architecture, tensors: dict[str, TensorFact]) -> dict[str, TensorFact]:
    """Stored tensors by the name that the rules use."""
    stripped = {}
    for name, fact in tensors.items():
        for prefix, replacement in (entry.split(" -> ") for entry in architecture.prefixes):
            if name.startswith(prefix):
                name = replacement + name.removeprefix(prefix)
                break
        stripped[name] = fact
    return stripped


def _check_tensor(fact: TensorFact, shape: tuple[int, ...]) -> list[Problem]:
    problems = []
    if fact.shape != shape:
        problems.append(
            Problem(
                fact.name,
                f"has shape {list(fact.shape)}, config.json says {list(shape)}",
                "take the config.json that belongs to these weights",
            )
        )
    if not fact.is_float:
        problems.append(
            Problem(fact.name, f"is stored as {fact.dtype}", "export the bf16, f16 or f32 checkpoint of this model")
        )
    return problems
