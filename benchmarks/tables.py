"""Fill the tables of the documentation from benchmarks/results/*.json and from the code: no number is typed by hand.

    python -m benchmarks.tables [--check]

Text between the markers of a page is replaced; a result that is not there yet is named as missing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import (
    archive,
    compress_memory,
    compression_methods,
    convert_speed,
    edge_torch,
    estimate_accuracy,
    harness_noise,
    imatrix_speed,
    kernel_speed,
    kl_parity,
    onnx_tables,
    openmp_waiting,
    quality_per_byte,
    record,
    report_image,
    size_curve,
    small_files,
    startup,
    training_encoders,
    training_recipes,
)
from benchmarks import thresholds as room_to_thresholds
from benchmarks.paths import ROOT
from runtime.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

VERBS = (
    "plan", "export", "compress", "imatrix", "merge", "adapter", "verify", "measure", "check", "report",
    "calibrate-host", "harness", "pack", "unpack", "devices", "formats", "recipes",
)  # fmt: skip
DOCS = ROOT / "docs"
MARKER = "<!-- table: {} -->"


def _result(name: str, render: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
    def table() -> str:
        content = record.load(name)
        return f"{render(content)}\n\n{record.describe(content)}" if content else "*Not run yet.*"

    return table


def _markdown(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    cells = list(header)
    lines = [cells, ["---"] * len(cells), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def devices() -> str:
    """The profiles that packlight carries."""
    from targets.device import list_devices

    header = ("id", "device", "memory", "usable by one app", "kind of that figure", "bandwidth", "cores")
    return _markdown(
        header,
        (
            (f"`{d.id}`", d.name, format_bytes(d.memory_bytes), format_bytes(d.usable_bytes), d.sources["usable"].kind,
             f"{d.bandwidth_bytes_per_s / 1e9:.1f} GB/s", d.cores)
            for d in list_devices()
        ),
    )  # fmt: skip


def presets(format_name: str = "gguf") -> str:
    """The quantization presets of a target."""
    from targets import get_target

    known = get_target(format_name).presets().items()
    return _markdown(("preset", "what"), ((f"`{name}`", text) for name, text in known))


def architectures() -> str:
    """The model classes that become GGUF."""
    from targets.gguf.architectures import ARCHITECTURES

    names = {entry.gguf: "" for entry in ARCHITECTURES.values()}
    for name, entry in sorted(ARCHITECTURES.items()):
        names[entry.gguf] += f"{', ' if names[entry.gguf] else ''}`{name}`"
    header = ("llama.cpp's name", "model classes")
    return _markdown(header, ((f"`{gguf}`", text) for gguf, text in sorted(names.items())))


def architectures_refused() -> str:
    """The model classes that are known and do not."""
    from targets.gguf.architectures import UNSUPPORTED

    return _markdown(("model class", "why"), ((f"`{name}`", why) for name, why in sorted(UNSUPPORTED.items())))


def thresholds() -> str:
    """The default limits of drift."""
    from targets.drift import THRESHOLDS

    header = (
        "bits per weight, at least",
        "mean KL, at most",
        "99th percentile",
        "perplexity ratio",
        "same top-1, at least",
    )
    return _markdown(header, ((least, *astuple(limits)) for least, limits in THRESHOLDS))


def command_line() -> str:
    """`--help` of every verb, as an 80-column terminal without colours shows it."""
    packlight = str(Path(sys.executable).with_name("packlight"))
    env = {**os.environ, "COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"}
    parts = []
    for verb in VERBS:
        done = subprocess.run([packlight, verb, "--help"], env=env, capture_output=True, text=True, check=True)
        text = "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())
        parts.append(f"## packlight {verb}\n\n```text\n{text}\n```")
    return "\n\n".join(parts)


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "benchmarks.md": {
        "convert_speed": _result("convert_speed", convert_speed.table),
        "kl_parity": _result("kl_parity", kl_parity.table),
        "estimate_accuracy": _result(estimate_accuracy.NAME, estimate_accuracy.table),
        "startup": _result("startup", startup.table),
        "onnx_peers": _result("onnx_peers", onnx_tables.table),
        "edge_torch": _result("edge_torch", edge_torch.table),
        "archive": _result("archive", archive.table),
        "openmp_waiting": _result("openmp_waiting", openmp_waiting.table),
        "harness_noise": _result("harness_noise", harness_noise.table),
        "size_curve": _result(size_curve.NAME, size_curve.table),
        "kernel_speed": _result(kernel_speed.NAME, kernel_speed.table),
        "imatrix_speed": _result(imatrix_speed.NAME, imatrix_speed.table),
        "compress_memory": _result("compress_memory", compress_memory.table),
        "compression_methods": _result("compression_methods", compression_methods.table),
        "training_recipes": _result("training_recipes", training_recipes.table),
        "training_encoders": _result("training_encoders", training_encoders.table),
        "quality_per_byte": _result("quality_per_byte", quality_per_byte.table),
        "small_files": _result("small_files", small_files.table),
    },
    "how-to/devices.md": {"devices": devices},
    "how-to/report.md": {"report_image": _result(report_image.NAME, report_image.table)},
    "how-to/onnx-mobile.md": {"onnx_sizes": _result("onnx_peers", onnx_tables.sizes)},
    "how-to/onnx-web.md": {"onnx_sizes": _result("onnx_peers", onnx_tables.sizes)},
    "how-to/executorch.md": {"executorch_presets": lambda: presets("executorch")},
    "how-to/torchscript.md": {"torchscript_presets": lambda: presets("torchscript")},
    "reference/architectures.md": {
        "architectures": architectures,
        "architectures_refused": architectures_refused,
    },
    "reference/cli.md": {"cli": command_line},
    "reference/presets.md": {"presets": presets, "onnx_presets": lambda: presets("onnx")},
    "reference/thresholds.md": {
        "thresholds": thresholds,
        "room_to_thresholds": _result("thresholds", room_to_thresholds.table),
    },
}


def fill(page: str, tables: dict[str, Callable[[], str]], where: str) -> str:
    """`page` with everything between each table's marker and the next end marker replaced."""
    end = MARKER.format("end")
    for name, render in tables.items():
        start = MARKER.format(name)
        before, found, rest = page.partition(start)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise SystemExit(f"{where}: needs a line {start} and after it a line {end}")
        page = f"{before}{start}\n\n{render()}\n\n{end}{after}"
    return page


def main() -> None:
    """Write the pages, or with --check only say which are out of date."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit status 1 where a page is out of date")
    args = parser.parse_args()
    stale = []
    for name, tables in PAGES.items():
        path = DOCS / name
        page = path.read_text(encoding="utf-8")
        filled = fill(page, tables, name)
        if filled != page:
            stale.append(name)
            if not args.check:
                path.write_text(filled, encoding="utf-8")
    if args.check and stale:
        sys.exit(f"out of date: {', '.join(stale)}; run python -m benchmarks.tables")


if __name__ == "__main__":
    main()
