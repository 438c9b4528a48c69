"""Tiny random encoders of every family that becomes GGUF, and tokenizers of the kinds that encoders have."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import sentencepiece
from support.tiny_encoders import POSITIONS, edit_json, make_tiny_encoder, write_pooling
from support.tiny_tokenizers import corpus
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

if TYPE_CHECKING:
    from pathlib import Path

EMBEDDINGS, CLASSIFIER = "feature-extraction", "text-classification"

EXACT = 1e-5
"""What is left where llama.cpp computes the same in the same precision."""
GELU = 1e-3
"""ggml looks the GELU up in a table of f16, and has only the approximation by tanh."""


@dataclass(frozen=True)
class Case:
    """One tiny encoder.

    fields: of its configuration; pooling: what sentence-transformers' files say, "" without them
    config: entries of config.json to set afterwards, as the hub's checkpoints have them; None removes one
    original: whether saved with the hub's names; limit: of the difference, relative to the largest number
    """

    family: str
    task: str = EMBEDDINGS
    fields: dict[str, Any] = field(default_factory=dict)
    pooling: str = "mean"
    config: dict[str, Any] = field(default_factory=dict)
    original: bool = True
    limit: float = GELU


_JINA = {"type_vocab_size": 1, "max_position_embeddings": POSITIONS}
_MODERN = {"norm_eps": 1e-5, "num_hidden_layers": 4, "local_attention": 16}
_HUB_MODERN = {
    "global_attn_every_n_layers": 3, "layer_types": None, "rope_parameters": None, "global_rope_theta": 160000.0,
    "local_rope_theta": 10000.0,
}  # fmt: skip

CASES = {
    "bert": Case("Bert"),
    "bert-classifier": Case("Bert", CLASSIFIER),
    "roberta": Case("Roberta", pooling="cls"),
    "roberta-classifier": Case("Roberta", CLASSIFIER),
    "xlm-roberta": Case("XLMRoberta", fields={"type_vocab_size": 1}),
    "xlm-roberta-ranker": Case("XLMRoberta", CLASSIFIER, {"type_vocab_size": 1, "num_labels": 1}),
    "camembert": Case("Camembert", pooling=""),
    "camembert-classifier": Case("Camembert", CLASSIFIER),
    "distilbert": Case("DistilBert"),
    "modernbert": Case("ModernBert", fields=_MODERN, pooling="cls"),
    "modernbert-hub": Case("ModernBert", fields=_MODERN, config=_HUB_MODERN),
    "modernbert-silu": Case("ModernBert", fields={**_MODERN, "hidden_activation": "silu"}, limit=EXACT),
    "modernbert-classifier": Case("ModernBert", CLASSIFIER, _MODERN),
    "modernbert-mean": Case("ModernBert", CLASSIFIER, {**_MODERN, "classifier_pooling": "mean"}),
    "nomic": Case("NomicBert", limit=EXACT),
    "nomic-renamed": Case("NomicBert", original=False, limit=EXACT),
    "jina": Case("JinaEmbeddingsV3", fields=_JINA),
    "jina-renamed": Case("JinaEmbeddingsV3", fields=_JINA, original=False),
}


def make_case(name: str, directory: Path) -> Path:
    """Write the model of a case into `directory`."""
    case = CASES[name]
    # As wide as in the decoders' tests, and so many labels that their largest score is no accident.
    fields = {"initializer_range": 0.15, **({"num_labels": 12} if case.task == CLASSIFIER else {}), **case.fields}
    make_tiny_encoder(directory, case.family, case.task, original=case.original, **fields)
    if case.task == EMBEDDINGS and case.pooling:
        write_pooling(directory, case.pooling)
    if case.config:
        edit_json(directory / "config.json", **case.config)
    return directory


# --- tokenizers -------------------------------------------------------------------------------------------------------

_BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_encoder_tokenizer(kind: str, directory: Path) -> int:
    """Write tokenizer.json and tokenizer_config.json; returns the number of tokens.

    kind: "wordpiece" (BERT's), "wordpiece-cased", "wordpiece-accents" (lower case, accents kept), "unigram"
    (XLM-RoBERTa's), "t5" or "byte-level" (RoBERTa's)
    """
    text, config = _tokenizer(kind)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(text, encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return Tokenizer.from_str(text).get_vocab_size()


@cache
def _tokenizer(kind: str) -> tuple[str, dict[str, str]]:
    if kind == "unigram":
        return _unigram()
    if kind == "t5":
        return _t5()
    if kind == "byte-level":
        return _byte_level()
    lowercase = kind != "wordpiece-cased"
    strips = False if kind == "wordpiece-accents" else None
    return _word_piece(lowercase=lowercase, strip_accents=strips)


def _word_piece(*, lowercase: bool, strip_accents: bool | None) -> tuple[str, dict[str, str]]:
    """BERT's."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=900, special_tokens=list(_BERT_SPECIAL), show_progress=False)
    extra = ["한국어 안녕하세요 세계 텍스트\n", "नमस्ते दुनिया हिन्दी में\n"] * 30
    tokenizer.train_from_iterator([*corpus(), *extra], trainer)
    cls, sep = ((text, tokenizer.token_to_id(text)) for text in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[cls, sep]
    )
    names = ("pad", "unk", "cls", "sep", "mask")
    return tokenizer.to_str(), {f"{name}_token": text for name, text in zip(names, _BERT_SPECIAL, strict=True)}


def _roberta_names() -> dict[str, str]:
    return {
        "bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>",
        "unk_token": "<unk>", "mask_token": "<mask>",
    }  # fmt: skip


def _byte_level() -> tuple[str, dict[str, str]]:
    """RoBERTa's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    )  # fmt: skip
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer.to_str(), _roberta_names()


@cache
def _sentencepiece() -> bytes:
    """A Unigram model as SentencePiece writes it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in corpus() for line in text.splitlines()]), model_writer=model,
        vocab_size=800, model_type="unigram", normalization_rule_name="nmt_nfkc", character_coverage=0.999,
        num_threads=1, minloglevel=3,
    )  # fmt: skip
    return model.getvalue()


