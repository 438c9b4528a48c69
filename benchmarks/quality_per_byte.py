"""What a file keeps of the model for its bytes: our recipes against llama-quantize with an importance matrix.

    python -m benchmarks.quality_per_byte [--models offgrid trained] [--presets q4_k_m q3_k_m q2_k] [--chunks 10]

On the off-grid copy of SmolLM2, most of whose rows are no whole blocks of a k-quant, and on a small Llama trained here
(benchmarks.trained), where all of them are. Both roads see the same calibration text, Python's own help, first half;
drift is judged on the second half by `packlight verify` of the finished files in llama.cpp, whose figures are
llama-perplexity's own (benchmarks.kl_parity).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.convert_speed import ours_command
from benchmarks.kl_parity import CONTEXT, export, ours
from benchmarks.models import offgrid
from benchmarks.paths import CACHE, ROOT
from benchmarks.smollm2 import smollm2
from benchmarks.spawn import run
from benchmarks.tools import tool
from benchmarks.trained import trained
from exporter.recipe import load_recipe

LIMITS = {"q5_k_m": 0.7, "q4_k_m": 0.7, "q3_k_m": 0.6, "q2_k": 0.5}
"""Largest allowed quotient of the mean KL divergences, ours over theirs, by preset."""
CALIBRATION = 32
"""Chunks of CONTEXT tokens that both roads are calibrated on."""
THREADS = 2
MODELS = {
    "offgrid": ("SmolLM2-135M off-grid, rows of 576", lambda: offgrid(smollm2())),
    "trained": ("Llama trained here, rows of 512", trained),
}
"""Models by name: what to call each, and how to get it."""
PLOT = ROOT / "docs" / "assets" / "quality_per_byte.svg"


def importance_matrix(source: Path, text: Path, out: Path) -> float:
    """Compute llama.cpp's importance matrix; seconds."""
    command = [str(tool("llama-imatrix")), "-m", str(source), "-f", str(text), "-o", str(out), "-c", str(CONTEXT)]
    return run([*command, "--chunks", str(CALIBRATION), "-t", str(THREADS)], THREADS).wall_s


