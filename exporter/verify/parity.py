"""Whether text reaches the artifact as the same token ids as it reaches the source: `Parity`."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Protocol

from exporter.verify.chat import CONVERSATIONS, outcome, render
from targets.drift import Parity, TokenMismatch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from exporter.verify.reference import Reference
    from runtime.sessions.base import Session

HARD_STRINGS: tuple[str, ...] = (
    "",
    "Hello, world!",
    " leading space",
    "trailing space ",
    "two  three   four    spaces",
    "                                 ",
    "\n",
    "\n\n\n",
    "line one\nline two\r\nline three\n",
    "\ttab\t\ttabs",
    " \n \n\t \n",
    "no-break\u00a0space, thin\u2009space, ideographic\u3000space, zero\u200bwidth",
    "0 1 12 123 1234 12345 1234567890",
    "3.14159 1,000,000 1e-9 0xFF 2026-11-05T12:34:56Z",
    "²³¹ ½ ⅓ Ⅷ ٣ ३",
    "don't won't I'll we've they're she'd I'm DON'T",
    "'s 't 're 've 'm 'll 'd \u2019s \u2019t",
    "camelCase snake_case SCREAMING_CASE kebab-case",
    "def f(x: int) -> int:\n    return x ** 2  # square\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] << 2; }",
    '{"key": [1, 2.5, null, true], "nested": {"a": "\\n"}}',
    '<html><body class="x">&amp; &lt;</body></html>',
    "https://example.org/a/b?c=d&e=%20f#g",
    "SELECT * FROM t WHERE a != 'b' -- comment",
    "!@#$%^&*()_+-=[]{}|;':\",./<>?`~",
    "......!!!???---===***",
    "\U0001f600\U0001f680 \U0001f44d\U0001f3fd",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f3f3\ufe0f\u200d\U0001f308 \U0001f1eb\U0001f1f7",
    "cafe\u0301 nai\u0308ve A\u030a o\u0302\u0323",
    "café naïve Å ộ ﬁ ﬀ",
    "你好,世界!今天天气怎么样?",
    "こんにちは世界。カタカナとひらがな",
    "안녕하세요 세계",
    "Привет, мир! Ёлка и ещё",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "Straße GROẞ İstanbul \u0131I ǆ ŉ",
    "mixed 中文 and English 123 и русский\n",
    "\u0001\u007f\ufffd\U0010fffd",
    "a" * 70,
    "naïve_имя2 = 'строка'  # コメント",
)
"""What tokenizers get wrong: spaces, newlines, digits, contractions, code, emoji, combining marks, scripts."""


ENGINE_HABITS = {
    "composed": "the source's tokenizer composes characters (NFC) and the engine does not: {n} texts have equal"
    " token ids only after composing",
    "spaced": "the engine puts a space before text that starts with one or follows a special token and the source's"
    " tokenizer does not: {n} texts have its token ids only with that space",
    "kept": "the source's tokenizer takes the spaces before some special tokens away and the engine does not: {n} texts"
    " have equal token ids only without them",
    "shortened": "where the engine takes accents away it takes all marks (vowel signs of Indic scripts) and keeps the"
    " first letter of a Korean syllable: {n} texts have the token ids of what is left",
    "dotted": "the engine makes one small letter of the Turkish capital with a dot and the source's tokenizer two:"
    " {n} texts have other token ids",
}
"""What an engine does differently with every file, however it was made: a note and not a fault of the artifact."""


class Tokenizes(Protocol):
    """What turns text into token ids: a session or a reference, of a decoder or an encoder."""

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids of `text`; special tokens written in it are recognised."""


class SourceTokenizer(Tokenizes, Protocol):
    """A source's tokenizer, and what it treats in its own way: see `Reference`."""

    special_tokens: tuple[str, ...]
    added_tokens: tuple[str, ...]


def check_parity(reference: Reference, session: Session) -> tuple[Parity, list[str]]:
    """Compare the two tokenizers and chat templates; also notes for the reader."""
    habits: Counter[str] = Counter()
    tokens = _check_tokens(reference, session, habits)
    chat, difference = _check_chat(reference, session, habits)
    return dataclasses.replace(tokens, chat_template=chat, chat_difference=difference), _notes(habits)


def check_token_parity(reference: SourceTokenizer, session: Tokenizes) -> tuple[Parity, list[str]]:
    """Compare the two tokenizers of an encoder, which has no chat template; also notes for the reader."""
    habits: Counter[str] = Counter()
    return _check_tokens(reference, session, habits), _notes(habits)


def _check_tokens(reference: SourceTokenizer, session: Tokenizes, habits: Counter[str]) -> Parity:
    """The Parity of the token ids; nothing is said of chat templates."""
    strings = [*HARD_STRINGS, *special_strings(reference.special_tokens)]
    plain = _mismatches(reference, session, strings, habits, add_special=False)
    special = _mismatches(reference, session, strings, Counter(), add_special=True)
    # A text that differs without special tokens says nothing about BOS.
    differing = {mismatch.text for mismatch in plain}
    bos = [mismatch for mismatch in special if mismatch.text not in differing]
    return Parity(
        n_strings=len(strings),
        mismatches=tuple(plain),
        bos=not bos,
        bos_difference=describe(bos[0]) if bos else None,
        chat_template=None,
        chat_difference=None,
        n_noted=habits.total(),
    )


def _notes(habits: Counter[str]) -> list[str]:
    return [text.format(n=habits[habit]) for habit, text in ENGINE_HABITS.items() if habits[habit]]


def special_strings(tokens: Iterable[str]) -> list[str]:
    """Hard strings around the special tokens of a model: alone, inside a sentence, doubled."""
    return [text for token in tokens for text in (token, f"before {token} after", f"x{token}{token}\n{token} y")]


