"""SentencePiece BPE with byte fallback (Llama 2, Mistral, Gemma): llama.cpp's tokenizer model "llama".

llama.cpp merges the neighbours whose joined text is the token with the highest score, whatever two parts it is made
of. The Hugging Face tokenizer applies a list of merges in order. The two agree when the order of the scores is the
order of the merges.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.errors import ModelError, UnsupportedError
from targets.gguf.keyvalue import array, boolean, string
from targets.gguf.tokenizer.bpe import merge_pairs
from targets.gguf.tokenizer.spm_model import BPE, SpmModel, read_spm
from targets.gguf.tokenizer.vocabulary import TokenType, added_tokens, base_tokens, build_vocabulary

if TYPE_CHECKING:
    from targets.gguf.keyvalue import KeyValue
    from targets.gguf.tokenizer.files import TokenizerFiles
    from targets.gguf.tokenizer.vocabulary import Vocabulary

_SPACE = "▁"


def is_sentencepiece(files: TokenizerFiles) -> bool:
    """Whether the tokenizer is a SentencePiece BPE: tokenizer.model alone, or a tokenizer.json with byte fallback."""
    if files.tokenizer is None:
        return True
    return files.model.get("type") == "BPE" and bool(files.model.get("byte_fallback"))


def spm_entries(files: TokenizerFiles, vocab_rows: int, notes: list[str]) -> tuple[Vocabulary, list[KeyValue]]:
    """The vocabulary, and the key/values for its tokens, scores and types.

    Raises ModelError for damaged files, UnsupportedError for what llama.cpp cannot do.
    """
    spm = read_spm(files.spm) if files.spm else None
    if spm is not None and spm.model_type != BPE:
        kind = {1: "unigram", 3: "word", 4: "char"}.get(spm.model_type, spm.model_type)
        raise UnsupportedError(f"{files.spm}: a SentencePiece model of the kind '{kind}'; only BPE can be written")
    base = base_tokens(files) if files.tokenizer is not None else _pieces(files, spm)
    vocabulary = build_vocabulary(files.where, base, added_tokens(files), vocab_rows, notes)
    _set_types(vocabulary, spm, files.model.get("unk_token") or "")
    missing = 256 - vocabulary.types.count(TokenType.BYTE)
    if missing:
        raise UnsupportedError(
            f"{files.where}: {missing} of the 256 byte tokens <0x00> … are missing; llama.cpp needs all"
        )
    merges = merge_pairs(files.model, base, files.where) if files.tokenizer is not None else []
    prefix = space_prefix(files, spm, vocabulary, notes)
    return vocabulary, [
        string("tokenizer.ggml.model", "llama"),
        string("tokenizer.ggml.pre", "default"),
        array("tokenizer.ggml.tokens", vocabulary.texts, "STRING"),
        array("tokenizer.ggml.scores", token_scores(vocabulary, spm, merges, notes), "FLOAT32"),
        array("tokenizer.ggml.token_type", vocabulary.types, "INT32"),
        boolean("tokenizer.ggml.add_space_prefix", prefix),
    ]


def token_scores(
    vocabulary: Vocabulary, spm: SpmModel | None, merges: list[tuple[str, str]], notes: list[str]
) -> list[float]:
    """A score for every token.

    A piece has tokenizer.model's score where that has it. Else a token's score is minus the rank of the first merge
    that makes it: llama.cpp's highest score first is then the merges' lowest rank first. Runs of spaces are
    user-defined pieces whose SentencePiece scores are all zero; there too the merges tell the order, above all others.
    A token that no merge makes scores below every other, so that it is never put together from parts.
    """
    ranks: dict[str, int] = {}
    last = ""
    scattered = False
    for rank, (left, right) in enumerate(merges):
        made = left + right
        if made != last:
            # Runs of one character (spaces) are tied in SentencePiece too; there every order ends in the same tokens.
            scattered = scattered or (made in ranks and len(set(made)) > 1)
            ranks.setdefault(made, rank)
            last = made
    floor = -float(len(vocabulary.texts) + len(merges) + 1)
    if spm is None:
        if scattered:
            notes.append("the merges are not SentencePiece's own: llama.cpp may split some words in another way")
        return [-float(ranks[text]) if text in ranks else floor for text in vocabulary.texts]
    pieces = dict(zip(spm.texts, spm.scores, strict=True))
    user = {text for text, kind in zip(spm.texts, spm.types, strict=True) if kind == TokenType.USER_DEFINED}
    top = max(pieces.values()) + 1
    above = {text: top + len(merges) - ranks[text] for text in user if text in ranks}
    floor = min(*pieces.values(), floor)
    return [above.get(text, pieces.get(text, floor)) for text in vocabulary.texts]


def space_prefix(files: TokenizerFiles, spm: SpmModel | None, vocabulary: Vocabulary, notes: list[str]) -> bool:
    """Whether a space is put before the text.

    Raises UnsupportedError where tokenizer.json does more to the text than turning spaces into ▁.
    """
    if files.tokenizer is None:
        if spm is not None and (spm.normalizes or spm.remove_extra_whitespaces):
            notes.append("llama.cpp does not normalize text as this SentencePiece model does")
        return spm is None or spm.add_dummy_prefix
    steps = [*_normalizers(files.tokenizer.get("normalizer")), *_splitters(files.tokenizer.get("pre_tokenizer"))]
    prefix, replaced, other = False, False, []
    for step in steps:
        kind = step.get("type")
        if kind == "Prepend" and step.get("prepend") == _SPACE:
            prefix = True
        elif kind == "Replace" and step.get("pattern") == {"String": " "} and step.get("content") == _SPACE:
            replaced = True
        elif kind == "Metaspace" and step.get("replacement") == _SPACE and _splits_nothing(step, vocabulary):
            replaced = True
            prefix = _metaspace_prefix(step, notes) or prefix
        elif not (kind == "Split" and step.get("pattern") == {"String": " "} and replaced):
            # A split by spaces, where no spaces are left (Gemma), does nothing.
            other.append(str(step.get("type")))
    if other or not replaced:
        shown = ", ".join(other) or "spaces are not turned into ▁"
        raise UnsupportedError(f"{files.where}: llama.cpp cannot prepare text for SentencePiece as this does: {shown}")
    return prefix


def _metaspace_prefix(step: dict[str, Any], notes: list[str]) -> bool:
    """Whether a Metaspace puts a space before the text; notes where llama.cpp's way of doing so differs."""
    scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
    if scheme != "never":
        notes.append("llama.cpp puts a space before text that starts with one; the model's tokenizer does not")
    if scheme == "first":
        notes.append("llama.cpp puts a space before text after a special token; the model's tokenizer does not")
    return bool(scheme != "never")