def row(preset: str, model: Path, work: Path, text: Path, chunks: int) -> dict[str, Any]:
    """Both files of a preset, judged. work: holds the model's f32 file and its importance matrix"""
    theirs = work / f"theirs-{preset}.gguf"
    matrix, source = work / "imatrix.gguf", next((work / "f32").glob("*.gguf"))
    subprocess.run(
        [str(tool("llama-quantize")), "--imatrix", str(matrix), str(source), str(theirs), preset.upper(), str(THREADS)],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    packlight, between = str(Path(sys.executable).with_name("packlight")), work / f"between-{preset}"
    # The recipe that ships, on the text that llama-imatrix sees.
    recipe = load_recipe(f"best-{preset}").model_dump(mode="json", exclude_none=True, exclude={"calibration"})
    recipe["calibration"] = {"source": "help", "chunks": CALIBRATION, "tokens": CONTEXT}
    (work / f"{preset}.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    named = ["--recipe", str(work / f"{preset}.yaml"), "-o", str(between)]
    command = [packlight, "compress", str(model), *named, "--quiet"]
    cost = run([*command, "--threads", str(THREADS)], THREADS, {**os.environ, "HF_HUB_OFFLINE": "1"})
    out = work / f"ours-{preset}"
    subprocess.run(ours_command(between, preset, out), check=True, stdout=sys.stderr)
    (mine,) = out.glob("*.gguf")
    found = {
        "theirs": {"bytes": theirs.stat().st_size, **ours(theirs, model, text, chunks)},
        "ours": {"bytes": mine.stat().st_size, **ours(mine, model, text, chunks)},
    }
    found["ratio"] = found["ours"]["mean_kl"] / found["theirs"]["mean_kl"]
    print(f"{preset}: {found['ratio']:.3f}", file=sys.stderr, flush=True)
    return {"preset": preset, "compress_s": cost.wall_s, "compress_peak_bytes": cost.peak_rss_bytes, **found}


def holds(one: dict[str, Any]) -> bool:
    """Whether a row's limit holds: less drift, and no more bytes but for the header's texts."""
    same = one["ours"]["bytes"] <= one["theirs"]["bytes"] + HEADER
    return bool(same and one["ratio"] <= LIMITS[one["preset"]])


HEADER = 100_000
"""Bytes by which the headers may differ: they hold the same tokenizer, and other texts about the model."""


def table(content: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "| model | preset | MB: llama-quantize | packlight | mean KL: theirs | ours | ratio (limit) "
        "| same top-1: theirs | ours | compression, s | its peak, GB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in content["rows"]:
        a, b = one["theirs"], one["ours"]
        name = MODELS[one.get("model", "offgrid")][0]
        ratio = record.judged(f"{one['ratio']:.2f} (≤ {LIMITS[one['preset']]:g})", holds(one))
        lines.append(
            f"| {name} | {one['preset'].upper()} | {a['bytes'] / 1e6:.1f} | {b['bytes'] / 1e6:.1f} "
            f"| {a['mean_kl']:.4f} | {b['mean_kl']:.4f} | {ratio} | {100 * a['same_top1']:.1f} % "
            f"| {100 * b['same_top1']:.1f} % | {one['compress_s']:.0f} | {one['compress_peak_bytes'] / 1e9:.1f} |"
        )
    return "\n".join(lines)


def plot(content: dict[str, Any], out: Path = PLOT) -> None:
    """Bytes against drift, a panel a model, as SVG; the same result gives the same file."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "packlight"
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(one["model"] for one in content["rows"]))
    figure, panels = plt.subplots(1, len(names), figsize=(5 * len(names), 3.6), squeeze=False, layout="constrained")
    for name, panel in zip(names, panels[0], strict=True):
        rows = [one for one in content["rows"] if one["model"] == name]
        for whose, label, colour in (
            ("theirs", "llama-quantize --imatrix", "#8a8a8a"), ("ours", "packlight best-…", "#2563eb"),
        ):  # fmt: skip
            points = sorted((one[whose]["bytes"] / 1e6, one[whose]["mean_kl"]) for one in rows)
            panel.plot(*zip(*points, strict=True), marker="o", color=colour, label=label)
        for one in rows:
            panel.annotate(one["preset"].upper(), (one["theirs"]["bytes"] / 1e6, one["theirs"]["mean_kl"]), fontsize=8)
        panel.set(title=MODELS[name][0], xlabel="file, MB", ylabel="mean KL divergence", yscale="log")
        panel.grid(visible=True, which="both", alpha=0.25)
        panel.legend(fontsize=8)
    out.parent.mkdir(exist_ok=True)
    figure.savefig(out, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Run, print the table, write the result; exit status 1 where a limit does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality_per_byte", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--presets", nargs="+", default=["q5_k_m", "q4_k_m", "q3_k_m", "q2_k"])
    parser.add_argument("--chunks", type=int, default=10)
    args = parser.parse_args()
    from targets.text import default_text

    calibration, evaluation = default_text("calibration"), default_text("evaluation")
    content: dict[str, Any] = {**record.provenance(), "chunks": args.chunks, "context": CONTEXT, "rows": []}
    content |= {"text": {"name": evaluation.name, "sha256": evaluation.sha256}, "calibration_chunks": CALIBRATION}
    CACHE.mkdir(exist_ok=True)
    for name in args.models:
        model = MODELS[name][1]()
        with tempfile.TemporaryDirectory(dir=CACHE) as directory:
            work = Path(directory)
            for half, text in (("calibration", calibration), ("evaluation", evaluation)):
                (work / f"{half}.txt").write_text(text.text, encoding="utf-8", newline="")
            source = export(model, "f32", work / "f32")
            seconds = importance_matrix(source, work / "calibration.txt", work / "imatrix.gguf")
            for preset in args.presets:
                found = row(preset, model, work, work / "evaluation.txt", args.chunks)
                content["rows"].append({"model": name, "imatrix_s": seconds, **found})
    record.save("quality_per_byte", content)
    plot(content)
    print(table(content))
    sys.exit(not all(map(holds, content["rows"])))


if __name__ == "__main__":
    main()
