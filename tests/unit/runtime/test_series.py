from __future__ import annotations

import dataclasses
import json

import pytest

from runtime.series import Sustained, Window, slope


def load(*speeds, **more):
    windows = tuple(Window(float(number + 1), speed) for number, speed in enumerate(speeds))
    return Sustained(float(len(speeds)), 1000, windows, **more)


def test_tenths_and_the_last_fifth_by_hand():
    cooled = load(*[10.0] * 4, *[9.0] * 12, 8.0, 7.0, 6.0, 4.0)  # 20 windows
    assert (cooled.first_tokens_per_s, cooled.last_tokens_per_s) == (10.0, 5.0)
    assert cooled.drop == pytest.approx(0.5)
    assert cooled.settled_tokens_per_s == pytest.approx(6.5)
    assert cooled.text == "6.5 tokens/s; first tenth 10.0, last tenth 5.0 (-50%)"


def test_one_window_is_first_and_last():
    one = load(3.0)
    assert (one.first_tokens_per_s, one.last_tokens_per_s, one.drop, one.settled_tokens_per_s) == (3.0, 3.0, 0.0, 3.0)
    assert one.text.endswith("last tenth 3.0 (no drop)")
    assert load(0.0).drop == 0.0
    assert "(+100%)" in load(1.0, 2.0).text


def test_energy():
    assert load(3.0).tokens_per_j is None
    known = load(3.0, energy_j=500.0, energy_source="a meter")
    assert known.tokens_per_j == 2.0
    assert known.text.endswith("; 2.00 tokens/J (a meter)")


def test_json():
    made = Sustained(2.0, 9, (Window(1.0, 5.0, 40.5, 2_000_000_000), Window(2.0, 4.0)), 3.0, "a meter")
    assert Sustained.from_json(json.loads(json.dumps(dataclasses.asdict(made)))) == made


def test_slope():
    assert slope((1, 3, 5)) == 2.0
    assert slope((0, 4, 2)) == 1.0
    assert slope((7,)) == slope(()) == 0.0
