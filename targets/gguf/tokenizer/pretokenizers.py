r"""How text is split before byte-level BPE: tokenizer.json's normalizer and pre-tokenizer, and llama.cpp's name for it.

llama.cpp knows each way of splitting by a name (`tokenizer.ggml.pre`, read by src/llama-vocab.cpp) that stands for a
list of regexes and for whether merges are ignored for whole words. The name is found from the structure here, never
from a hash of some sample text: a tokenizer whose structure is not in the table is refused.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.errors import UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPELLED_OUT = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"

_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_START = r"[^\r\n\p{L}\p{N}]?"
_PATHS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
QWEN2 = rf"{CONTRACTIONS}|{_WORD}|\p{{N}}|{_SIGNS}|{_SPACES}"
QWEN35 = (
    rf"{CONTRACTIONS}|{_START}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)  # fmt: skip
TEKKEN = rf"{_START}{_UPPER}*{_LOWER}+|{_START}{_UPPER}+{_LOWER}*|\p{{N}}|{_PATHS}|{_SPACES}"
GPT4O = (
    rf"{_START}{_UPPER}*{_LOWER}+{CONTRACTIONS}?|{_START}{_UPPER}+{_LOWER}*{CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{_PATHS}|{_SPACES}"
)
SEED_CODER = rf"{CONTRACTIONS}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
MINICPM5 = rf"{CONTRACTIONS}|{_WORD}|\p{{N}}+|{_SIGNS}|{_SPACES}"
DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"""
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
JAIS2 = rf"{CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|\s*[\r\n]+|" + "|".join(
    [*(rf"\s{{{2**n}}}(?!\S)" for n in range(9, 1, -1)), r"\s{1,2}(?!\S)", r"\s{1}"]
)
BLOOM = " ?[^(\\s|[.,!?…。\uff0c、।\u06d4،])]+"
_CASED = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ"
    "-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-\u2113\u2115\u2119-\u211d\u2124"
    "\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "ℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-\uff3a\uff41-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)  # fmt: skip
"""DeepSeek LLM's list of the letters that have a case."""
_SIGNS_AND_WIDE = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"

# Canonical steps: "byte-level" maps bytes to letters, "gpt2+byte-level" splits by GPT2 first (ByteLevel's use_regex).
_CASE = "capital and small letters outside ASCII, and combining marks"
_KANA_HAN = "[一-龥\u3040-ゟ\u30a0-ヿ]+"
_BYTES, _GPT2_BYTES, _DIGITS = "byte-level", "gpt2+byte-level", "digit by digit"
_DIGIT_RUNS, _PUNCTUATION_RUNS = "runs of digits", "runs of punctuation"


@dataclass(frozen=True)
class PreTokenizer:
    """A way of splitting that llama.cpp has.

    name: what tokenizer.ggml.pre says
    steps: canonical steps (see `describe`)
    ignore_merges: a whole word that is a token is taken as it is
    cleans: llama.cpp removes spaces before punctuation when it turns tokens into text
    inexact: where llama.cpp's own regex differs from the tokenizer's; always outside ASCII
    """

    name: str
    steps: tuple[str, ...]
    ignore_merges: bool = False
    cleans: bool = False
    inexact: str = ""


# Where two names split alike, `cleans` decides, else the first. Source: src/llama-vocab.cpp of llama.cpp b11434.
KNOWN = (
    PreTokenizer("smollm", (_DIGITS, _GPT2_BYTES)),
    PreTokenizer("starcoder", (_DIGITS, _GPT2_BYTES), cleans=True),
    PreTokenizer("gpt-2", (_GPT2_BYTES,), cleans=True),
    PreTokenizer("trillion", (_GPT2_BYTES,)),
    PreTokenizer("llama-bpe", (LLAMA3, _BYTES), ignore_merges=True, cleans=True),
    PreTokenizer("smaug-bpe", (LLAMA3, _BYTES), cleans=True),
    PreTokenizer("qwen2", (QWEN2, _BYTES)),
    PreTokenizer("stablelm2", (QWEN2, _BYTES), cleans=True),
    PreTokenizer("qwen35", (QWEN35, _BYTES)),
    PreTokenizer("tekken", (TEKKEN, _BYTES), ignore_merges=True, inexact=_CASE),
    PreTokenizer("gpt-4o", (GPT4O, _BYTES), inexact=_CASE),
    PreTokenizer("seed-coder", (SEED_CODER, _BYTES)),
    PreTokenizer("bailingmoe", (BAILING, _BYTES)),
    PreTokenizer("minicpm5", (r"\p{N}{1,3}", MINICPM5, _BYTES), ignore_merges=True, cleans=True),
    PreTokenizer("deepseek-v3", (r"\p{N}{1,3}", _KANA_HAN, DEEPSEEK3, _BYTES)),
    PreTokenizer(
        "deepseek-coder",
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", _DIGITS, _BYTES),
        inexact="CJK spaces",
    ),
    PreTokenizer(
        "deepseek-llm",
        (
            r"[\r\n]",
            rf"\s?[{_CASED}]+",
            _SIGNS_AND_WIDE,
            r"\s+$",
            "[一-龥ࠀ-一가-퟿]+",
            _DIGITS,
            _BYTES,
        ),
    ),
    # The digits that are split off behind the step to bytes are found among the letters that stand for bytes too.
    PreTokenizer(
        "falcon",
        (_PUNCTUATION_RUNS, _GPT2_BYTES, _DIGIT_RUNS, "[0-9][0-9][0-9]"),
        cleans=True,
        inexact="text outside ASCII",
    ),
    PreTokenizer("bloom", (BLOOM, _BYTES), cleans=True),
    PreTokenizer("poro-chat", (BLOOM, _BYTES)),
    PreTokenizer("viking", (BLOOM, _DIGITS, _BYTES)),
    PreTokenizer("jais-2", (JAIS2, _BYTES), cleans=True),
)


