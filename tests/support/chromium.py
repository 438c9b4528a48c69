"""A real Chromium without a window: what a page looks like to it, and what it says of the page."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
# Nothing of the browser's own goes over the network: what is left is the page's.
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
    "--enable-logging=stderr",
)  # fmt: skip
_PROBE = """
frame.onload = () => {{
  const page = frame.contentDocument;
  const wide = [...page.querySelectorAll("body *")].filter((one) => !one.closest("svg, .scroll, pre, .skip"))
    .filter((one) => one.getBoundingClientRect().right > {width});
  document.body.dataset.scroll = page.documentElement.scrollWidth;
  document.body.dataset.wide = wide.map((one) => one.tagName + "." + one.className).join(" ");
  document.body.dataset.back = frame.contentWindow.getComputedStyle(page.body).backgroundColor;
}};
"""


@dataclass(frozen=True)
class Seen:
    """scroll_width: of the page in a frame of some width; wide: elements that stick out of it; back: its background;
    said: what the browser wrote about the page on its console
    """

    scroll_width: int
    wide: str
    back: str
    said: tuple[str, ...]


def look(page: Path, room: Path, *, width: int, dark: bool = False) -> Seen:
    """Open a page in a frame of so many CSS pixels. Skips the test where there is no Chromium, on CI it fails."""
    room.mkdir(exist_ok=True)
    framed = html.escape(page.read_text(encoding="utf-8"))
    probe = _PROBE.format(width=width)
    wrapper = room / "frame.html"
    wrapper.write_text(
        f'<!doctype html><meta charset="utf-8"><body><iframe id="frame" style="border:0" width="{width}" height="800" '
        f'srcdoc="{framed}"></iframe><script>{probe}</script>',
        encoding="utf-8",
    )
    out, said = _run(room, "--dump-dom", f"--blink-settings=preferredColorScheme={0 if dark else 1}", wrapper.as_uri())
    found = dict(re.findall(r'data-(scroll|wide|back)="([^"]*)"', out))
    assert found, f"the probe did not run: {said}"
    return Seen(int(found["scroll"]), found["wide"], found["back"], _console(said))


def said_of(page: Path, room: Path) -> tuple[str, ...]:
    """What the browser says on its console about the page itself, opened as a file."""
    room.mkdir(exist_ok=True)
    return _console(_run(room, "--dump-dom", page.as_uri())[1])


def _run(room: Path, *arguments: str) -> tuple[str, str]:
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs chromium")
    command = [program, *_FLAGS, f"--user-data-dir={room / 'profile'}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def _console(said: str) -> tuple[str, ...]:
    return tuple(line for line in said.splitlines() if "CONSOLE" in line)
