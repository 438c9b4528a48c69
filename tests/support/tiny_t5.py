"""Tiny random T5 and mT5, as transformers saves them and as the hub's checkpoints are."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from support.tiny_gguf_encoders import EXACT, GELU, write_encoder_tokenizer

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One tiny model.

    fields: of its configuration; config: entries of config.json to set afterwards, None removes one
    own_head: whether an output layer of its own is stored; limit: of the difference, relative to the largest logit
    """

    family: str = "T5"
    fields: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    own_head: bool = False
    limit: float = EXACT


_GATED = {"feed_forward_proj": "gated-gelu"}
# As the published files have it, which transformers 5 does not write any more.
_V1_1 = {"tie_word_embeddings": False, "scale_decoder_outputs": None, "num_decoder_layers": None}

CASES = {
    "t5": Case(),
    "t5-hub": Case(config={"tie_word_embeddings": None, "scale_decoder_outputs": None, "num_decoder_layers": None}),
    "t5-short-decoder": Case(fields={"num_decoder_layers": 1}),
    "t5-gated": Case(fields={**_GATED, "tie_word_embeddings": False}, limit=GELU),
    "t5-gated-hub": Case(fields=_GATED, config=_V1_1, own_head=True, limit=GELU),
    "mt5": Case("MT5", limit=GELU),
    "mt5-hub": Case("MT5", config={"tie_word_embeddings": False}, own_head=True, limit=GELU),
    "mt5-relu": Case("MT5", {"feed_forward_proj": "relu"}),
}


def make_tiny_t5(name: str, directory: Path) -> Path:
    """Write the model of a case. Widths differ from each other, all norms have values of their own."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    case = CASES[name]
    n_tokens = write_encoder_tokenizer("t5", directory)
    sizes = {"d_model": 64, "d_kv": 24, "d_ff": 96, "num_layers": 2, "num_heads": 4, "num_decoder_layers": 2}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    fields = {"vocab_size": n_tokens, "relative_attention_num_buckets": 16, **sizes, **ids, **case.fields}
    torch.manual_seed(0)
    config = getattr(transformers, f"{case.family}Config")(**fields)
    model = getattr(transformers, f"{case.family}ForConditionalGeneration")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            is_norm = parameter.dim() == 1
            parameter.copy_(torch.randn_like(parameter) * (0.2 if is_norm else 0.1) + is_norm)
    model.save_pretrained(directory)
    if case.own_head:
        tensors = load_file(directory / "model.safetensors")
        tensors["lm_head.weight"] = torch.randn(n_tokens, sizes["d_model"])
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    path = directory / "config.json"
    known = {**json.loads(path.read_text()), **case.config}
    removed = {key for key, value in case.config.items() if value is None}
    path.write_text(json.dumps({key: value for key, value in known.items() if key not in removed}))
    return directory