def sentencepiece_ids(text: str) -> list[int]:
    """What SentencePiece itself makes of a text, in the ids of "unigram": one more than its own, <unk> is 3."""
    found = sentencepiece.SentencePieceProcessor(model_proto=_sentencepiece()).encode(text)
    return [0, *(token + 1 if token else 3 for token in found), 2]


def _unigram() -> tuple[str, dict[str, str]]:
    """XLM-RoBERTa's: SentencePiece's pieces behind <s>, <pad>, </s> and <unk>, <mask> at the end."""
    spm = sentencepiece.SentencePieceProcessor(model_proto=_sentencepiece())
    pieces = [(spm.id_to_piece(i), spm.get_score(i)) for i in range(3, len(spm))]
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = Tokenizer(models.Unigram([*special, *pieces, ("<mask>", 0.0)], unk_id=3))
    tokenizer.normalizer = normalizers.Precompiled(_charsmap(_sentencepiece()))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer.to_str(), _roberta_names()


def _t5() -> tuple[str, dict[str, str]]:
    """T5's: SentencePiece's pieces behind <pad>, </s> and <unk>, two of its extra ids at the end."""
    spm = sentencepiece.SentencePieceProcessor(model_proto=_sentencepiece())
    pieces = [(spm.id_to_piece(i), spm.get_score(i)) for i in range(3, len(spm))]
    extra = ["<extra_id_1>", "<extra_id_0>"]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = Tokenizer(models.Unigram([*special, *pieces, *((text, 0.0) for text in extra)], unk_id=2))
    tokenizer.normalizer = normalizers.Precompiled(_charsmap(_sentencepiece()))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>", *extra])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer.to_str(), {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def _charsmap(model: bytes) -> bytes:
    """The precompiled map of characters in a SentencePiece model: field 2 of the normalizer, which is field 3."""
    from targets.gguf.tokenizer import spm_model

    for number, value in spm_model._fields(model):
        if number == 3:
            return next(bytes(found) for inner, found in spm_model._fields(value) if inner == 2)  # type: ignore[arg-type]
    raise ValueError("no map of characters")


def charsmap_of(tokenizer_json: str) -> bytes:
    """The map that a tokenizer.json carries."""
    return base64.b64decode(json.loads(tokenizer_json)["normalizer"]["precompiled_charsmap"])
