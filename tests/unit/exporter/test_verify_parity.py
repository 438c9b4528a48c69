from __future__ import annotations

import re
import unicodedata

import pytest
from support.doubles import TEMPLATE, FakeReference, FakeSession

from exporter.verify.parity import HARD_STRINGS, check_parity, describe, shorten, special_strings
from targets.drift import TokenMismatch, token_line


def test_hard_strings_are_many_distinct_and_as_written() -> None:
    assert len(HARD_STRINGS) == len(set(HARD_STRINGS)) >= 40
    assert any(unicodedata.normalize("NFC", text) != text for text in HARD_STRINGS)
    assert any("\r\n" in text for text in HARD_STRINGS)


def test_equal_models_have_parity() -> None:
    parity, notes = check_parity(FakeReference(add_bos=True), FakeSession(add_bos=True))
    assert (parity.mismatches, parity.bos, parity.chat_template, notes) == ((), True, True, [])
    assert parity.n_strings == len(HARD_STRINGS) + 3 * 2


def test_special_tokens_of_the_model_are_put_into_text() -> None:
    assert special_strings(["<s>"]) == ["<s>", "before <s> after", "x<s><s>\n<s> y"]

    class Deaf(FakeSession):
        def tokenize(self, text: str, *, add_special: bool) -> list[int]:
            return super().tokenize("", add_special=add_special) + list(text.encode())

    parity, _ = check_parity(FakeReference(), Deaf())
    assert {m.text for m in parity.mismatches} == set(special_strings(["<s>", "</s>"]))
    assert parity.bos  # texts that differ anyway say nothing about BOS


@pytest.mark.parametrize("source_adds", [True, False])
def test_bos_flag_is_compared_apart_from_token_ids(source_adds: bool) -> None:
    parity, _ = check_parity(FakeReference(add_bos=source_adds), FakeSession(add_bos=not source_adds))
    assert parity.mismatches == ()
    assert not parity.bos
    assert "256" in str(parity.bos_difference)


def test_an_engine_that_does_not_normalise_gets_a_note() -> None:
    class Composing(FakeReference):
        def tokenize(self, text: str, *, add_special: bool) -> list[int]:
            return super().tokenize(unicodedata.normalize("NFC", text), add_special=add_special)

    parity, notes = check_parity(Composing(), FakeSession())
    assert parity.mismatches == ()
    assert len(notes) == 1
    assert "NFC" in notes[0]
    differing = sum(unicodedata.normalize("NFC", text) != text for text in HARD_STRINGS)
    assert parity.n_noted == differing
    said = f"{parity.n_strings - differing} of {parity.n_strings} texts equal, the others as noted"
    assert token_line(parity).text == said


class Spacing(FakeSession):
    """Puts a space before the first text and after every special token, as llama.cpp's SentencePiece does."""

    def __init__(self, *, at_letters: bool) -> None:
        super().__init__()
        self.at_letters = at_letters

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        text = re.sub("(<s>|</s>)(?!<s>|</s>|$)", r"\1 ", text)
        prefix = " " if text.startswith(" ") or (self.at_letters and text) else ""
        return super().tokenize(prefix + text, add_special=add_special)


def test_an_engine_that_adds_spaces_gets_a_note_but_a_wrong_prefix_flag_fails() -> None:
    parity, notes = check_parity(FakeReference(), Spacing(at_letters=False))
    assert (parity.mismatches, parity.bos, parity.chat_template) == ((), True, True)
    assert ["puts a space" in note for note in notes] == [True]
    parity, _ = check_parity(FakeReference(), Spacing(at_letters=True))
    assert "Hello, world!" in {mismatch.text for mismatch in parity.mismatches}


class Unaccented(FakeReference):
    """Takes accents away, as an uncased BERT does."""

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        parts = (part for part in unicodedata.normalize("NFD", text) if unicodedata.category(part) != "Mn")
        return super().tokenize("".join(parts), add_special=add_special)


class Shortening(FakeSession):
    """Takes more than that away, as llama.cpp's WordPiece does."""

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        return super().tokenize(shorten(text), add_special=add_special)


def test_an_engine_that_takes_more_than_accents_gets_a_note_but_not_where_the_source_keeps_them() -> None:
    assert shorten("ộ क\u093fé 각a") == "o क" + "e ᄀa"
    parity, notes = check_parity(Unaccented(), Shortening())
    assert parity.mismatches == ()
    assert ["Korean" in note for note in notes] == [True]
    parity, _ = check_parity(FakeReference(), Shortening())
    assert "café naïve Å ộ ﬁ ﬀ" in {mismatch.text for mismatch in parity.mismatches}


def test_an_engine_that_keeps_spaces_before_a_special_token_gets_a_note() -> None:
    class Stripping(FakeReference):
        def tokenize(self, text: str, *, add_special: bool) -> list[int]:
            return super().tokenize(re.sub(r"\s+(?=<s>|</s>)", "", text), add_special=add_special)

    parity, notes = check_parity(Stripping(), FakeSession())
    assert parity.mismatches == ()
    assert ["takes the spaces before" in note for note in notes] == [True]
    parity, _ = check_parity(FakeReference(), FakeSession())
    assert parity.mismatches == ()


def test_a_capital_that_becomes_two_letters_gets_a_note() -> None:
    class Lower(FakeReference):
        def tokenize(self, text: str, *, add_special: bool) -> list[int]:
            return super().tokenize(text.lower(), add_special=add_special)

    class LowerOneByOne(FakeSession):
        def tokenize(self, text: str, *, add_special: bool) -> list[int]:
            return super().tokenize(text.replace("İ", "i").lower(), add_special=add_special)

    parity, notes = check_parity(Lower(), LowerOneByOne())
    assert (parity.mismatches, len(notes)) == ((), 1)
    assert "Turkish" in notes[0]
    parity, _ = check_parity(FakeReference(), LowerOneByOne())
    assert parity.mismatches


def test_the_chat_template_is_compared_by_what_it_renders() -> None:
    def chat(source: str | None, artifact: str | None) -> tuple[bool | None, str | None]:
        parity, _ = check_parity(FakeReference(template=source), FakeSession(template=artifact))
        return parity.chat_template, parity.chat_difference

    assert chat(TEMPLATE, TEMPLATE + "{# a comment #}") == (True, None)
    assert chat(None, None) == (None, None)
    assert chat(TEMPLATE, None) == (False, "the source has a chat template, the artifact has none")
    assert chat(None, TEMPLATE) == (False, "the artifact has a chat template, the source has none")
    holds, difference = chat(TEMPLATE, TEMPLATE.replace("assistant:", "assistant: "))
    assert holds is False
    assert difference is not None
    assert difference.startswith("conversation 1, generation prompt: from character")
    refusing = "{{ raise_exception('no') }}"
    assert chat(refusing, refusing) == (True, None)
    assert chat(TEMPLATE, refusing)[0] is False


def test_the_artifacts_own_special_texts_go_into_its_template() -> None:
    class OtherEos(FakeSession):
        def special_text(self, which: str) -> str | None:
            return {"bos": "<s>", "eos": "<eos>"}[which]

    parity, _ = check_parity(FakeReference(), OtherEos())
    assert parity.chat_template is False


def test_a_mismatch_is_described_from_where_it_starts() -> None:
    assert describe(TokenMismatch("12", False, (5, 6, 7), (5, 9))) == (
        "'12': from token 1 on, source [6, 7], artifact [9]"
    )
    assert describe(TokenMismatch("1", True, (5,), (5, 9))) == "'1': from token 1 on, source [], artifact [9]"
