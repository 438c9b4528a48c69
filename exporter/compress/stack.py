"""Where a model of transformers keeps its layers, one after the other, and the attention in them."""

from __future__ import annotations

from typing import Any

from runtime.errors import ModelError

PLACES = ("layers", "encoder.layer", "transformer.layer", "encoder.layers")
"""Below the base model: of decoders and ModernBERT, of BERT and its kin, of DistilBERT, of others."""
OLDER = ("h", "blocks")
"""Of GPT-2, BLOOM, Falcon and MPT: these are run, not compressed."""
FORWARDS = (
    (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),
    (("intermediate.dense",), "output.dense"),
    (("ffn.lin1",), "ffn.lin2"),
    (("mlp.fc1",), "mlp.fc2"),
)
"""Below a layer, the matrices that make a feed-forward's neurons and the one that reads them: of decoders and Nomic
BERT, of BERT and its kin, of DistilBERT, of Jina Embeddings 3."""
ATTENTION = ("self_attn", "attention.self", "attention", "attn")
"""Below a layer, in the same order: what gives an attention map beside its output."""


def find_layers(model: Any) -> Any:  # noqa: ANN401 - a model of transformers, and its ModuleList
    """The layers; None where they are not looked for."""
    return next((found for place in PLACES if (found := _below(model.base_model, place)) is not None), None)


def layers_of(model: Any) -> Any:  # noqa: ANN401 - as above
    """The layers. Raises ModelError for a model that keeps them elsewhere."""
    found = find_layers(model)
    if found is None:
        raise ModelError(f"{type(model).__name__} keeps its layers where packlight does not look for them")
    return found


def decoder_layers(model: Any) -> Any:  # noqa: ANN401 - as above
    """As `layers_of`, for who only runs them: those of older families too."""
    older = next((found for place in OLDER if (found := _below(model.base_model, place)) is not None), None)
    return layers_of(model) if older is None else older


def name_of_layers(model: Any, layers: Any = None) -> str:  # noqa: ANN401 - as above
    """What the names of their weights begin with, "model.layers.": a number follows. Raises ModelError.

    layers: those that are meant, where `layers_of` does not find them
    """
    layers = layers_of(model) if layers is None else layers
    return next(f"{name}." for name, module in model.named_modules() if module is layers)


def put_layers(model: Any, layers: Any) -> None:  # noqa: ANN401 - as above
    """Other layers in their place. Raises ModelError."""
    path, _, own = name_of_layers(model)[:-1].rpartition(".")
    setattr(model.get_submodule(path), own, layers)


def find_attention(layer: Any) -> Any:  # noqa: ANN401 - a layer, and a module of it
    """The attention of a layer; None where it is not looked for."""
    return next((found for place in ATTENTION if (found := _below(layer, place)) is not None), None)


def find_forward(layer: Any) -> tuple[list[Any], str] | None:  # noqa: ANN401 - a layer, and modules of it
    """What makes the neurons of a layer, and the name below it of what reads them; None where it is not looked for."""
    for makers, reader in FORWARDS:
        found = [_below(layer, place) for place in (*makers, reader)]
        if all(module is not None for module in found):
            return found[:-1], reader
    return None


def _below(module: Any, place: str) -> Any:  # noqa: ANN401
    for part in place.split("."):
        module = getattr(module, part, None)
    return module