def _splits_nothing(step: dict[str, Any], vocabulary: Vocabulary) -> bool:
    """A Metaspace that splits words changes nothing where no token goes across a word's start."""
    return not step.get("split", True) or all(_SPACE not in text[1:] for text in vocabulary.texts)


def _normalizers(node: dict[str, Any] | None) -> list[dict[str, Any]]:
    if node is None:
        return []
    return list(node.get("normalizers", [])) if node.get("type") == "Sequence" else [node]


def _splitters(node: dict[str, Any] | None) -> list[dict[str, Any]]:
    if node is None:
        return []
    return list(node.get("pretokenizers", [])) if node.get("type") == "Sequence" else [node]


def _pieces(files: TokenizerFiles, spm: SpmModel | None) -> dict[str, int]:
    """The base vocabulary where there is tokenizer.model only."""
    texts = spm.texts if spm else []
    base = {text: token_id for token_id, text in enumerate(texts)}
    if len(base) != len(texts):
        raise ModelError(f"{files.spm}: a piece is there twice; download it again")
    return base


def _set_types(vocabulary: Vocabulary, spm: SpmModel | None, unk_token: str) -> None:
    """Replace NORMAL by what tokenizer.model says, or by what the token's text says where there is none."""
    types = vocabulary.types
    for text, kind in zip(spm.texts, spm.types, strict=True) if spm else ():
        token_id = vocabulary.ids.get(text) if kind != TokenType.NORMAL else None
        # What tokenizer.json says of its added tokens goes first.
        if token_id is not None and (types[token_id] == TokenType.NORMAL or kind == TokenType.UNKNOWN):
            types[token_id] = kind
    for byte in range(256):
        if (token_id := vocabulary.ids.get(f"<0x{byte:02X}>")) is not None:
            types[token_id] = int(TokenType.BYTE)
    if unk_token in vocabulary.ids:
        types[vocabulary.ids[unk_token]] = int(TokenType.UNKNOWN)
