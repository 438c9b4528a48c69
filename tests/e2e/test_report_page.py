"""Pages of `packlight report` in a real Chromium: nothing loaded or said, no scrolling sideways, two schemes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support.chromium import look, said_of
from support.command_line import packlight
from support.reports import document, encoder_document, exported

from runtime.artifact import FileRecord

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

LONG = "a-model-whose-name-has-no-place-to-break-in-and-is-longer-than-any-phone-is-wide-" * 3


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One artifact with every part, several with long names, and an encoder; written by the program."""
    room = tmp_path_factory.mktemp("pages")
    inputs = {
        "one": [exported(room / "out")],
        "several": [room / f"{number}.json" for number in range(4)],
        "encoder": [room / "encoder.json"],
    }
    for number, path in enumerate(inputs["several"]):
        size = {"x.gguf": FileRecord((80 + 20 * number) * 10**6, "00" * 32)}
        report = document(room / LONG, kl=0.2 / 4**number, name=f"{LONG}{number}", source=LONG, files=size)
        path.write_text(json.dumps(report), encoding="utf-8")
    inputs["encoder"][0].write_text(json.dumps(encoder_document(room)), encoding="utf-8")
    found = {}
    for name, paths in inputs.items():
        found[name] = room / f"{name}.html"
        ran = packlight("report", *paths, "-o", found[name])
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout == f"written: {found[name]}\n"
    return found


@pytest.mark.parametrize("name", ["one", "several", "encoder"])
@pytest.mark.parametrize("width", [360, 1280])
def test_a_page_fits_its_width(name: str, width: int, pages: dict[str, Path], tmp_path: Path) -> None:
    seen = look(pages[name], tmp_path, width=width)
    assert (seen.scroll_width, seen.wide, seen.said) == (width, "", ())


def test_a_page_follows_the_reader_s_scheme(pages: dict[str, Path], tmp_path: Path) -> None:
    backs = {dark: look(pages["one"], tmp_path, width=360, dark=dark).back for dark in (False, True)}
    assert backs == {False: "rgb(255, 255, 255)", True: "rgb(20, 23, 27)"}


@pytest.mark.parametrize("name", ["one", "several"])
def test_a_page_opened_as_a_file_loads_and_runs_nothing(name: str, pages: dict[str, Path], tmp_path: Path) -> None:
    assert said_of(pages[name], tmp_path) == ()


def test_the_probe_sees_what_it_is_for(pages: dict[str, Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    planted = '<img src="http://127.0.0.1:9/x.png"><script>1</script><div style="width:500px">x</div><main'
    bad.write_text(pages["one"].read_text(encoding="utf-8").replace("<main", planted), encoding="utf-8")
    seen = look(bad, tmp_path / "room", width=360)
    assert seen.scroll_width > 360
    assert "DIV" in seen.wide
    for said in (seen.said, said_of(bad, tmp_path / "room")):
        assert sum("violates the following Content Security Policy" in line for line in said) == 2
