"""What an artifact weighs on its way to the device: our archive against zstd -19 of the same file.

    python -m benchmarks.archive [--quants q4_k_m q8_0 f16]

On the off-grid copy of SmolLM2. Both are zstd at level 19; ours packs each tensor's bytes in the order that packs best.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.kl_parity import export
from benchmarks.models import offgrid
from benchmarks.paths import CACHE
from benchmarks.smollm2 import smollm2

PACKLIGHT = str(Path(sys.executable).with_name("packlight"))


def row(quant: str, model: Path, work: Path) -> dict[str, Any]:
    """One artifact, packed by both, and ours back again."""
    import zstandard

    file = export(model, quant, work / quant)
    start = time.monotonic()
    plain = zstandard.ZstdCompressor(level=19, threads=2).compress(file.read_bytes())
    plain_s, archive = time.monotonic() - start, work / f"{quant}.pla"
    start = time.monotonic()
    command = [PACKLIGHT, "pack", str(file), "-o", str(archive), "--threads", "2", "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    packed_s = time.monotonic() - start
    start = time.monotonic()
    subprocess.run([PACKLIGHT, "unpack", str(archive), "-o", str(work / f"{quant}-back"), "--quiet"], check=True)
    unpacked_s = time.monotonic() - start
    whole = (work / f"{quant}-back" / file.name).read_bytes() == file.read_bytes()
    if not whole:
        raise RuntimeError(f"{quant}: came back otherwise than it was")
    return {
        "quant": quant, "bytes": file.stat().st_size, "zstd_bytes": len(plain), "zstd_s": plain_s,
        "ours": json.loads(done.stdout), "ours_s": packed_s, "unpack_s": unpacked_s,
    }  # fmt: skip


def table(content: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "| artifact | MB | zstd -19 | ours | ours / zstd (limit) | packing, s: zstd | ours | unpacking, s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in content["rows"]:
        size, ours = one["bytes"], one["ours"]["packed_bytes"]
        ratio = ours / one["zstd_bytes"]
        lines.append(
            f"| {one['quant'].upper()} | {size / 1e6:.1f} | {one['zstd_bytes'] / size:.1%} | {ours / size:.1%} "
            f"| {record.judged(f'{ratio:.3f} (≤ 1)', ratio <= 1)} | {one['zstd_s']:.0f} | {one['ours_s']:.0f} "
            f"| {one['unpack_s']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run, print the table, write the result; exit status 1 where ours is larger."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.archive", description=__doc__.splitlines()[0])
    parser.add_argument("--quants", nargs="+", default=["q4_k_m", "q8_0", "f16"])
    args = parser.parse_args()
    model, content = offgrid(smollm2()), {**record.provenance(), "rows": []}
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        content["rows"] += [row(quant, model, Path(directory)) for quant in args.quants]
    record.save("archive", content)
    print(table(content))
    sys.exit(any(one["ours"]["packed_bytes"] > one["zstd_bytes"] for one in content["rows"]))


if __name__ == "__main__":
    main()