def find_pre(tokenizer: dict[str, Any], *, cleans: bool, where: Path) -> PreTokenizer:
    """llama.cpp's entry for the way in which `tokenizer` (tokenizer.json) splits text.

    cleans: the tokenizer's clean_up_tokenization_spaces
    Raises UnsupportedError that shows the structure and the nearest known names.
    """
    steps = describe(tokenizer.get("pre_tokenizer"))
    ignore_merges = bool(tokenizer["model"].get("ignore_merges"))
    alike = [known for known in KNOWN if known.steps == steps]
    fitting = [known for known in alike if known.ignore_merges == ignore_merges]
    if not fitting and alike and merges_suffice(tokenizer["model"]):
        fitting = alike  # then a whole word that is a token becomes that token either way
    if fitting:
        return next((known for known in fitting if known.cleans == cleans), fitting[0])
    shown = " → ".join(steps) + (" (ignore_merges)" if ignore_merges else "")
    near = ", ".join(_nearest(steps, ignore_merges=ignore_merges))
    raise UnsupportedError(
        f"{where}: llama.cpp has no known name for this pre-tokenizer: {shown}; nearest: {near}; "
        "if one of its names splits text alike, add a line to targets/gguf/tokenizer/pretokenizers.py"
    )


def merges_suffice(model: dict[str, Any]) -> bool:
    """Whether its merges make every token of the vocabulary from its letters, so that `ignore_merges` says nothing.

    model: the BPE of tokenizer.json; tried on every token
    """
    from tokenizers import Tokenizer, models

    try:
        parts = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        merges = [(first, second) for first, second in parts]
        plain = Tokenizer(models.BPE(vocab=model["vocab"], merges=merges, ignore_merges=False))
    except Exception:  # noqa: BLE001 - damage, of which others say what it is
        return False
    words = list(model["vocab"])
    return all(len(one.ids) == 1 for one in plain.encode_batch(words, add_special_tokens=False))


def describe(node: dict[str, Any] | None) -> tuple[str, ...]:
    """A pre-tokenizer of tokenizer.json as canonical steps; what is not understood is shown as it is."""
    if node is None:
        return ("none",)
    kind = node.get("type")
    if kind == "Sequence":
        steps = tuple(step for part in node.get("pretokenizers", []) for step in describe(part))
        # A split by GPT-2's regex, then ByteLevel without one, is what ByteLevel does by itself.
        return _fold(steps)
    if kind == "ByteLevel" and not node.get("add_prefix_space"):
        return (_GPT2_BYTES if node.get("use_regex", True) else _BYTES,)
    if kind == "Digits":
        return (_DIGITS if node.get("individual_digits") else _DIGIT_RUNS,)
    if kind == "Punctuation" and node.get("behavior") == "Contiguous":
        return (_PUNCTUATION_RUNS,)
    if kind == "Split" and _keeps_all(node):
        return (canonical_regex(_pattern(node)),)
    return (_shown(node),)


def canonical_regex(regex: str) -> str:
    """One spelling for regexes that differ only in how they write line ends and case."""
    return regex.replace("\r", r"\r").replace("\n", r"\n").replace(_SPELLED_OUT, CONTRACTIONS)


def _fold(steps: tuple[str, ...]) -> tuple[str, ...]:
    if steps[-2:] == (GPT2, _BYTES):
        return (*steps[:-2], _GPT2_BYTES)
    # One digit at a time is also written as a split by this regex.
    return tuple(_DIGITS if step in (r"\p{N}", r"\d") else step for step in steps)


def _keeps_all(node: dict[str, Any]) -> bool:
    """Whether a Split leaves matches and the text between them as pieces of their own.

    Removing what does not match is the same where the regex matches everything, as those that end in `\\s+` do.
    """
    behaviour, invert = node.get("behavior"), node.get("invert", False)
    if (behaviour, invert) == ("Isolated", False):
        return True
    return (behaviour, invert) == ("Removed", True) and _pattern(node).endswith(r"|\s+")


def _pattern(node: dict[str, Any]) -> str:
    pattern = node.get("pattern") or {}
    return str(pattern.get("Regex", pattern.get("String", "")))


def _shown(node: dict[str, Any]) -> str:
    options = ", ".join(f"{key}={value!r}" for key, value in node.items() if key != "type")
    return f"{node.get('type')}({options})"


def _nearest(steps: tuple[str, ...], *, ignore_merges: bool) -> list[str]:
    """The three known names whose structure is most alike."""
    text = "\n".join(steps)

    def likeness(known: PreTokenizer) -> float:
        same = 0.01 if known.ignore_merges == ignore_merges else 0.0
        return difflib.SequenceMatcher(None, text, "\n".join(known.steps), autojunk=False).ratio() + same

    ranked = sorted(KNOWN, key=likeness, reverse=True)
    return list(dict.fromkeys(known.name for known in ranked))[:3]
