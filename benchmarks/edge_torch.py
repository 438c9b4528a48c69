"""Our TorchScript and ExecuTorch exports against torch's own roads: python -m benchmarks.edge_torch.

    python -m benchmarks.edge_torch [--runs 3]

Off-grid SmolLM2 and MiniLM, two threads. Every figure is of a process of its own, taken in turn, medians over the runs;
benchmarks.edge_torch_runs are these processes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.models import minilm, offgrid
from benchmarks.onnx_judge import Verdict, figure
from benchmarks.onnx_peers import PROMPTS, alone
from benchmarks.onnx_runs import PROMPT, THREADS, median_of
from benchmarks.onnx_tables import limit_rows, markdown
from benchmarks.paths import CACHE, ROOT
from benchmarks.smollm2 import smollm2
from benchmarks.spawn import Cost, run
from runtime.artifact import open_artifact

WORK = CACHE / "edge-torch"
PEERS = ("eager", "trace", "exported")
DECODERS = ("eager", "trace", "fp32", "bf16", "int8", "int4", "exported", "pte fp32", "pte int8", "pte 8da4w")
ENCODERS = ("eager", "trace", "fp32", "int8", "dynamic-int8", "exported", "pte fp32", "pte int8")
"""Roads. "exported": transformers' own to ExecuTorch, as Optimum takes it; ours without PTE are TorchScript's."""
PTE = "pte "
CHUNKS, TRIALS = 8, 3
CAPACITY, ENCODER_TOKENS = 640, 512
"""Tokens that a decoder's fixed cache holds, and that an encoder takes at most."""
CACHE_BYTES = 30 * 2 * 3 * 64 * (PROMPT + 64 + 1) * 4
"""SmolLM2's float32 cache of the measured context."""


def child(task: str, **keywords: Any) -> dict[str, Any]:
    """What a task of benchmarks.edge_torch_runs returns. Raises RuntimeError with its last lines."""
    return _child(task, keywords)[0]


def _child(task: str, keywords: dict[str, Any]) -> tuple[dict[str, Any], Cost]:
    out = WORK / "answer.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.edge_torch_runs", task, str(out), json.dumps(keywords)]
    cost = run(command, THREADS, {**os.environ, "PYTHONPATH": str(ROOT)})
    answer: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    print(f"{task} {keywords.get('path', '')}: {json.dumps(answer)[:160]}", file=sys.stderr, flush=True)
    return answer, cost


def build(model: Path, name: str, part: str, auto: str) -> dict[str, Any]:
    """Write the file of a road; its path, its bytes, and what that cost."""
    out = WORK / f"{part}-{name.replace(' ', '-')}"
    if name == "eager":
        return {"path": str(model)}
    decoder = part == "decoder"
    if name in PEERS:
        extra = {"capacity": CAPACITY if decoder else ENCODER_TOKENS} if name == "exported" else {}
        answer, cost = _child(name, {"source": str(model), "path": str(out), "auto": auto, **extra})
        size = answer["model_bytes"]
    else:
        packlight = str(Path(sys.executable).with_name("packlight"))
        engine = "executorch" if name.startswith(PTE) else "torchscript"
        options = ["--format", engine, "--quant", name.removeprefix(PTE), "-o", str(out), "--no-verify", "--no-measure"]
        options += ["--context", str(CAPACITY)] if decoder else []
        cost = run([packlight, "export", str(model), *options], THREADS)
        size = open_artifact(out).model_bytes
    return {"path": str(out), "build_s": cost.wall_s, "build_peak_bytes": cost.peak_rss_bytes, "model_bytes": size}


def part(name: str, runs: int) -> list[dict[str, Any]]:
    """Rows of "decoder" or "encoder"."""
    decoder = name == "decoder"
    model = offgrid(smollm2()) if decoder else minilm()
    auto = "AutoModelForCausalLM" if decoder else "AutoModel"
    rows = [{"name": road, **build(model, road, name, auto)} for road in (DECODERS if decoder else ENCODERS)]
    measured: dict[str, list[dict[str, Any]]] = {row["name"]: [] for row in rows}
    for _ in range(runs):
        for row in rows:
            kind = row["name"] if row["name"] in PEERS else "packlight"
            task = {"task": "decoder", "trials": TRIALS} if decoder else {"task": "latency"}
            measured[row["name"]].append(child(**task, kind=kind, path=row["path"]))
    for row in rows:
        row |= {"runs": measured[row["name"]], **median_of(measured[row["name"]])}
        if row["name"] not in PEERS:
            extra = {"source": str(model), "path": row["path"]}
            row |= child("drift", chunks=CHUNKS, **extra) if decoder else child("cosine", **extra)
        if decoder and row["name"] in ("fp32", "pte fp32"):
            row |= child("parity", source=str(model), path=row["path"], prompts=list(PROMPTS))
        del row["path"]
    return rows


