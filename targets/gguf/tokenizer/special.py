"""Special tokens: ids of begin, end, padding and the like, ends of a turn, and whether BOS and EOS are added."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.errors import UnsupportedError
from targets.gguf.keyvalue import boolean, uint32

if TYPE_CHECKING:
    from targets.gguf.keyvalue import KeyValue
    from targets.gguf.tokenizer.files import TokenizerFiles
    from targets.gguf.tokenizer.vocabulary import Vocabulary

# Name in tokenizer_config.json to GGUF key (the format itself spells "seperator" so).
_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
}
_EOT, _EOM = "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"

# Ends of a turn, as the chat formats name them; the first is the one that ends a message and calls a tool.
_MESSAGE_END = "<|eom_id|>"
_TURN_ENDS = frozenset(
    ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|eot|>", "<turn|>", "<end_of_utterance>", "<|eom_id|>")
)
# Stop tokens that src/llama-vocab.cpp finds by their text, without a key.
_FOUND_BY_TEXT = _TURN_ENDS - {"<|eot|>"} | {
    "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|return|>", "<|call|>",
    "<\uff5cend▁of▁sentence\uff5c>",
}  # fmt: skip


def special_entries(
    files: TokenizerFiles, config: dict[str, Any], vocabulary: Vocabulary, notes: list[str]
) -> list[KeyValue]:
    """Key/values of the special tokens and of add_bos_token and add_eos_token. Raises UnsupportedError."""
    found = {name: _token_id(name, files, config, vocabulary, notes) for name in _KEYS}
    before, after = _template_tokens(files, vocabulary)
    add_bos, add_eos = _added(files, "bos", before, notes), _added(files, "eos", after, notes)
    # llama.cpp adds the token that bos_token_id names, so that has to be the one that the tokenizer adds.
    found["bos"] = before[0] if before else found["bos"]
    found["eos"] = after[0] if after else found["eos"]
    between: list[KeyValue] = []
    if files.model.get("type") in _OF_ENCODERS or _is_framed(files):
        # llama.cpp's own defaults for these are ids of BERT's and T5's.
        found["unk"] = found["unk"] if found["unk"] is not None else _unknown(files, vocabulary)
        found["sep"] = after[0] if after else found["sep"]
        between = _between(files, before, after)
    for name, added in (("bos", add_bos), ("eos", add_eos)):
        if added and found[name] is None:
            raise UnsupportedError(
                f"{files.directory}: add_{name}_token without a {name}_token; name one in tokenizer_config.json"
            )
    entries = [uint32(_KEYS[name], token_id) for name, token_id in found.items() if token_id is not None]
    entries += _turn_ends(found["eos"], stop_ids(files.generation, config), vocabulary, notes)
    return [
        *entries,
        boolean("tokenizer.ggml.add_bos_token", add_bos),
        boolean("tokenizer.ggml.add_eos_token", add_eos),
        *between,
    ]


_OF_ENCODERS = ("WordPiece", "Unigram")


def _is_framed(files: TokenizerFiles) -> bool:
    """Whether BERT's or RoBERTa's own post-processor puts a token before a text and one behind it."""
    return _find(files, *_FRAMES) is not None


def _unknown(files: TokenizerFiles, vocabulary: Vocabulary) -> int | None:
    """The id of the unknown token by tokenizer.json's model."""
    by_id = files.model.get("unk_id")
    return by_id if isinstance(by_id, int) else vocabulary.ids.get(str(files.model.get("unk_token")))


def _between(files: TokenizerFiles, before: list[int] | None, after: list[int] | None) -> list[KeyValue]:
    """Whether a second separator stands between two texts, as RoBERTa has it (llama.cpp's servers rank pairs).

    Raises UnsupportedError for WordPiece without a token on each side, which llama.cpp always adds.
    """
    if files.model.get("type") == "WordPiece" and not (before and after):
        raise UnsupportedError(f"{files.where}: adds no token before and after a text, and llama.cpp always does")
    template = _find(files, "TemplateProcessing")
    if template is None:
        twice = _find(files, "RobertaProcessing") is not None
    else:
        pair = [part.get("Sequence", {}).get("id") for part in template.get("pair", [])]
        twice = "A" in pair and "B" in pair and pair.index("B") - pair.index("A") > 2
    return [boolean("tokenizer.ggml.add_sep_token", twice)]


def stop_ids(generation: dict[str, Any], config: dict[str, Any]) -> list[int]:
    """Every id that ends generation: those of generation_config.json, then those of config.json."""
    ids: list[int] = []
    for source in (generation, config):
        value = source.get("eos_token_id")
        given = value if isinstance(value, list) else [value]
        ids += [token_id for token_id in given if isinstance(token_id, int) and token_id >= 0]
    return list(dict.fromkeys(ids))


