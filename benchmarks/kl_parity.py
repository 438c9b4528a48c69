"""Our verify's figures against llama-perplexity's own, for the same files and the same text.

    python -m benchmarks.kl_parity [--quants q4_k_m q4_0] [--chunks 10]

On the off-grid copy of SmolLM2. llama-perplexity compares the quantized file with an F32 file in llama.cpp;
`packlight verify` compares it with the source in torch. Both score the second half of chunks of 512 tokens.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.convert_speed import ours_command
from benchmarks.models import offgrid
from benchmarks.paths import CACHE
from benchmarks.smollm2 import smollm2
from benchmarks.tools import tool
from runtime.openmp import child_environment

CONTEXT = 512
LIMIT = 0.05
"""Largest allowed relative difference of the mean KL divergence."""
PATTERNS = {
    "mean_kl": r"^Mean\s+KLD:\s+(\S+)",
    "p99_kl": r"^99\.0%\s+KLD:\s+(\S+)",
    "perplexity": r"^Mean PPL\(Q\)\s+:\s+(\S+)",
    "source_perplexity": r"^Mean PPL\(base\)\s+:\s+(\S+)",
    "same_top1": r"^Same top p:\s+(\S+)",
}


def export(model: Path, quant: str, out: Path) -> Path:
    """The .gguf file of `model` as `quant`, by packlight."""
    subprocess.run(ours_command(model, quant, out), check=True, stdout=sys.stderr)
    (path,) = out.glob("*.gguf")
    return path


def perplexity(*arguments: str) -> str:
    """Output of llama-perplexity."""
    command = [str(tool("llama-perplexity")), "-c", str(CONTEXT), "-b", str(CONTEXT), "-t", "2", *arguments]
    done = subprocess.run(
        command, env=child_environment(2), capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def theirs(quantized: Path, text: Path, base: Path, chunks: int) -> dict[str, float]:
    """llama-perplexity's figures for `quantized` against the logits in `base`."""
    output = perplexity(
        "-m", str(quantized), "-f", str(text), "--kl-divergence", "--kl-divergence-base", str(base),
        "--chunks", str(chunks),
    )  # fmt: skip
    found = {key: re.search(pattern, output, re.MULTILINE) for key, pattern in PATTERNS.items()}
    missing = [key for key, match in found.items() if match is None]
    if missing:
        raise RuntimeError(f"llama-perplexity printed no {', '.join(missing)}:\n{output[-2000:]}")
    figures = {key: float(match[1].rstrip("%")) for key, match in found.items() if match}
    return {**figures, "same_top1": figures["same_top1"] / 100}


def ours(quantized: Path, model: Path, text: Path, chunks: int) -> dict[str, Any]:
    """Our verify's figures for `quantized` against `model`."""
    from exporter.checkpoint import resolve
    from exporter.verify import VerifyOptions, verify
    from runtime.artifact import open_artifact

    options = VerifyOptions(text=text, chunks=chunks, context=CONTEXT, threads=2)
    drift = verify(open_artifact(quantized), resolve(str(model)), options, lambda _what, _done, _total: None)
    figures = {key: getattr(drift, key) for key in PATTERNS}
    return {**figures, "engine": drift.engine, "reference": drift.reference, "tokens_scored": drift.n_tokens_scored}


def table(content: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "| preset | mean KL: llama-perplexity | packlight verify | difference (limit) | 99 % KL: theirs | ours "
        "| perplexity: theirs | ours | same top-1: theirs | ours |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in content["rows"]:
        a, b = row["llama_perplexity"], row["packlight"]
        difference = f"{100 * row['difference']:+.2f} % ({100 * LIMIT:.0f} %)"
        lines.append(
            f"| {row['quant'].upper()} | {a['mean_kl']:.5f} | {b['mean_kl']:.5f} "
            f"| {record.judged(difference, abs(row['difference']) <= LIMIT)} | {a['p99_kl']:.4f} | {b['p99_kl']:.4f} "
            f"| {a['perplexity']:.4f} | {b['perplexity']:.4f} "
            f"| {100 * a['same_top1']:.2f} % | {100 * b['same_top1']:.2f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run, print the table, write the result; exit status 1 where the figures differ by more than LIMIT."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kl_parity", description=__doc__.splitlines()[0])
    parser.add_argument("--quants", nargs="+", default=["q4_k_m", "q4_0"])
    parser.add_argument("--chunks", type=int, default=10)
    args = parser.parse_args()
    from targets.text import default_text

    model = offgrid(smollm2())
    evaluation = default_text("evaluation")
    content: dict[str, Any] = {**record.provenance(), "chunks": args.chunks, "context": CONTEXT, "rows": []}
    content["text"] = {"name": evaluation.name, "sha256": evaluation.sha256}
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        work = Path(directory)
        text, base = work / "text.txt", work / "base.kld"
        text.write_text(evaluation.text, encoding="utf-8", newline="")
        source = export(model, "f32", work / "f32")
        perplexity("-m", str(source), "-f", str(text), "--save-all-logits", str(base), "--chunks", str(args.chunks))
        for quant in args.quants:
            quantized = export(model, quant, work / quant)
            a = theirs(quantized, text, base, args.chunks)
            b = ours(quantized, model, text, args.chunks)
            difference = b["mean_kl"] / a["mean_kl"] - 1
            content["rows"].append({"quant": quant, "llama_perplexity": a, "packlight": b, "difference": difference})
    record.save("kl_parity", content)
    print(table(content))
    sys.exit(any(abs(row["difference"]) > LIMIT for row in content["rows"]))


if __name__ == "__main__":
    main()