def pairs(content: dict[str, Any]) -> list[Verdict]:
    """Every limit of the issue, and whether it holds."""
    one = {row["name"]: row for row in content["decoder"]}
    two = {row["name"]: row for row in content["encoder"]}

    def quotient(what: str, unit: str, rows: dict[str, Any], names: tuple[str, str], key: str, limit: float,
                 least: bool = False) -> Verdict:  # fmt: skip
        theirs, ours = (figure(rows[name], key) for name in names)
        value = ours / theirs if ours is not None and theirs else None
        return Verdict(f"{names[1]} / {names[0]}", what, unit, theirs, ours, value, limit, least)

    def fixed(name: str, what: str, unit: str, rows: dict[str, Any], key: str, limit: float, least: bool = False
              ) -> Verdict:  # fmt: skip
        value = figure(rows[name], key)
        return Verdict(name, what, unit, None, value, value, limit, least)

    def peaks(name: str, what: str, less: float = 0) -> Verdict:
        peak, size = figure(one[name], "peak_bytes"), figure(one[name], "model_bytes")
        if peak is None or size is None:
            return Verdict(name, what, "bytes", None, None, None, 1.2)
        held = size + CACHE_BYTES
        return Verdict(name, what, "bytes", held, peak - less, (peak - less) / held, 1.2)

    difference, alone = "largest difference of logits to eager", figure(content, "torch_alone_bytes") or 0
    return [
        fixed("fp32", difference, "logits", one, "worst", 1e-4),
        fixed("pte fp32", difference, "logits", one, "worst", 1e-4),
        quotient("file", "bytes", one, ("fp32", "int8"), "model_bytes", 0.27),
        quotient("decode", "tokens/s", one, ("fp32", "int8"), "decode", 1.5, least=True),
        quotient("decode", "tokens/s", one, ("eager", "fp32"), "decode", 1.0, least=True),
        quotient("decode", "tokens/s", one, ("trace", "fp32"), "decode", 1.0, least=True),
        quotient("decode", "tokens/s", one, ("exported", "pte fp32"), "decode", 1.0, least=True),
        quotient("prefill", "tokens/s", one, ("exported", "pte fp32"), "prefill", 1.0, least=True),
        quotient("decode", "tokens/s", one, ("pte fp32", "pte int8"), "decode", 1.5, least=True),
        quotient("build", "s", one, ("exported", "pte fp32"), "build_s", 1.0),
        quotient("peak of the build", "bytes", one, ("exported", "pte fp32"), "build_peak_bytes", 1.0),
        fixed("int8", "mean KL", "nats", one, "mean_kl", 0.03),
        fixed("pte int8", "mean KL", "nats", one, "mean_kl", 0.03),
        peaks("fp32", "peak / file and cache"),
        peaks("fp32", "the same without what torch alone takes", alone),
        fixed("dynamic-int8", "least cosine", "", two, "min", 0.99, least=True),
        fixed("pte int8", "least cosine", "", two, "min", 0.99, least=True),
        quotient("latency", "ms", two, ("fp32", "dynamic-int8"), "ms", 0.5),
        quotient("latency", "ms", two, ("exported", "pte fp32"), "ms", 1.0),
    ]


def _exactness(content: dict[str, Any]) -> str:
    """How far logits are from those of the same model in float64."""
    rows = {row["name"]: row for row in content["decoder"] if "to_float64" in row}
    found = [("eager", rows["fp32"]["eager_to_float64"]), *((name, row["to_float64"]) for name, row in rows.items())]
    header = ("fp32", "largest difference of logits to float64")
    return markdown(header, ((name, f"{value:.1e}") for name, value in found))


def table(content: dict[str, Any]) -> str:
    """The result as Markdown; what does not hold is marked."""

    def cells(row: dict[str, Any], forms: dict[str, tuple[str, float]]) -> list[str]:
        values = {key: figure(row, key) for key in forms}
        shown = ["" if values[k] is None else f"{values[k] / by:{form}}" for k, (form, by) in forms.items()]
        return [row["name"], *shown]

    common = {"build_s": (".0f", 1), "build_peak_bytes": (".1f", 1e9), "model_bytes": (".1f", 1e6),
              "peak_bytes": (".0f", 1e6)}  # fmt: skip
    decoder = {**common, "prefill": (".0f", 1), "decode": (".1f", 1), "mean_kl": (".4f", 1), "same_top1": (".3f", 1)}
    encoder = {**common, "ms": (".2f", 1), "min": (".4f", 1), "mean": (".4f", 1)}
    heads = {"build_s": "export, s", "build_peak_bytes": "its peak, GB", "model_bytes": "file, MB",
             "peak_bytes": "peak, MB", "prefill": "prefill, tokens/s",
             "decode": "decode, tokens/s", "mean_kl": "mean KL", "same_top1": "same top-1", "ms": "latency, ms",
             "min": "least cosine", "mean": "mean cosine"}  # fmt: skip
    parts = [limit_rows(pairs(content)), _exactness(content)]
    for name, forms in (("decoder", decoder), ("encoder", encoder)):
        parts.append(markdown([name, *(heads[key] for key in forms)], (cells(row, forms) for row in content[name])))
    return "\n\n".join(parts)


def main() -> None:
    """Run, print the table, write the result; exit status 1 where a limit does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.edge_torch", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    start, lock = time.monotonic(), alone(WORK.with_suffix(".lock"))
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    content: dict[str, Any] = {**record.provenance(), "threads": THREADS, "n_runs": args.runs}
    child("prepare", source=str(offgrid(smollm2())))
    content["torch_alone_bytes"] = child("torch_alone")["peak_bytes"]
    for name in ("decoder", "encoder"):
        content[name] = part(name, args.runs)
    content["wall_s"] = round(time.monotonic() - start, 1)
    record.save("edge_torch", content)
    lock.close()
    print(table(content))
    broken = [one for one in pairs(content) if not one.holds]
    for one in broken:
        print(f"{one.pair}: {one.what}: {one.value}, limit {one.limit}", file=sys.stderr)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
