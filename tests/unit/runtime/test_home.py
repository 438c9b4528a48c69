from __future__ import annotations

from runtime.home import home


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("PACKLIGHT_HOME", "/data/packlight")
    assert str(home()) == "/data/packlight"
    monkeypatch.delenv("PACKLIGHT_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert home() == tmp_path / "packlight"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/pi")
    assert str(home()) == "/home/pi/.cache/packlight"
