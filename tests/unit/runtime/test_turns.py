from __future__ import annotations

import io

import pytest
from support.doubles import FakeDecoder, FakeEncoderSession

from runtime import turns
from runtime.memory import Resident
from runtime.turns import LEAK_BYTES, Turn, leak_note, turn_figures, turn_names
from runtime.worker import Answers, fill_context, run_conversation, run_passes

MIB = 1 << 20


def test_names_and_figures():
    assert turn_names(2, "turn") == ["first turn", "second turn"]
    assert turn_names(4, "pass") == ["first pass", "second pass", "pass 3", "pass 4"]
    figures = turn_figures([Turn(100, 90, 50), Turn(130, 95, 50), Turn(130, 92, 50)])
    assert figures == {"second_turn_growth_bytes": 30, "turn_rss_bytes": [90, 95, 92]}


def test_growth_that_goes_on_is_named_with_its_slope():
    grown = [9 * MIB, 20 * MIB, *(20 * MIB + number * MIB for number in range(1, 9))]
    note = leak_note(grown, 0, "turn")
    assert note == "memory still grew in every one of the last 5 turns, by 1,048,576 bytes each: perhaps a leak"
    assert "of which the cache explains 1,000" in leak_note(grown, 1000, "turn")
    assert "last 5 passes" in leak_note(grown, 0, "pass")


@pytest.mark.parametrize(
    ("resident_bytes", "expected"),
    [
        ([MIB, 9 * MIB, 17 * MIB], 0),  # too few to tell
        ([MIB, 9 * MIB, *[9 * MIB] * 8], 0),  # what a first use touches
        ([number * MIB for number in range(10)], MIB),  # the cache fills
        ([number * LEAK_BYTES for number in range(10)], 0),  # noise of pages
        ([*(number * MIB for number in range(9)), 8 * MIB], 0),  # it has come to an end
    ],
)
def test_growth_that_is_no_leak(resident_bytes, expected):
    assert leak_note(resident_bytes, expected, "turn") is None


@pytest.mark.parametrize(("count", "prompt", "answer"), [(2, 24, 8), (10, 5, 1), (32, 1, 1)])
def test_turns_share_the_context(count, prompt, answer):
    session, answers = FakeDecoder(64), Answers(io.StringIO())
    assert len(run_conversation(session, 64, count, answers)) == count
    assert session.done == ["reset", *[f"prefill {prompt}", *["decode"] * answer] * count]
    assert session.longest == count * (prompt + answer) > 64 - count


def test_a_session_that_leaks_is_told(monkeypatch):
    held = iter(range(100 * MIB, 200 * MIB, MIB))
    answers = Answers(io.StringIO())
    monkeypatch.setattr(turns, "resident", lambda: Resident(7, 7, "VmHWM"))  # pages of files do not count
    monkeypatch.setattr(turns, "anonymous_bytes", lambda: next(held))
    run_conversation(FakeDecoder(64), 64, 8, answers)
    assert "the last 4 turns, by 1,048,576 bytes each, of which the cache explains 800" in answers.notes[0]
    passes = Answers(io.StringIO())
    run_passes(FakeEncoderSession(), 16, 6, passes)
    assert "the last 3 passes" in passes.notes[0]


@pytest.mark.parametrize(("decode", "prompt"), [(8, 56), (64, 32)])
def test_the_context_is_filled_to_its_last_token(decode, prompt):
    session, answers = FakeDecoder(64), Answers(out := io.StringIO())
    assert fill_context(session, 64, decode, answers) > 0
    assert session.done == ["reset", f"prefill {prompt}", *["decode"] * (64 - prompt)]
    assert session.n_past == 64
    assert out.getvalue() == '{"phase": "full context"}\n'
