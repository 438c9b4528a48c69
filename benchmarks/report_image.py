"""The picture of a page that compares three quantizations, docs/assets/report.png.

    python -m benchmarks.report_image

SmolLM2-135M-Instruct, off the grid that it was published on, exported by `packlight export`, compared by
`packlight report`, opened by a Chromium without a window.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.models import offgrid
from benchmarks.paths import CACHE, ROOT

NAME = "report-image"
IMAGE = ROOT / "docs" / "assets" / "report.png"
QUANTS = ("q2_k", "q4_k_m", "q8_0")
LIMITS = ("--device", "raspberry-pi-5", "--context", "2048", "--max-memory", "300MB")
WIDTH, HEIGHT = 960, 960
"""CSS pixels: the table and the first figure."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--disable-extensions",
         "--disable-background-networking")  # fmt: skip


def packlight(*arguments: str, may_fail: bool = False) -> None:
    """Run it as a user does. may_fail: a verdict that is not met is worth a picture too."""
    command = [str(Path(sys.executable).with_name("packlight")), *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
    if done.returncode not in ((0, 1) if may_fail else (0,)):
        raise SystemExit(f"{' '.join(command)}: exit status {done.returncode}")


def table(_content: dict[str, Any]) -> str:
    """The picture itself, for a page in docs/how-to."""
    what = "Three quantizations of SmolLM2-135M-Instruct: a table, and their drift against their size"
    return f"![{what}](../assets/{IMAGE.name})"


def main() -> None:
    """Export, compare, take the picture, say where it comes from."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit(f"none of {', '.join(BROWSERS)} is installed; on Debian: apt-get install chromium")
    content = record.provenance()
    model = str(offgrid())
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        room = Path(directory)
        outs = [str(room / quant) for quant in QUANTS]
        for quant, out in zip(QUANTS, outs, strict=True):
            packlight("export", model, "--format", "gguf", "--quant", quant, *LIMITS, "-o", out, may_fail=True)
        page = room / "compare.html"
        packlight("report", *outs, "-o", str(page))
        command = [browser, *FLAGS, f"--user-data-dir={room / 'profile'}", f"--window-size={WIDTH},{HEIGHT}",
                   f"--screenshot={IMAGE}", page.as_uri()]  # fmt: skip
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=120)
    print(record.save(NAME, content))


if __name__ == "__main__":
    main()
