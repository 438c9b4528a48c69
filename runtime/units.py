"""Sizes and durations as people write them, and sizes as packlight prints them: MB is 10**6 bytes, MiB is 2**20."""

from __future__ import annotations

import re

from runtime.errors import UserError

_FACTORS = {
    "": 1, "b": 1,
    "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9, "t": 10**12, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Bytes of a size such as `700MB`, `0.5GiB` or `1000`. Raises UserError for anything else."""
    match = _SIZE.fullmatch(text)
    if match is None or match[2].lower() not in _FACTORS:
        raise UserError(f"'{text}' is not a size: write a number and a unit, for example 700MB or 0.5GiB")
    number = float(match[1]) * _FACTORS[match[2].lower()]
    size = round(number) if number < 2**63 else 0
    if size <= 0:
        raise UserError(f"'{shortened(text)}' is not a size: it has to be more than zero and less than 2**63 bytes")
    return size


_UNITS_S = {"": 1, "s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600}
LONGEST_S = 7 * 24 * 3600.0


def parse_seconds(text: str) -> float:
    """Seconds of a duration such as `5min`, `300s`, `1h` or `90`. Raises UserError for anything else."""
    match = _SIZE.fullmatch(text)
    if match is None or match[2].lower() not in _UNITS_S:
        raise UserError(f"'{shortened(text)}' is not a duration: write a number and a unit, for example 300s or 5min")
    seconds = float(match[1]) * _UNITS_S[match[2].lower()]
    if not 1 <= seconds <= LONGEST_S:
        raise UserError(f"'{shortened(text)}' is not a duration to measure: at least 1s, and at most a week")
    return seconds


def shortened(text: str, limit: int = 40) -> str:
    """`text`, cut where it would fill the line."""
    return text if len(text) <= limit else f"{text[:limit]}…"


def format_bytes(n_bytes: float) -> str:
    """A size for people, in MB = 10**6 bytes: `105.5 MB`."""
    return f"{n_bytes / 1e6:,.1f} MB"