def _token_id(
    name: str, files: TokenizerFiles, config: dict[str, Any], vocabulary: Vocabulary, notes: list[str]
) -> int | None:
    """The id of a special token: by the text that the tokenizer's files name, else by the models' configs."""
    for source in (files.config, files.special_map):
        value = source.get(f"{name}_token")
        text = value.get("content") if isinstance(value, dict) else value
        if text is None:
            continue
        if text in vocabulary.ids:
            return vocabulary.ids[text]
        notes.append(f"{name}_token is '{text}', which is not in the vocabulary")
    for source in (config, files.generation):
        value = source.get(f"{name}_token_id")
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, int) and 0 <= first < len(vocabulary.texts):
            return first
    return None


def _turn_ends(eos: int | None, stops: list[int], vocabulary: Vocabulary, notes: list[str]) -> list[KeyValue]:
    """Keys for the stop tokens besides EOS: first what ends a turn, then what llama.cpp would not find by its text."""
    rest = {i: vocabulary.texts[i] for i in stops if i != eos and i < len(vocabulary.texts)}
    keys: dict[str, int] = {}
    for token_id, text in rest.items():
        if text == _MESSAGE_END:
            keys[_EOM] = token_id
    own_end = eos is not None and vocabulary.texts[eos] in _TURN_ENDS
    for token_id, text in rest.items():
        if text in _TURN_ENDS and text != _MESSAGE_END and not own_end:
            keys.setdefault(_EOT, token_id)
    for token_id, text in rest.items():
        if token_id in keys.values() or text in _FOUND_BY_TEXT:
            continue
        free = next((key for key in (_EOT, _EOM) if key not in keys), None)
        if free is None:
            notes.append(f"llama.cpp does not stop at '{text}': GGUF has no key left for another stop token")
        else:
            keys[free] = token_id
    return [uint32(key, keys[key]) for key in (_EOT, _EOM) if key in keys]


def _added(files: TokenizerFiles, name: str, by_template: list[int] | None, notes: list[str]) -> bool:
    """Whether the tokenizer adds BOS or EOS: its template says so; the flag in tokenizer_config.json may lie."""
    flag = files.config.get(f"add_{name}_token")
    if by_template is None:
        # Without tokenizer.json, SentencePiece tokenizers add BOS unless told not to.
        return bool(flag if flag is not None else files.tokenizer is None and name == "bos")
    if flag is not None and bool(flag) != bool(by_template):
        does = "adds" if by_template else "does not add"
        notes.append(f"tokenizer_config.json says add_{name}_token={flag}, but tokenizer.json {does} it")
    return bool(by_template)


_FRAMES = ("BertProcessing", "RobertaProcessing")


def _template_tokens(files: TokenizerFiles, vocabulary: Vocabulary) -> tuple[list[int] | None, list[int] | None]:
    """Ids that the post-processor puts before and after a text; None, None where it has no template.

    Raises UnsupportedError for more than one on a side.
    """
    template = _find(files, "TemplateProcessing", *_FRAMES)
    if template is None:
        return None, None
    if template["type"] in _FRAMES:
        return [int(template["cls"][1])], [int(template["sep"][1])]
    sides: tuple[list[int], list[int]] = ([], [])
    side = 0
    for part in template.get("single", []):
        if "Sequence" in part:
            side = 1
            continue
        text = part["SpecialToken"]["id"]
        ids = template.get("special_tokens", {}).get(text, {}).get("ids") or [vocabulary.ids.get(text)]
        sides[side].extend(token_id for token_id in ids if token_id is not None)
    for place, ids in zip(("before", "after"), sides, strict=True):
        if len(ids) > 1:
            raise UnsupportedError(f"{files.where}: adds {len(ids)} tokens {place} a text; llama.cpp can add one")
    return sides


def _find(files: TokenizerFiles, *kinds: str) -> dict[str, Any] | None:
    """The first post-processor of one of these kinds, also inside a Sequence."""
    return _find_in((files.tokenizer or {}).get("post_processor"), kinds)


def _find_in(node: dict[str, Any] | None, kinds: tuple[str, ...]) -> dict[str, Any] | None:
    if node is None:
        return None
    if node.get("type") == "Sequence":
        found = (_find_in(part, kinds) for part in node.get("processors", []))
        return next((part for part in found if part is not None), None)
    return node if node.get("type") in kinds else None
