"""Random tiny encoders of every family, with a tokenizer and, for embeddings, the files of sentence-transformers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FAMILIES = ("Bert", "Roberta", "XLMRoberta", "Camembert", "DistilBert")
CLASSES = {
    "feature-extraction": "Model",
    "text-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "fill-mask": "ForMaskedLM",
}
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_WORDS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
POSITIONS = 64


def make_tiny_encoder(
    directory: Path,
    family: str = "Bert",
    task: str = "feature-extraction",
    *,
    seed: int = 0,
    original: bool = True,
    **overrides: Any,
) -> Path:
    """An encoder of width 32 with two layers, 64 positions (Roberta's: for tokens) and 3 labels in `directory`.

    original: with the names of the hub's checkpoints, where transformers has others
    overrides: fields of the transformers config. Every tensor is random, norms and biases too, and large enough that a
    wrong or missing one shows in the outputs.
    """
    import torch
    import transformers

    bert_like = family in ("Bert", "DistilBert", "ModernBert", "NomicBert")
    tokenizer = _word_pieces() if bert_like else _byte_level()
    fields: dict[str, Any] = {"vocab_size": tokenizer.get_vocab_size(), "num_labels": 3, "initializer_range": 0.3}
    if family == "DistilBert":
        fields |= {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": POSITIONS}
    else:
        fields |= {
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
            "max_position_embeddings": POSITIONS + (0 if bert_like else 2),
            "pad_token_id": 0 if bert_like else 1, "layer_norm_eps": 1e-5,
        }  # fmt: skip
    config = getattr(transformers, f"{family}Config")(**fields | overrides)
    torch.manual_seed(seed)
    model = getattr(transformers, family + CLASSES[task])(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases away from their neutral values
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(directory, save_original_format=original)
    tokenizer.save(str(directory / "tokenizer.json"))
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), WORDS, strict=True))
    if not bert_like:
        names = {"cls": "<s>", "bos": "<s>", "pad": "<pad>", "sep": "</s>", "eos": "</s>", "unk": "<unk>"}
    settings = {f"{name}_token": text for name, text in names.items()}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": POSITIONS}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def make_tiny_bert(directory: Path, task: str = "feature-extraction", *, pooling: str = "mean", seed: int = 0) -> Path:
    """A tiny BERT; pooling: "mean" or "cls", written for feature extraction as sentence-transformers does."""
    make_tiny_encoder(directory, "Bert", task, seed=seed)
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


def torch_outputs(directory: Path, ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """What transformers computes in float32: last_hidden_state and, of a classifier, logits. ids, mask: (batch, n)."""
    import torch
    import transformers

    name = json.loads((directory / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, name).from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        found = model(torch.tensor(ids), attention_mask=torch.tensor(mask), output_hidden_states=True)
    outputs = {"last_hidden_state": found.hidden_states[-1].numpy()}
    return outputs | ({"logits": found.logits.numpy()} if "logits" in found else {})


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids, attention mask), each (rows, longest), padded on the right."""
    longest = max(map(len, rows))
    ids = [[*row, *[pad] * (longest - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    return np.array(ids, np.int64), np.array(mask, np.int64)


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def _word_pieces() -> Any:
    """BERT's tokenizer over single characters."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    letters = [chr(code) for code in range(33, 127)]
    vocabulary = [*WORDS, *letters, *(f"##{letter}" for letter in letters)]
    ids = {text: number for number, text in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(WORDS))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return tokenizer


def _byte_level() -> Any:
    """RoBERTa's tokenizer over single bytes: <s>, <pad>, </s> and <unk> come first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary = [*ROBERTA_WORDS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    ids = {text: number for number, text in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(ROBERTA_WORDS))
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def export_onnx(model: Path, out: Path, quant: str = "fp32", **options: Any) -> Any:
    """The Artifact of an export of the directory `model` into the new directory `out`; options: EmitOptions'."""
    from targets.base import EmitOptions
    from targets.onnx.target import OnnxTarget
    from targets.safetensors import read_facts

    out.mkdir()
    settings = EmitOptions(quant=quant, threads=1, **options)
    return OnnxTarget().emit(read_facts(model, str(model)), settings, out, lambda *_: None)


def run_onnx(artifact: Any, ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """Every output of an exported encoder in plain ONNX Runtime. ids, mask: (batch, n)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(artifact.entry_path), options, providers=["CPUExecutionProvider"])
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    known = {value.name for value in session.get_inputs()}
    found = session.run(None, {name: value for name, value in feeds.items() if name in known})
    return {value.name: array for value, array in zip(session.get_outputs(), found, strict=True)}


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference as a share of the largest expected value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())
