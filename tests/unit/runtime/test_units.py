from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import UserError
from runtime.units import format_bytes, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1000", 1000), ("700MB", 700_000_000), ("0.5GiB", 536_870_912), (" 3 kib ", 3072), ("2g", 2 * 10**9)],
)
def test_sizes_as_people_write_them(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1.5.2GB", "3 parsecs", "0", "0.0GB", "1e3"])
def test_anything_else_is_refused_with_an_example(text):
    with pytest.raises(UserError, match="is not a size"):
        parse_bytes(text)


@given(st.integers(min_value=1, max_value=10**15))
def test_plain_bytes_are_read_back(size):
    assert parse_bytes(str(size)) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("300s", 300), ("5min", 300), ("90", 90), (" 1.5 MIN ", 90), ("1h", 3600), ("1", 1)]
)
def test_durations_as_people_write_them(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "min", "-5min", "5 parsecs", "1e3", "5MB", "0", "0.5s", "8000h", "nan", "9" * 400]
)
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(UserError, match="is not a duration"):
        parse_seconds(text)


def test_printed_in_millions():
    assert format_bytes(105_512_345) == "105.5 MB"
