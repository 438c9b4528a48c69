"""Random tiny BERT directories, with a WordPiece tokenizer and, for embeddings, the files of sentence-transformers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = {
    "feature-extraction": "BertModel",
    "text-classification": "BertForSequenceClassification",
    "token-classification": "BertForTokenClassification",
}
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def make_tiny_bert(directory: Path, task: str = "feature-extraction", *, pooling: str = "mean", seed: int = 0) -> Path:
    """A BERT of width 32 with two layers, 64 positions and 3 labels in `directory` (made if missing).

    pooling: "mean" or "cls", written for feature extraction as sentence-transformers does, with a Normalize module
    """
    import torch
    import transformers

    vocabulary = [*WORDS, *(chr(code) for code in range(33, 127)), *(f"##{chr(code)}" for code in range(33, 127))]
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, num_labels=3, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = getattr(transformers, CLASSES[task])(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases away from their neutral values
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(directory)
    (directory / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    transformers.BertTokenizer(str(directory / "vocab.txt")).save_pretrained(directory)
    if task == "feature-extraction":
        write_pooling(directory, pooling)
    return directory


def write_pooling(directory: Path, mode: str, *, normalize: bool = True) -> None:
    """modules.json and 1_Pooling/config.json."""
    kinds = {"Transformer": "", "Pooling": "1_Pooling", **({"Normalize": "2_Normalize"} if normalize else {})}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(kinds.items())
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    modes = {f"pooling_mode_{name}": name.startswith(mode) for name in ("cls_token", "mean_tokens", "max_tokens")}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}))
