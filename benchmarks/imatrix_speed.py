"""`packlight imatrix` against llama-imatrix: wall time, peak memory, and what files quantized with either keep.

    python -m benchmarks.imatrix_speed [--runs 3] [--chunks 32] [--presets q4_k_m iq4_xs iq3_xxs]

On the off-grid copy of SmolLM2, the same text and pieces of 512 tokens. Whole processes on two processors, one after
the other in turn, medians over the runs. llama-imatrix reads a BF16 and an F32 file, since which it runs faster differs
between processors, and computes no perplexity (`--no-ppl`), as ours does not. A preset's two files are made by
`packlight export --imatrix`, which differs in nothing but the matrix, and judged by `packlight verify` on other text.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.convert_speed import THREADS, ours_command
from benchmarks.kl_parity import CONTEXT, export, ours
from benchmarks.models import offgrid
from benchmarks.paths import CACHE
from benchmarks.smollm2 import smollm2
from benchmarks.spawn import Cost, run
from benchmarks.tools import tool

NAME = "imatrix_speed"
OURS = ("packlight imatrix", "packlight imatrix --low-memory")
THEIRS = ("llama-imatrix, BF16", "llama-imatrix, F32")
WALL_LIMIT = 1.0
"""Largest allowed quotient of the wall times, ours over the faster of theirs; with --low-memory there is none."""
DRIFT_LIMIT = 0.03
"""Largest allowed relative difference of the mean KL divergences of two files of a preset."""
EVALUATED = 20
"""Pieces that drift is measured on."""


def roads(model: Path, work: Path, text: Path, chunks: int) -> dict[str, tuple[list[str], Path]]:
    """Command and the matrix that it writes, by road. work: holds bf16/ and f32/ with the model as GGUF"""
    packlight, cut = str(Path(sys.executable).with_name("packlight")), ["--chunks", str(chunks)]
    found = {}
    for road, source in zip(THEIRS, ("bf16", "f32"), strict=True):
        out = work / f"theirs-{source}.gguf"
        (file,) = (work / source).glob("*.gguf")
        command = [str(tool("llama-imatrix")), "-m", str(file), "-f", str(text), "-o", str(out), "--no-ppl"]
        found[road] = ([*command, "-c", str(CONTEXT), "-t", str(THREADS), *cut], out)
    for road, more in zip(OURS, ([], ["--low-memory"]), strict=True):
        out = work / f"ours-{'-'.join(more)}.gguf"
        command = [packlight, "imatrix", str(model), "--text", str(text), "-o", str(out), "--overwrite", "--quiet"]
        found[road] = ([*command, "--tokens", str(CONTEXT), "--threads", str(THREADS), *cut, *more], out)
    return found


def timed(commands: dict[str, tuple[list[str], Path]], runs: int) -> dict[str, dict[str, Any]]:
    """Median cost and every run's, by road; the roads take turns."""
    costs: dict[str, list[Cost]] = {road: [] for road in commands}
    for number in range(runs):
        for road, (command, _) in commands.items():
            costs[road].append(run(command, THREADS, {**os.environ, "HF_HUB_OFFLINE": "1"}))
            print(f"{number + 1}/{runs} {road}: {costs[road][-1]}", file=sys.stderr, flush=True)
    return {
        road: {
            **{key: statistics.median(asdict(cost)[key] for cost in found) for key in asdict(found[0])},
            "runs": [asdict(cost) for cost in found],
        }
        for road, found in costs.items()
    }


def drift(preset: str, matrix: Path, model: Path, work: Path, text: Path) -> dict[str, Any]:
    """What `packlight verify` says of the model quantized with an importance matrix."""
    out = work / f"{matrix.stem}-{preset}"
    subprocess.run(ours_command(model, preset, out, "--imatrix", str(matrix)), check=True, stdout=sys.stderr)
    (file,) = out.glob("*.gguf")
    return ours(file, model, text, EVALUATED)


def judged(content: dict[str, Any]) -> list[tuple[str, float, float]]:
    """What is limited, its figure and its limit."""
    fastest = min(content["roads"][road]["wall_s"] for road in THEIRS)
    found = [("wall time", content["roads"][OURS[0]]["wall_s"] / fastest, WALL_LIMIT)]
    return found + [
        (f"drift, {row['preset']}", abs(row["ours"]["mean_kl"] / row["theirs"]["mean_kl"] - 1), DRIFT_LIMIT)
        for row in content["rows"]
    ]


def table(content: dict[str, Any]) -> str:
    """The result as two tables of Markdown."""
    fastest = min(content["roads"][road]["wall_s"] for road in THEIRS)
    lines = ["| road | wall, s | of the faster llama-imatrix (limit) | CPU, s | peak, MB |", "| --- | " + "---: | " * 4]
    for road, cost in content["roads"].items():
        ratio = f"{cost['wall_s'] / fastest:.2f}"
        if road == OURS[0]:
            ratio = record.judged(f"{ratio} ({WALL_LIMIT:g})", cost["wall_s"] / fastest <= WALL_LIMIT)
        figures = f"{cost['wall_s']:.1f} | {ratio} | {cost['cpu_s']:.1f} | {cost['peak_rss_bytes'] / 1e6:.0f}"
        lines.append(f"| {road} | {figures} |")
    lines += [
        "",
        "| preset | mean KL: llama-imatrix's matrix | packlight's | difference (limit) | same top-1: theirs | ours |",
    ]
    lines.append("| --- | " + "---: | " * 5)
    for row in content["rows"]:
        a, b = row["theirs"], row["ours"]
        difference = b["mean_kl"] / a["mean_kl"] - 1
        cell = record.judged(f"{100 * difference:+.1f} % ({100 * DRIFT_LIMIT:g})", abs(difference) <= DRIFT_LIMIT)
        tops = f"{100 * a['same_top1']:.1f} % | {100 * b['same_top1']:.1f} %"
        lines.append(f"| {row['preset'].upper()} | {a['mean_kl']:.4f} | {b['mean_kl']:.4f} | {cell} | {tops} |")
    return "\n".join(line.rstrip() for line in lines)


def main() -> None:
    """Run, print the tables, write the result; exit status 1 where a limit does not hold."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--chunks", type=int, default=32)
    parser.add_argument("--presets", nargs="+", default=["q4_k_m", "iq4_xs", "iq3_xxs"])
    args = parser.parse_args()
    from targets.text import default_text

    content: dict[str, Any] = {**record.provenance(), "chunks": args.chunks, "threads": THREADS, "rows": []}
    model = offgrid(smollm2())
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        work = Path(directory)
        texts = {half: work / f"{half}.txt" for half in ("calibration", "evaluation")}
        for half, path in texts.items():
            path.write_text(default_text(half).text, encoding="utf-8", newline="")
        for kind in ("bf16", "f32"):
            export(model, kind, work / kind)
        commands = roads(model, work, texts["calibration"], args.chunks)
        content["roads"] = timed(commands, args.runs)
        record.save(NAME, content)
        for preset in args.presets:
            found = {
                whose: drift(preset, commands[road][1], model, work, texts["evaluation"])
                for whose, road in (("theirs", THEIRS[1]), ("ours", OURS[0]))
            }
            content["rows"].append({"preset": preset, **found})
            record.save(NAME, content)
    print(table(content))
    broken = [f"{what}: {figure:.3f} over {limit}" for what, figure, limit in judged(content) if figure > limit]
    print("\n".join(broken) or "every limit holds", file=sys.stderr)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