def describe(mismatch: TokenMismatch) -> str:
    """One mismatch for people: the text and the ids from the first that differs."""
    pairs = zip(mismatch.source_ids, mismatch.artifact_ids, strict=False)
    shorter = min(len(mismatch.source_ids), len(mismatch.artifact_ids))
    at = next((index for index, (ours, theirs) in enumerate(pairs) if ours != theirs), shorter)
    source, artifact = (list(ids[at : at + 4]) for ids in (mismatch.source_ids, mismatch.artifact_ids))
    return f"{mismatch.text[:40]!r}: from token {at} on, source {source}, artifact {artifact}"


def _mismatches(
    reference: SourceTokenizer, session: Tokenizes, strings: Iterable[str], habits: Counter[str], *, add_special: bool
) -> list[TokenMismatch]:
    """The strings whose ids differ; those that differ by a habit of the engine are counted in `habits` instead."""
    found = []
    for text in strings:
        ours = reference.tokenize(text, add_special=add_special)
        theirs = session.tokenize(text, add_special=add_special)
        if ours == theirs:
            continue
        habit = _habit(text, (reference, ours), (session, theirs), add_special=add_special)
        if habit:
            habits[habit] += 1
        else:
            found.append(TokenMismatch(text, add_special, tuple(ours), tuple(theirs)))
    return found


def _habit(
    text: str, source: tuple[SourceTokenizer, list[int]], engine: tuple[Tokenizes, list[int]], *, add_special: bool
) -> str:
    """The one of ENGINE_HABITS that explains the ids of the two sides, or ""."""
    (reference, ours), (session, theirs) = source, engine

    def is_ours(written: str, *, by: Tokenizes = reference) -> bool:
        """The text means the same to the source (to the engine: `by`) when it is written so."""
        return by.tokenize(written, add_special=add_special) == ours

    def is_theirs(written: str) -> bool:
        """What the engine made of the text is what the source makes of this one."""
        return written != text and reference.tokenize(written, add_special=add_special) == theirs

    composed, bare = unicodedata.normalize("NFC", text), _bare(text, reference.added_tokens)
    if composed != text and is_ours(composed, by=session):
        return "composed"
    if is_theirs(_spaced(text, reference.added_tokens)):
        return "spaced"
    if bare != text and is_ours(bare, by=session):
        return "kept"
    # The source takes accents away too, or makes two letters of a capital: else the engine must not change them.
    if is_theirs(shorten(text)) and is_ours(_without_accents(text)):
        return "shortened"
    if is_theirs(text.replace("\u0130", "i")) and is_ours(text.replace("\u0130", "i\u0307")):
        return "dotted"
    return ""


def _spaced(text: str, added_tokens: Iterable[str]) -> str:
    """One more space where llama.cpp's SentencePiece puts it: before a leading space, after each added token.

    Text that starts with a letter is left alone: there the file's own add_space_prefix decides, which can be wrong.
    """
    longest_first = sorted(added_tokens, key=len, reverse=True)
    if longest_first:
        text = re.sub(f"({'|'.join(map(re.escape, longest_first))})", "\\1\0", text)
        # Nothing goes between two added tokens nor behind the last one.
        text = re.sub(f"\0(?=({'|'.join(map(re.escape, longest_first))})|$)", "", text)
    return (" " if text.startswith(" ") else "") + text.replace("\0", " ")


def shorten(text: str) -> str:
    """What llama.cpp's WordPiece makes of a text where accents go: of what falls apart the first part, and no marks."""
    parts = (unicodedata.normalize("NFD", letter)[0] for letter in text)
    return "".join(part for part in parts if not unicodedata.category(part).startswith("M"))


def _without_accents(text: str) -> str:
    """The text as BERT's tokenizer has it where accents go: apart, without the marks that take no room."""
    return "".join(part for part in unicodedata.normalize("NFD", text) if unicodedata.category(part) != "Mn")


def _bare(text: str, added_tokens: Iterable[str]) -> str:
    """The text without the spaces before added tokens, which those with `lstrip` take away."""
    longest_first = sorted(added_tokens, key=len, reverse=True)
    return re.sub(rf"\s+(?={'|'.join(map(re.escape, longest_first))})", "", text) if longest_first else text


def _check_chat(reference: Reference, session: Session, habits: Counter[str]) -> tuple[bool | None, str | None]:
    template = session.chat_template()
    if not reference.has_chat_template and template is None:
        return None, None
    if template is None:
        return False, "the source has a chat template, the artifact has none"
    if not reference.has_chat_template:
        return False, "the artifact has a chat template, the source has none"
    names = {"bos_token": session.special_text("bos"), "eos_token": session.special_text("eos")}
    for index, conversation in enumerate(CONVERSATIONS):
        for prompt in (False, True):
            ours = outcome(partial(reference.render, conversation, prompt=prompt))
            theirs = outcome(partial(render, template, conversation, names, prompt=prompt))
            difference = _text_difference(ours, theirs) or _id_difference(reference, session, ours, habits)
            if difference:
                return False, f"conversation {index + 1}{', generation prompt' if prompt else ''}: {difference}"
    return True, None


def _text_difference(ours: str, theirs: str) -> str | None:
    if ours == theirs:
        return None
    shorter = min(len(ours), len(theirs))
    at = next((index for index in range(shorter) if ours[index] != theirs[index]), shorter)
    return f"from character {at} on, source {ours[at : at + 40]!r}, artifact {theirs[at : at + 40]!r}"


def _id_difference(reference: Reference, session: Session, text: str, habits: Counter[str]) -> str | None:
    found = _mismatches(reference, session, [text], habits, add_special=False)
    return describe(found[0]) if found else None
